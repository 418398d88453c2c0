//! Looking at stored values: two models or files beside each other, and what quantization cost.

mod compare;
mod contents;
mod differ;
mod report;

use std::f64::consts::LN_10;
use std::ops::{AddAssign, Range};

use microscale_tensor::math;
use rayon::prelude::*;

pub use compare::{Comparison, Difference, TensorComparison, compare};
pub use contents::Contents;
pub use differ::{ConventionDifference, differ};
pub use report::{TensorReport, WorstBlock, report};

/// Bytes of a tensor that a thread looks at in one go.
const SLICE: usize = 4 << 20;

/// Squared sums of values and of what is between them and others; they do not depend on threads.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    signal: f64,
    noise: f64,
}

impl Sums {
    fn add(&mut self, value: f32, other: f32) {
        let [value, other] = [value, other].map(f64::from);
        self.signal += value * value;
        self.noise += (value - other) * (value - other);
    }

    /// The ratio of signal to noise in dB; infinite without noise.
    fn sqnr_db(&self) -> f64 {
        match self.noise {
            0.0 => f64::INFINITY,
            noise => 10.0 / LN_10 * math::ln(self.signal / noise),
        }
    }
}

impl AddAssign for Sums {
    fn add_assign(&mut self, other: Sums) {
        self.signal += other.signal;
        self.noise += other.noise;
    }
}

/// Calls `look` with slices of rows that take `row_bytes` each, on all threads; the answers are in the rows' order.
fn slices<T: Send, E: Send>(
    rows: usize,
    row_bytes: usize,
    look: impl Fn(Range<usize>) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let step = (SLICE / row_bytes.max(1)).max(1);
    let slice = |i: usize| look(i * step..((i + 1) * step).min(rows));
    (0..rows.div_ceil(step)).into_par_iter().map(slice).collect()
}
