//! Many rows times weights in f32, in the canonical order: where no instruction takes pairs of bf16, or a slow one.
//! Taking these apart for every product would cost as much as the product itself.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::product::{HALF, Totals};
use super::sides::{PANEL, STEP, TILE, XTile};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{LANES, Simd};

/// A step of a row: the odd elements, then the even ones. That is the order in which those of a pair are added.
pub(super) type FloatRow = [[f32; LANES]; 2];

/// A step of a panel: of each pair the odd element, then the even one, the bits of sixteen outputs each.
pub(super) type FloatStep = [[Lanes; 2]; LANES];

/// Some steps of a panel of outputs.
#[derive(Clone, Copy)]
pub(super) struct FloatPanel<'a> {
    pub(super) steps: &'a [FloatStep],
    /// Their scales, a block being a number of steps; none where the elements hold them.
    pub(super) scales: Option<(&'a [[f32; PANEL]], usize)>,
}

/// Rows whose sums with a panel fill the registers of a machine that has few of them.
const FEWER: usize = 6;

/// Rows of a tile that are multiplied together: the first of each group, and how many it may have.
fn groups<S: Simd>() -> impl Iterator<Item = (usize, usize)> {
    let rows = if S::ROWS >= HALF { HALF } else { FEWER };
    (0..TILE).step_by(rows).map(move |first| (first, rows.min(TILE - first)))
}

/// Some steps of a tile, taken apart: `[group][step][row]`, so that the product reads one line after another.
#[inline(always)]
pub(super) fn take_apart<S: Simd>(simd: S, x: &XTile<'_>, steps: Range<usize>, mut to: &mut [FloatRow]) {
    for (first, rows) in groups::<S>() {
        for step in &x.steps()[steps.clone()] {
            let row;
            (row, to) = to.split_at_mut(rows);
            for (pairs, to) in step[first..first + rows].iter().zip(row) {
                *to = float_row(simd, pairs, None);
            }
        }
    }
}

/// A step of a row, taken apart.
#[inline(always)]
pub(super) fn float_row<S: Simd>(simd: S, pairs: &Lanes, factor: Option<S::F32>) -> FloatRow {
    let [mut even, mut odd] = simd.floats(simd.load_pairs(&pairs.0));
    if let Some(factor) = factor {
        (even, odd) = (simd.mul(even, factor), simd.mul(odd, factor));
    }
    let mut row = FloatRow::default();
    simd.store(odd, &mut row[0]);
    simd.store(even, &mut row[1]);
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

/// Some rows and what is known of their products so far.
pub(super) struct FloatTile<'a> {
    pub(super) x: &'a XTile<'a>,
    /// Rows that count; those that complete a group are computed with them.
    pub(super) rows: usize,
    /// What [`take_apart`] made of the tile, and then of those that come next.
    pub(super) floats: &'a [FloatRow],
    /// Pairs of the last step of all.
    pub(super) last_pairs: usize,
    /// What they are before the first chunk does not matter.
    pub(super) totals: &'a mut Totals<2>,
    /// The sums of a chunk that has begun, where chunks may be longer than what is multiplied at a time.
    pub(super) sums: &'a mut Totals<2>,
}

/// Adds the products of a tile with a pair of panels, or with the first if that stands alone, over `steps` to its totals, a chunk of
/// so many steps at a time. Rows and panels begin with the first of these steps.
#[inline(always)]
pub(super) fn multiply_floats<S: Simd>(
    simd: S,
    mut tile: FloatTile<'_>,
    (w, alone): (&[FloatPanel<'_>; 2], bool),
    (steps, chunk): (Range<usize>, usize),
) {
    let scaled = !tile.x.is_unscaled() || w[0].scales.is_some();
    let end = tile.rows;
    for (first, rows) in groups::<S>().take_while(|&(first, _)| first < end) {
        let span = (steps.clone(), chunk);
        match (rows, scaled) {
            (HALF, true) if !alone => tile.add::<S, HALF, 2, true>(simd, first, (w, 0), span),
            (HALF, false) if !alone => tile.add::<S, HALF, 2, false>(simd, first, (w, 0), span),
            _ => {
                for p in 0..if alone { 1 } else { 2 } {
                    let (w, span) = ((std::array::from_ref(&w[p]), p), span.clone());
                    match (rows, scaled) {
                        (HALF, true) => tile.add::<S, HALF, 1, true>(simd, first, w, span),
                        (HALF, false) => tile.add::<S, HALF, 1, false>(simd, first, w, span),
                        (FEWER, true) => tile.add::<S, FEWER, 1, true>(simd, first, w, span),
                        (FEWER, false) => tile.add::<S, FEWER, 1, false>(simd, first, w, span),
                        (_, true) => tile.add::<S, { TILE % FEWER }, 1, true>(simd, first, w, span),
                        (_, false) => tile.add::<S, { TILE % FEWER }, 1, false>(simd, first, w, span),
                    }
                }
            }
        }
    }
}

impl FloatTile<'_> {
    /// Adds the products of `R` rows from `row` on with `P` panels to the totals of panels from `panel` on.
    #[inline(always)]
    fn add<S: Simd, const R: usize, const P: usize, const SCALED: bool>(
        &mut self,
        simd: S,
        row: usize,
        (w, panel): (&[FloatPanel<'_>; P], usize),
        (steps, chunk): (Range<usize>, usize),
    ) {
        let x: &[[FloatRow; R]] = self.floats[row * steps.len()..].as_chunks().0;
        for totals in &self.totals.0[row..row + R] {
            for p in 0..P {
                simd.fetch(&totals[panel + p]);
            }
        }
        // A division takes as long as many a product.
        let mut begin = if chunk == 1 { steps.start } else { steps.start / chunk * chunk };
        while begin < steps.end {
            let first = begin.max(steps.start);
            let (end, last) = (begin + chunk, (begin + chunk).min(steps.end));
            let mut sums = [[simd.splat(0.0); P]; R];
            if begin < first {
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = simd.load(&self.sums.0[row + r][panel + p]);
                    }
                }
            }
            for step in first - steps.start..last - steps.start {
                let mut outputs = [&w[0].steps[step]; P];
                for p in 1..P {
                    outputs[p] = &w[p].steps[step];
                }
                // The next step's rows, or those of the group after this.
                if let Some(next) = x.get(step + 1) {
                    next.as_flattened().iter().for_each(
                        #[inline(always)]
                        |line| simd.fetch(line),
                    );
                }
                // Of whole steps the compiler knows the length.
                if steps.start + step + 1 < self.x.steps().len() || self.last_pairs == LANES {
                    add_step(simd, &x[step], &outputs, 0..LANES, &mut sums);
                } else {
                    add_step(simd, &x[step], &outputs, 0..self.last_pairs, &mut sums);
                }
            }
            if last == end || last == self.x.steps().len() {
                self.add_scaled::<S, R, P, SCALED>(simd, (row, panel), &sums, (w, steps.start), begin);
            } else {
                for r in 0..R {
                    for p in 0..P {
                        simd.store(sums[r][p], &mut self.sums.0[row + r][panel + p]);
                    }
                }
            }
            begin = end;
        }
    }

    /// Adds the sums of the chunk that begins with step `first` to the totals, scaled.
    #[inline(always)]
    fn add_scaled<S: Simd, const R: usize, const P: usize, const SCALED: bool>(
        &mut self,
        simd: S,
        (row, panel): (usize, usize),
        sums: &[[S::F32; P]; R],
        (w, start): (&[FloatPanel<'_>; P], usize),
        first: usize,
    ) {
        for p in 0..P {
            let w = match w[p].scales {
                Some((powers, steps)) if SCALED => simd.load(&powers[(first - start) / steps]),
                _ => simd.splat(1.0),
            };
            for r in 0..R {
                let to = &mut self.totals.0[row + r][panel + p];
                let total = if first == 0 { simd.splat(0.0) } else { simd.load(to) };
                let total = if SCALED {
                    let power = simd.mul(w, simd.splat(self.x.power(first * STEP, row + r)));
                    simd.fma(sums[r][p], power, total)
                } else {
                    simd.add(sums[r][p], total)
                };
                simd.store(total, to);
            }
        }
    }
}

#[inline(always)]
fn add_step<S: Simd, const R: usize, const P: usize>(
    simd: S,
    rows: &[FloatRow; R],
    outputs: &[&FloatStep; P],
    pairs: Range<usize>,
    sums: &mut [[S::F32; P]; R],
) {
    for pair in pairs {
        for half in 0..2 {
            let mut w = [simd.splat(0.0); P];
            for p in 0..P {
                w[p] = simd.with_bits(simd.load_pairs(&outputs[p][pair][half].0));
            }
            for r in 0..R {
                let x = simd.splat(rows[r][half][pair]);
                for p in 0..P {
                    sums[r][p] = simd.fma(x, w[p], sums[r][p]);
                }
            }
        }
    }
}
