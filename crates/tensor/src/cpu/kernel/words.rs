//! Many rows times weights as integers of 16 bits, two products to a lane: where the machine has no instruction for pairs of
//! bf16, twice what f32 take in.
//!
//! The sums of a block are exact in whatever order, so they are those of the canonical one. That holds for formats whose
//! magnitudes are not far apart ([`always_exact`](super::extent::always_exact)). For others, E4M3 above all, the rows whose
//! sums may round would have to be added in order besides: with E3M2 that takes as much time as integers save.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::integers::{FEWER, add_exact};
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
    if S::ROWS >= HALF {
        add::<S, HALF, 2>(simd, (x, rows), (w, 0), steps, totals);
    } else {
        for p in 0..2 {
            add::<S, FEWER, 1>(simd, (x, rows), (std::array::from_ref(&w[p]), p), steps.clone(), totals);
        }
    }
}

/// The same with `P` panels, from `panel` of the totals on, `R` rows at a time.
#[inline(always)]
fn add<S: IntegerProducts, const R: usize, const P: usize>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    (w, panel): (&[WordPanel<'_>; P], usize),
    steps: Range<usize>,
    totals: &mut Totals<2>,
) {
    let all: &[Step] = x.words[steps.start * TILE..steps.end * TILE].as_chunks().0;
    for (step, (integers, units)) in all.iter().zip(&x.word_units[steps]).enumerate() {
        for first in (0..rows.min(TILE)).step_by(R) {
            let rows: &[Lanes; R] = integers[first..].first_chunk().expect("a tile has whole groups of rows");
            if let Some(next) = all.get(step + 1) {
                next[first..first + R].iter().for_each(
                    #[inline(always)]
                    |row| simd.fetch(row),
                );
            }
            let mut sums = [[simd.start(0); P]; R];
            for pair in 0..LANES {
                let mut lanes = [simd.splat_pairs(0); P];
                for p in 0..P {
                    lanes[p] = simd.load_pairs(&w[p].steps[step][pair].0);
                }
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = simd.dot_integers(rows[r].0[pair], lanes[p], sums[r][p]);
                    }
                }
                // Where registers are few the compiler would go through the pairs row by row.
                if S::ROWS < HALF {
                    for r in 0..R {
                        for p in 0..P {
                            sums[r][p] = simd.settled_integers(sums[r][p]);
                        }
                    }
                }
            }
            let mut scales = [&w[0].units[step]; P];
            for p in 0..P {
                scales[p] = &w[p].units[step];
            }
            add_exact(
                simd,
                sums,
                (
                    #[inline(always)]
                    |r| units[first + r],
                    scales,
                ),
                (&mut totals.0[first..first + R], panel),
            );
        }
    }
}
