//! Chunks that are steps, one after another.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::{AHEAD_STEPS, Totals};
use crate::cpu::kernel::linear::FEW;
use crate::cpu::kernel::sides::{PANEL, STEP, WPanel, XTile};
use crate::cpu::simd::{LANES, Simd};

/// Adds the products of `R` rows from `first` on with all panels to the totals, which before step 0 are taken for 0.
#[inline(always)]
pub(super) fn add_steps<S: Simd, const P: usize, const R: usize, const SCALES: u8>(
    simd: S,
    (x, first): (&XTile<'_>, usize),
    w: &[WPanel<'_>; P],
    steps: Range<usize>,
    totals: &mut Totals<P>,
) {
    let totals: &mut [_; R] = totals.0[first..].first_chunk_mut().expect("rows of a tile");
    let mut own = [[simd.splat(0.0); P]; R];
    if steps.start > 0 {
        for r in 0..R {
            for p in 0..P {
                own[r][p] = simd.load(&totals[r][p]);
            }
        }
    }
    own = with_steps::<S, P, R, SCALES>(simd, (x, first), w, steps, own);
    for r in 0..R {
        for p in 0..P {
            simd.store(own[r][p], &mut totals[r][p]);
        }
    }
}

/// The scales that are not 1: none.
pub(in crate::cpu::kernel) const NONE: u8 = 0;
/// Those of the panels at most.
pub(in crate::cpu::kernel) const PANELS: u8 = 1;
/// Those of rows and panels.
pub(in crate::cpu::kernel) const ALL: u8 = 2;

/// Totals of `R` rows from `first` on and what the products with all panels add to them. They stay in registers if there are
/// enough; half a tile by two panels takes all for its sums, and a load and a store of every total once per step is then less
/// than the loads of one panel at a time.
#[inline(always)]
pub(in crate::cpu::kernel) fn with_steps<S: Simd, const P: usize, const R: usize, const SCALES: u8>(
    simd: S,
    (x, first): (&XTile<'_>, usize),
    w: &[WPanel<'_>; P],
    steps: Range<usize>,
    mut totals: [[S::F32; P]; R],
) -> [[S::F32; P]; R] {
    let last = steps.end.saturating_sub(1);
    for step in steps {
        let rows = x.rows::<R>(step, first);
        let next = (step + AHEAD_STEPS).min(last);
        let (mut outputs, mut ahead) = ([w[0].step(step); P], [w[0].step(next); P]);
        for p in 1..P {
            (outputs[p], ahead[p]) = (w[p].step(step), w[p].step(next));
        }
        let mut sums = [[simd.splat(0.0); P]; R];
        for pair in 0..LANES {
            // Line by line: a step's asked for at once, as a longer chunk does, took 9 % longer here.
            if R <= FEW {
                for p in 0..P {
                    simd.fetch(&ahead[p][pair]);
                }
            }
            let mut w = [simd.load_pairs(&outputs[0][pair].0); P];
            for p in 1..P {
                w[p] = simd.load_pairs(&outputs[p][pair].0);
            }
            for r in 0..R {
                let x = simd.splat_pairs(rows[r].0[pair]);
                for p in 0..P {
                    sums[r][p] = simd.dot(x, w[p], sums[r][p]);
                }
            }
        }
        for p in 0..P {
            let w = simd.load(w[p].power(step * STEP).unwrap_or(&[1.0; PANEL]));
            for r in 0..R {
                totals[r][p] = match SCALES {
                    NONE => simd.add(sums[r][p], totals[r][p]),
                    PANELS => simd.fma(sums[r][p], w, totals[r][p]),
                    _ => {
                        let power = simd.mul(w, simd.splat(x.power(step * STEP, first + r)));
                        simd.fma(sums[r][p], power, totals[r][p])
                    }
                };
            }
        }
    }
    totals
}
