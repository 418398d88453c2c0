//! Many rows times weights in f32, in the canonical order: where no instruction takes pairs of bf16, taking these apart for
//! every product would cost as much as the product itself.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::product::{HALF, Totals};
use super::sides::{PANEL, STEP, TILE, XTile};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{LANES, Simd};

/// A step of a row in the order of additions: of each pair the high element first.
pub(super) type FloatRow = [f32; STEP];

/// A step of a panel in the same order, the bits of sixteen outputs each.
pub(super) type FloatStep = [Lanes; STEP];

/// Some steps of a panel of outputs.
#[derive(Clone, Copy)]
pub(super) struct FloatPanel<'a> {
    pub(super) steps: &'a [FloatStep],
    /// Their scales, a block being a number of steps; none where the elements hold them.
    pub(super) scales: Option<(&'a [[f32; PANEL]], usize)>,
}

/// Rows whose sums with a panel fill the registers of a machine that has few of them.
const FEWER: usize = 6;

/// A step of a row, taken apart.
#[inline(always)]
pub(super) fn float_row(pairs: &[u32; LANES]) -> FloatRow {
    let mut row = [0.0; STEP];
    for (to, pair) in row.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        *to = [pair & 0xFFFF_0000, pair << 16].map(f32::from_bits);
    }
    row
}

/// Sixteen outputs of two elements, taken apart.
#[inline(always)]
pub(super) fn float_lanes<S: Simd>(simd: S, pairs: S::Pairs, scale: Option<S::F32>, to: &mut [Lanes; 2]) {
    let [even, odd] = simd.floats(pairs);
    for (x, to) in [odd, even].into_iter().zip(to) {
        let x = if let Some(scale) = scale { simd.mul(x, scale) } else { x };
        simd.store_pairs(simd.bits(x), &mut to.0);
    }
}

/// Adds the products of a tile's first `rows` rows with a pair of panels over `steps` to their totals, `chunk` elements at a
/// time. `floats` and the panels begin with the first of these steps. Rows that complete a group are computed with the
/// others.
#[inline(always)]
pub(super) fn multiply_floats<S: Simd>(
    simd: S,
    (x, floats, rows): (&XTile<'_>, &[FloatRow], usize),
    w: &[FloatPanel<'_>; 2],
    (steps, chunk): (Range<usize>, usize),
    totals: &mut Totals<2>,
) {
    let floats = floats.as_chunks().0;
    let scaled = !x.is_unscaled() || w[0].scales.is_some();
    let chunks = Chunks { x, floats, first: steps.start, steps: chunk / STEP };
    if S::ROWS >= HALF {
        for first in (0..rows.min(TILE)).step_by(HALF) {
            match scaled {
                true => chunks.add::<S, HALF, 2, true>(simd, first, (w, 0), totals),
                false => chunks.add::<S, HALF, 2, false>(simd, first, (w, 0), totals),
            }
        }
        return;
    }
    for p in 0..2 {
        let w = std::array::from_ref(&w[p]);
        for first in (0..rows.min(TILE)).step_by(FEWER) {
            match (TILE - first < FEWER, scaled) {
                (true, true) => chunks.add::<S, { TILE % FEWER }, 1, true>(simd, first, (w, p), totals),
                (true, false) => chunks.add::<S, { TILE % FEWER }, 1, false>(simd, first, (w, p), totals),
                (false, true) => chunks.add::<S, FEWER, 1, true>(simd, first, (w, p), totals),
                (false, false) => chunks.add::<S, FEWER, 1, false>(simd, first, (w, p), totals),
            }
        }
    }
}

/// The rows of a tile over some steps.
struct Chunks<'a> {
    x: &'a XTile<'a>,
    floats: &'a [[FloatRow; TILE]],
    /// The step that `floats` begins with.
    first: usize,
    /// Steps that are summed before they are added to the totals.
    steps: usize,
}

impl Chunks<'_> {
    /// Adds the products of `R` rows from `row` on with `P` panels to the totals of panels from `panel` on.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const P: usize, const SCALED: bool>(
        &self,
        simd: S,
        row: usize,
        (w, panel): (&[FloatPanel<'_>; P], usize),
        totals: &mut Totals<2>,
    ) {
        let totals: &mut [[[f32; PANEL]; 2]; R] = totals.0[row..].first_chunk_mut().expect("a tile has these rows");
        for start in (0..self.floats.len()).step_by(self.steps) {
            let steps = start..self.floats.len().min(start + self.steps);
            let mut sums = [[simd.splat(0.0); P]; R];
            for step in steps {
                let rows: &[FloatRow; R] = self.floats[step][row..].first_chunk().expect("a tile has these rows");
                let mut outputs = [&w[0].steps[step]; P];
                for p in 1..P {
                    outputs[p] = &w[p].steps[step];
                }
                for k in 0..STEP {
                    let mut w = [simd.splat(0.0); P];
                    for p in 0..P {
                        w[p] = simd.with_bits(simd.load_pairs(&outputs[p][k].0));
                    }
                    for r in 0..R {
                        let x = simd.splat(rows[r][k]);
                        for p in 0..P {
                            sums[r][p] = simd.fma(x, w[p], sums[r][p]);
                        }
                    }
                }
            }
            for p in 0..P {
                let w = match w[p].scales {
                    Some((powers, steps)) if SCALED => simd.load(&powers[start / steps]),
                    _ => simd.splat(1.0),
                };
                for r in 0..R {
                    let to = &mut totals[r][panel + p];
                    let total = simd.load(to);
                    let total = if SCALED {
                        let power = simd.mul(w, simd.splat(self.x.power((self.first + start) * STEP, row + r)));
                        simd.fma(sums[r][p], power, total)
                    } else {
                        simd.add(sums[r][p], total)
                    };
                    simd.store(total, to);
                }
            }
        }
    }
}
