//! Many rows times weights where both sides are small integers: products of bytes, four to a lane.
//!
//! The sums of a block are exact in whatever order, so they are those of the canonical one.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::integers::add_exact;
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

/// Adds the products of a tile's first `rows` rows with a pair of panels over `steps` to their totals. The panels begin with the
/// first of these steps. Rows that complete a half are computed with the others.
#[inline(always)]
pub(super) fn multiply_bytes<S: IntegerProducts>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    w: &[BytePanel<'_>; 2],
    steps: Range<usize>,
    totals: &mut Totals<2>,
) {
    let all: &[[StepBytes; TILE]] = x.bytes[steps.start * TILE..steps.end * TILE].as_chunks().0;
    for (step, rows_of_step) in all.iter().enumerate() {
        for half in (0..rows.min(TILE)).step_by(HALF) {
            let rows: &[StepBytes; HALF] = rows_of_step[half..].first_chunk().expect("a tile has two halves");
            if let Some(next) = all.get(step + 1) {
                next[half..half + HALF].iter().for_each(
                    #[inline(always)]
                    |row| simd.fetch(row),
                );
            }
            let totals = totals.half(half);
            let mut sums = [[simd.start(0); 2]; HALF];
            for r in 0..HALF {
                sums[r] = [simd.start(rows[r].start); 2];
            }
            for quad in 0..QUADS {
                let w = [simd.load_pairs(&w[0].steps[step][quad].0), simd.load_pairs(&w[1].steps[step][quad].0)];
                for r in 0..HALF {
                    for p in 0..2 {
                        sums[r][p] = simd.dot_bytes(rows[r].quads[quad], w[p], sums[r][p]);
                    }
                }
            }
            let units = [&w[0].units[step], &w[1].units[step]];
            add_exact(
                simd,
                sums,
                (
                    #[inline(always)]
                    |r| rows[r].unit,
                    units,
                ),
                totals,
            );
        }
    }
}
