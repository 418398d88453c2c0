//! Scores of a tile of queries: products with keys, rounded, over the root of the features, rounded.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::bf16::rounded;
use super::linear::FEW;
use super::product::steps::{ALL, PANELS, with_steps};
use super::product::{add_step_apart, steps_of};
use super::sides::{PANEL, STEP, WPanel, XTile};
use crate::cpu::simd::tiles::{Lanes, Step};
use crate::cpu::simd::{LANES, Simd};

/// √head_dim, by which products are divided.
#[derive(Clone, Copy)]
pub(super) struct Root {
    root: f32,
    /// Where to multiply by it gives the same score of every product: that takes a fraction of the time.
    pub(super) reciprocal: Option<f32>,
}

impl Root {
    /// Both roundings are the same in every binade, but for quotients below f32's normal numbers: their exponentials
    /// are 1 whatever their last bits.
    pub(super) fn of(head_dim: usize) -> Root {
        let root = (head_dim as f64).sqrt() as f32;
        let reciprocal = 1.0 / root;
        let same = |bits: u32| {
            let x = f32::from_bits(bits << 16);
            rounded(x * reciprocal) == rounded(x / root)
        };
        // bf16 from 1 to 2.
        Root { root, reciprocal: (0x3F80..0x4000).all(same).then_some(reciprocal) }
    }

    /// The scores of some products.
    #[inline(always)]
    pub(super) fn scores(self, products: &[f32], to: &mut [f32]) {
        if let Some(reciprocal) = self.reciprocal {
            for (to, &product) in to.iter_mut().zip(products) {
                *to = rounded(rounded(product) * reciprocal);
            }
        } else {
            for (to, &product) in to.iter_mut().zip(products) {
                *to = rounded(rounded(product) / self.root);
            }
        }
    }
}

/// A tile of queries beside keys whose products need no care ([`Order::is_fast`]) and come in whole pairs.
///
/// [`Order::is_fast`]: super::product::Order::is_fast
pub(super) struct Straight<'a> {
    pub(super) x: &'a XTile<'a>,
    /// Elements of each, and how many of them are summed before they are scaled.
    pub(super) k: usize,
    pub(super) chunk: usize,
    pub(super) reciprocal: f32,
}

impl Straight<'_> {
    /// The scores of the first `rows` rows with two panels, into the first columns of rows that are `stride` apart. Rows
    /// that complete a few are computed with them.
    #[inline(always)]
    pub(super) fn scores<S: Simd>(&self, simd: S, w: &[WPanel<'_>; 2], rows: usize, (to, stride): (&mut [f32], usize)) {
        let mut row = 0;
        while row < rows {
            let to = (&mut to[row * stride..], stride);
            let left = rows - row;
            row += match S::ROWS.min(left.next_power_of_two()) {
                1 => self.rows::<S, 1>(simd, w, (row, left), to),
                2 => self.rows::<S, 2>(simd, w, (row, left), to),
                4 => self.rows::<S, 4>(simd, w, (row, left), to),
                _ => self.rows::<S, 8>(simd, w, (row, left), to),
            };
        }
    }

    /// Those of `R` rows from `first` on, of which `left` are of use; answers with `R`.
    #[inline(always)]
    fn rows<S: Simd, const R: usize>(
        &self,
        simd: S,
        w: &[WPanel<'_>; 2],
        (first, left): (usize, usize),
        (to, stride): (&mut [f32], usize),
    ) -> usize {
        let totals = self.totals::<S, R>(simd, w, first);
        let reciprocal = simd.splat(self.reciprocal);
        for (r, to) in to.chunks_mut(stride).take(R.min(left)).enumerate() {
            for (p, to) in to.as_chunks_mut::<PANEL>().0.iter_mut().take(2).enumerate() {
                let product = simd.rounded(totals[r][p]);
                simd.store(simd.rounded(simd.mul(product, reciprocal)), to);
            }
        }
        R
    }

    /// The products, in the canonical order.
    #[inline(always)]
    fn totals<S: Simd, const R: usize>(&self, simd: S, w: &[WPanel<'_>; 2], first: usize) -> [[S::F32; 2]; R] {
        if R > FEW && self.chunk == STEP && self.k.is_multiple_of(STEP) {
            let (some, steps, nothing) = ((self.x, first), 0..self.k / STEP, [[simd.splat(0.0); 2]; R]);
            return if self.x.is_unscaled() {
                with_steps::<S, 2, R, PANELS>(simd, some, w, steps, nothing)
            } else {
                with_steps::<S, 2, R, ALL>(simd, some, w, steps, nothing)
            };
        }
        // Mostly there is one chunk: then no totals take up registers while it is summed.
        let mut totals = self.with_chunk::<S, R>(simd, w, (first, 0), [[simd.splat(0.0); 2]; R]);
        for start in (self.chunk..self.k).step_by(self.chunk) {
            totals = self.with_chunk::<S, R>(simd, w, (first, start), totals);
        }
        totals
    }

    /// Totals and the sums of the chunk that begins with `start`.
    #[inline(always)]
    fn with_chunk<S: Simd, const R: usize>(
        &self,
        simd: S,
        w: &[WPanel<'_>; 2],
        (first, start): (usize, usize),
        mut totals: [[S::F32; 2]; R],
    ) -> [[S::F32; 2]; R] {
        let x = self.x;
        let end = self.k.min(start + self.chunk);
        let mut sums = [[simd.splat(0.0); 2]; R];
        let [begun, whole, last] = steps_of(start / 2..end / 2);
        self.add_pairs(simd, w, (first, begun), &mut sums);
        for step in whole {
            let (rows, outputs) = (x.rows::<R>(step, first), [w[0].step(step), w[1].step(step)]);
            add_pairs_of_step(simd, rows, outputs, 0..LANES, &mut sums);
        }
        self.add_pairs(simd, w, (first, last), &mut sums);
        let scaled = !x.is_unscaled() || w[0].scales.is_some();
        for p in 0..2 {
            let power = simd.load(w[p].power(start).unwrap_or(&[1.0; PANEL]));
            for r in 0..R {
                totals[r][p] = if scaled {
                    let power = simd.mul(power, simd.splat(x.power(start, first + r)));
                    simd.fma(sums[r][p], power, totals[r][p])
                } else {
                    simd.add(sums[r][p], totals[r][p])
                };
            }
        }
        totals
    }

    /// Adds the products of some pairs of one step.
    #[inline(always)]
    fn add_pairs<S: Simd, const R: usize>(
        &self,
        simd: S,
        w: &[WPanel<'_>; 2],
        (first, pairs): (usize, Range<usize>),
        sums: &mut [[S::F32; 2]; R],
    ) {
        if pairs.is_empty() {
            return;
        }
        let step = pairs.start / LANES;
        let (rows, outputs) = (self.x.rows::<R>(step, first), [w[0].step(step), w[1].step(step)]);
        let at = step * LANES;
        add_pairs_of_step(simd, rows, outputs, pairs.start - at..pairs.end - at, sums);
    }
}

/// Adds the products of some pairs of a step, pair by pair or, of more than a few rows, element by element.
#[inline(always)]
fn add_pairs_of_step<S: Simd, const R: usize>(
    simd: S,
    rows: &[Lanes; R],
    outputs: [&Step; 2],
    pairs: Range<usize>,
    sums: &mut [[S::F32; 2]; R],
) {
    if R > FEW && simd.takes_pairs_apart() {
        let mut x = [&rows[0].0; R];
        for r in 1..R {
            x[r] = &rows[r].0;
        }
        return add_step_apart::<S, R, 2, false>(simd, &x, &outputs, pairs, sums);
    }
    for pair in pairs {
        add_pair(simd, rows, outputs, pair, sums);
    }
}

#[inline(always)]
fn add_pair<S: Simd, const R: usize>(simd: S, x: &[Lanes; R], w: [&Step; 2], pair: usize, sums: &mut [[S::F32; 2]; R]) {
    // Few rows are done with a line before the next has come from memory.
    if R <= FEW {
        simd.prefetch(&w[0][pair]);
        simd.prefetch(&w[1][pair]);
    }
    let w = [simd.load_pairs(&w[0][pair].0), simd.load_pairs(&w[1][pair].0)];
    for r in 0..R {
        let x = simd.splat_pairs(x[r].0[pair]);
        for p in 0..2 {
            sums[r][p] = simd.dot(x, w[p], sums[r][p]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With every product that has a normal quotient; 810 is the first number of features that is divided by.
    #[test]
    fn a_reciprocal_gives_the_scores_of_a_division() {
        for head_dim in [1, 8, 48, 64, 80, 96, 128, 256, 810] {
            let root = Root::of(head_dim);
            assert_eq!(root.reciprocal.is_none(), head_dim == 810, "{head_dim}");
            let totals: Vec<f32> = (0..=u16::MAX).map(|bits| f32::from_bits(u32::from(bits) << 16)).collect();
            let mut found = vec![0.0; totals.len()];
            root.scores(&totals, &mut found);
            for (total, found) in totals.into_iter().zip(found) {
                let quotient = total / (head_dim as f64).sqrt() as f32;
                let expected = rounded(quotient);
                assert!(quotient.is_subnormal() || found == expected || found.is_nan() && expected.is_nan(), "{total}");
            }
        }
    }
}
