//! Many rows times weights where both sides are small integers: products of bytes, four to a lane.
//!
//! The sums of a block are exact in whatever order, so they are those of the canonical one.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::integers::{FEWER, add_exact};
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
    /// Of the codes they were.
    pub(super) bits: usize,
}

/// Adds the products of a tile's first `rows` rows with a pair of panels over `steps` to their totals. The panels begin with the
/// first of these steps. Rows that complete some are computed with the others. The sums of so many
/// [quads](super::extent::quads_in_short) are small.
#[inline(always)]
pub(super) fn multiply_bytes<S: IntegerProducts>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    (w, quads): (&[BytePanel<'_>; 2], usize),
    steps: Range<usize>,
    totals: &mut Totals<2>,
) {
    if S::ROWS >= HALF {
        return add::<S, HALF, 2, QUADS>(simd, (x, rows), (w, 0), steps, totals);
    }
    for p in 0..2 {
        let (w, steps) = ((std::array::from_ref(&w[p]), p), steps.clone());
        match quads {
            QUADS => add::<S, FEWER, 1, QUADS>(simd, (x, rows), w, steps, totals),
            2.. => add::<S, FEWER, 1, 2>(simd, (x, rows), w, steps, totals),
            _ => add::<S, FEWER, 1, 1>(simd, (x, rows), w, steps, totals),
        }
    }
}

/// The same with `P` panels, from `panel` of the totals on, `R` rows and `Q` quads at a time.
#[inline(always)]
fn add<S: IntegerProducts, const R: usize, const P: usize, const Q: usize>(
    simd: S,
    (x, rows): (&XTile<'_>, usize),
    (w, panel): (&[BytePanel<'_>; P], usize),
    steps: Range<usize>,
    totals: &mut Totals<2>,
) {
    let all: &[[StepBytes; TILE]] = x.bytes[steps.start * TILE..steps.end * TILE].as_chunks().0;
    for (step, rows_of_step) in all.iter().enumerate() {
        for first in (0..rows.min(TILE)).step_by(R) {
            let rows: &[StepBytes; R] = rows_of_step[first..].first_chunk().expect("a tile has whole groups of rows");
            if let Some(next) = all.get(step + 1) {
                next[first..first + R].iter().for_each(
                    #[inline(always)]
                    |row| simd.fetch(row),
                );
            }
            let mut sums = [[simd.start(0); P]; R];
            for r in 0..R {
                sums[r] = [simd.start_beside(rows[r].start, w[0].bits); P];
            }
            for begin in (0..QUADS).step_by(Q) {
                let mut short = [[simd.short(sums[0][0]); P]; R];
                for r in 0..R {
                    for p in 0..P {
                        short[r][p] = simd.short(sums[r][p]);
                    }
                }
                for quad in begin..begin + Q {
                    let mut lanes = [simd.splat_pairs(0); P];
                    for p in 0..P {
                        lanes[p] = simd.load_pairs(&w[p].steps[step][quad].0);
                    }
                    for r in 0..R {
                        for p in 0..P {
                            short[r][p] = simd.dot_bytes_short(rows[r].quads[quad], lanes[p], short[r][p]);
                        }
                    }
                    // Where registers are few the compiler would go through the quads row by row.
                    if S::ROWS < HALF {
                        for r in 0..R {
                            for p in 0..P {
                                short[r][p] = simd.settled_short(short[r][p]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for p in 0..P {
                        sums[r][p] = simd.long(short[r][p], sums[r][p]);
                    }
                }
            }
            let mut units = [&w[0].units[step]; P];
            for p in 0..P {
                units[p] = &w[p].units[step];
            }
            add_exact(
                simd,
                sums,
                (
                    #[inline(always)]
                    |r| rows[r].unit,
                    units,
                ),
                (&mut totals.0[first..first + R], panel),
            );
        }
    }
}
