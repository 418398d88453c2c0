//! Many rows times weights as integers of 16 bits, two products to a lane: where the machine has no instruction for pairs of
//! bf16, twice what f32 take in.
//!
//! The sums of a block are exact in whatever order, so they are those of the canonical one. That holds for formats whose
//! magnitudes are not far apart ([`always_exact`](super::extent::always_exact)). For others, E4M3 above all, the rows whose
//! sums may round would have to be added in order besides: with E3M2 that takes as much time as integers save.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::integers::add_exact;
use super::product::{HALF, Totals};
use super::sides::{PANEL, TILE, XTile};
use crate::cpu::simd::tiles::{Lanes, Step};
use crate::cpu::simd::{IntegerProducts, LANES};

/// Some steps of a panel of outputs and their scales, in units of the format.
#[derive(Clone, Copy)]
pub(super) struct WordPanel<'a> {
    pub(super) steps: &'a [Step],
    pub(super) units: &'a [[f32; PANEL]],
}

/// Adds the products of a tile's first `rows` rows with a pair of panels over `steps` to their totals. The panels begin with
/// the first of these steps. Rows that complete a half are computed with the others.
#[inline(always)]
pub(super) fn multiply_words<S: IntegerProducts>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    w: &[WordPanel<'_>; 2],
    steps: Range<usize>,
    totals: &mut Totals<2>,
) {
    let all: &[Step] = x.words[steps.start * TILE..steps.end * TILE].as_chunks().0;
    for (step, (integers, units)) in all.iter().zip(&x.word_units[steps]).enumerate() {
        for half in (0..rows.min(TILE)).step_by(HALF) {
            let rows: &[Lanes; HALF] = integers[half..].first_chunk().expect("a tile has two halves");
            if let Some(next) = all.get(step + 1) {
                next[half..half + HALF].iter().for_each(
                    #[inline(always)]
                    |row| simd.fetch(row),
                );
            }
            let totals = totals.half(half);
            let mut sums = [[simd.start(0); 2]; HALF];
            for pair in 0..LANES {
                let w = [simd.load_pairs(&w[0].steps[step][pair].0), simd.load_pairs(&w[1].steps[step][pair].0)];
                for r in 0..HALF {
                    for p in 0..2 {
                        sums[r][p] = simd.dot_integers(rows[r].0[pair], w[p], sums[r][p]);
                    }
                }
            }
            let scales = [&w[0].units[step], &w[1].units[step]];
            add_exact(
                simd,
                sums,
                (
                    #[inline(always)]
                    |r| units[half + r],
                    scales,
                ),
                totals,
            );
        }
    }
}
