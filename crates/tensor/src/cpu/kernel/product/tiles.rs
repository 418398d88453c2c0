//! Products through matrix tiles, where sums are exact in any order.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::mem::MaybeUninit;
use std::ops::Range;

use super::Totals;
use crate::cpu::kernel::sides::{TILE, WPanel, XTile};
use crate::cpu::simd::tiles::{Configured, Lanes, Step, Sums};
use crate::cpu::simd::{LANES, Simd};

/// [`multiply`](super::multiply) of a whole tile by some panels over some steps, through tiles where that is exact. Blocks are of 32 on
/// both sides, the rows are dequantized and the order is the fast one. The totals before step 0 are taken for 0. Rows
/// that will be asked for `next` are fetched on the way.
#[inline(always)]
pub(in crate::cpu) fn multiply_tiles<S: Simd, const P: usize>(
    (simd, tiles): (S, &Configured),
    (x, next): (&XTile<'_>, &[Step]),
    w: &[WPanel<'_>; P],
    steps: Range<usize>,
    totals: &mut Totals<P>,
) {
    for p in 0..P {
        let next = next.iter().map(
            #[inline(always)]
            |step| &step[p * TILE / P..][..TILE / P],
        );
        if x.norms.is_empty() {
            multiply_panel::<S, P, false>((simd, tiles), (x, next), (&w[p], p), steps.clone(), totals);
        } else {
            multiply_panel::<S, P, true>((simd, tiles), (x, next), (&w[p], p), steps.clone(), totals);
        }
    }
}

/// Steps whose tiles are multiplied one right after another.
const TOGETHER: usize = 4;

/// By one panel, whose totals stay in registers while the sums of one step after another are added to them. `CHECKED` if
/// some of these may not be exact.
#[inline(always)]
fn multiply_panel<'a, S: Simd, const P: usize, const CHECKED: bool>(
    (simd, tiles): (S, &Configured),
    (x, mut next): (&XTile<'_>, impl Iterator<Item = &'a [Lanes]>),
    (w, p): (&WPanel<'_>, usize),
    steps: Range<usize>,
    totals: &mut Totals<P>,
) {
    let mut own = [simd.splat(0.0); TILE];
    if steps.start > 0 {
        for row in 0..TILE {
            own[row] = simd.load(&totals.0[row][p]);
        }
    }
    let (fours, rest) = x.steps()[steps.clone()].as_chunks::<TOGETHER>();
    let (mut sums, mut one) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    let mut step = steps.start;
    for rows in fours {
        let outputs = std::array::from_fn(
            #[inline(always)]
            |i| w.step(step + i),
        );
        let sums = tiles.multiply(rows, outputs, &mut sums);
        next.by_ref().take(TOGETHER).flatten().for_each(
            #[inline(always)]
            |lanes| simd.fetch(lanes),
        );
        add_sums::<S, TOGETHER, CHECKED>(simd, (x, w), step, (rows, outputs), sums, &mut own);
        step += TOGETHER;
    }
    for rows in rest {
        let (rows, outputs) = (std::array::from_ref(rows), [w.step(step)]);
        let sums = tiles.multiply(rows, outputs, &mut one);
        add_sums::<S, 1, CHECKED>(simd, (x, w), step, (rows, outputs), sums, &mut own);
        step += 1;
    }
    for row in 0..TILE {
        simd.store(own[row], &mut totals.0[row][p]);
    }
}

/// Adds the sums of `N` steps from `step` on, those that are not exact computed anew, to the totals of a panel.
#[inline(always)]
fn add_sums<S: Simd, const N: usize, const CHECKED: bool>(
    simd: S,
    (x, w): (&XTile<'_>, &WPanel<'_>),
    step: usize,
    (rows, outputs): (&[Step; N], [&Step; N]),
    sums: &mut [Sums; N],
    totals: &mut [S::F32; TILE],
) {
    if CHECKED {
        // A bit per step and row.
        let mut inexact = 0u64;
        for i in 0..N {
            inexact |= u64::from(simd.above(&x.norms[step + i], w.limit(step + i))) << (i * TILE);
        }
        while inexact != 0 {
            match inexact.count_ones() {
                1..=2 => add_some_in_order::<S, 2>(simd, (rows, &outputs), &mut inexact, sums),
                3..=4 => add_some_in_order::<S, 4>(simd, (rows, &outputs), &mut inexact, sums),
                _ => add_some_in_order::<S, 8>(simd, (rows, &outputs), &mut inexact, sums),
            }
        }
    }
    for i in 0..N {
        let powers = simd.load(w.block(step + i));
        for row in 0..TILE {
            totals[row] = simd.fma(simd.load(&sums[i].0[row]), powers, totals[row]);
        }
    }
}

/// Replaces the sums of `R` of the rows, sixteen bits a step, by those in the canonical order; of the last again where
/// there are fewer. Each of its additions waits for the one before, so some sums grow side by side.
#[inline(always)]
fn add_some_in_order<S: Simd, const R: usize>(
    simd: S,
    (x, w): (&[Step], &[&Step]),
    inexact: &mut u64,
    sums: &mut [Sums],
) {
    let mut which = [(0, 0); R];
    let mut last = 0;
    for which in &mut which {
        if *inexact != 0 {
            last = inexact.trailing_zeros() as usize;
            *inexact &= *inexact - 1;
        }
        *which = (last / TILE, last % TILE);
    }
    let (mut rows, mut outputs) = ([&x[0][0]; R], [w[0]; R]);
    for r in 0..R {
        let (step, row) = which[r];
        (rows[r], outputs[r]) = (&x[step][row], w[step]);
    }
    let mut new = [simd.splat(0.0); R];
    for pair in 0..LANES {
        for r in 0..R {
            new[r] = simd.dot(simd.splat_pairs(rows[r].0[pair]), simd.load_pairs(&outputs[r][pair].0), new[r]);
        }
    }
    for r in 0..R {
        let (step, row) = which[r];
        simd.store(new[r], &mut sums[step].0[row]);
    }
}
