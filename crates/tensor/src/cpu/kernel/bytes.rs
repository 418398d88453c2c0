//! Many rows times weights where both sides are small integers: products of bytes, four to a lane.
//!
//! The sums of a block are exact in whatever order, so they are those of the canonical one.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::product::{HALF, Totals};
use super::sides::{PANEL, StepBytes, TILE, XTile};
use crate::cpu::simd::IntegerProducts;
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::tiles::Lanes;

/// A step of a panel: four elements along k of sixteen outputs to each of its eight.
pub(super) type ByteStep = [Lanes; QUADS];

/// Some steps of a panel of outputs and their scales, in units of the format.
#[derive(Clone, Copy)]
pub(super) struct BytePanel<'a> {
    pub(super) steps: &'a [ByteStep],
    pub(super) units: &'a [[f32; PANEL]],
}

/// Adds the products of a tile's first `rows` rows with `P` panels over `steps` to their totals. The panels begin with the
/// first of these steps. Rows that complete a half are computed with the others.
#[inline(always)]
pub(super) fn multiply_bytes<S: IntegerProducts, const P: usize>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    w: &[BytePanel<'_>; P],
    steps: Range<usize>,
    totals: &mut Totals<P>,
) {
    let x = &x.bytes[steps.start * TILE..steps.end * TILE].as_chunks().0;
    for half in (0..rows.min(TILE)).step_by(HALF) {
        add_half(simd, (x, half), w, totals);
    }
}

#[inline(always)]
fn add_half<S: IntegerProducts, const P: usize>(
    simd: S,
    (x, half): (&[[StepBytes; TILE]], usize),
    w: &[BytePanel<'_>; P],
    totals: &mut Totals<P>,
) {
    let totals = totals.half(half);
    for p in 0..P {
        let mut own = [simd.splat(0.0); HALF];
        for r in 0..HALF {
            own[r] = simd.load(&totals[r][p]);
        }
        for (step, rows) in x.iter().enumerate() {
            let rows: &[StepBytes; HALF] = rows[half..].first_chunk().expect("a tile has two halves");
            let mut sums = [simd.start(0); HALF];
            for r in 0..HALF {
                sums[r] = simd.start(rows[r].start);
            }
            for quad in 0..QUADS {
                let w = simd.load_pairs(&w[p].steps[step][quad].0);
                for r in 0..HALF {
                    sums[r] = simd.dot_bytes(rows[r].quads[quad], w, sums[r]);
                }
            }
            let units = simd.load(&w[p].units[step]);
            for r in 0..HALF {
                own[r] = simd.fma(simd.float(sums[r]), simd.mul(units, simd.splat(rows[r].unit)), own[r]);
            }
        }
        for r in 0..HALF {
            simd.store(own[r], &mut totals[r][p]);
        }
    }
}
