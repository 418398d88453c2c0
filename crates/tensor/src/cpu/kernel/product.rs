//! The product of a tile of rows and some panels of outputs, in the canonical order.
//!
//! One lane is one output, so that every output adds its products one after another along k, whatever the batch:
//!
//! ```text
//! for each chunk:  S = 0;  for each pair of the chunk, the high element first:  S = fma(x, w, S)
//!                  total += S · 2^(ex + ew)
//! ```
//!
//! There are three ways to one result. *Vectors* of outputs take a pair at a time; they need whole pairs and numbers
//! far from the ends of f32's range ([`Extent`]). *Tiles* add in an order of their own and serve the rows and chunks
//! whose sums are exact in any order ([`limit`](super::extent::limit)); rows that are not go through vectors. What is left goes
//! *one element at a time*, vectors of outputs where the pairs are whole.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

pub(super) mod steps;
mod tiles;

use std::ops::Range;

use super::extent::Extent;
use super::linear::FEW;
use super::sides::{PANEL, STEP, TILE, WPanel, XTile};
use crate::cpu::simd::tiles::Step;
use crate::cpu::simd::{LANES, Simd};
use steps::{ALL, NONE, PANELS, add_steps};
pub(in crate::cpu) use tiles::multiply_tiles;

/// The totals of a tile by `P` panels: f32, before bias and rounding.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(in crate::cpu) struct Totals<const P: usize>(pub(in crate::cpu) [[[f32; PANEL]; P]; TILE]);

impl<const P: usize> Totals<P> {
    pub(in crate::cpu) const ZERO: Totals<P> = Totals([[[0.0; PANEL]; P]; TILE]);
}

impl<const P: usize> Default for Totals<P> {
    fn default() -> Self {
        Totals::ZERO
    }
}

/// Half a tile's rows, whose sums with two panels fit the registers.
pub(super) const HALF: usize = TILE / 2;

/// Few rows are done with a step before the next has come from memory, so they ask for one that comes later.
const AHEAD_STEPS: usize = 2;

/// How a product is summed.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Order {
    /// Elements summed before they are scaled and added to the total.
    pub(in crate::cpu) chunk: usize,
    way: Way,
}

#[derive(Clone, Copy, PartialEq)]
enum Way {
    Vectors,
    /// One element after another; subnormals of two plain operands count as zero.
    Elements {
        flush: bool,
    },
}

impl Order {
    pub(in crate::cpu) fn new(chunk: usize, x: Extent, w: Extent) -> Order {
        let flush = x.plain && w.plain && (x.has_subnormals() || w.has_subnormals());
        let way = if x.is_safe_with(w) { Way::Vectors } else { Way::Elements { flush } };
        Order { chunk, way }
    }

    pub(in crate::cpu) fn is_fast(self) -> bool {
        self.way == Way::Vectors
    }
}

/// Adds the products of elements `span` of these rows of `x` and of the panels `w` to the totals, which before element 0
/// are taken for 0. `span` begins with a chunk, and ends with a pair if that is to be fast.
#[inline(always)]
pub(in crate::cpu) fn multiply<S: Simd, const P: usize>(
    simd: S,
    x: &XTile<'_>,
    w: &[WPanel<'_>; P],
    order: Order,
    span_and_rows: (Range<usize>, Range<usize>),
    totals: &mut Totals<P>,
) {
    simd.vectorize(
        #[inline(always)]
        || multiply_inlined(simd, x, w, order, span_and_rows, totals),
    );
}

#[inline(always)]
fn multiply_inlined<S: Simd, const P: usize>(
    simd: S,
    x: &XTile<'_>,
    w: &[WPanel<'_>; P],
    order: Order,
    (mut span, rows): (Range<usize>, Range<usize>),
    totals: &mut Totals<P>,
) {
    if S::ROWS == HALF && order.chunk == STEP && order.is_fast() {
        let steps = span.start / STEP..span.end / STEP;
        if rows == (0..TILE) {
            let scaled = w.iter().any(|w| w.scales.is_some());
            for first in [0, HALF] {
                let (some, steps) = ((x, first), steps.clone());
                match (x.is_unscaled(), scaled) {
                    (true, false) => add_steps::<S, P, HALF, NONE>(simd, some, w, steps, totals),
                    (true, true) => add_steps::<S, P, HALF, PANELS>(simd, some, w, steps, totals),
                    _ => add_steps::<S, P, HALF, ALL>(simd, some, w, steps, totals),
                }
            }
        } else {
            for row in rows.clone().step_by(4) {
                let (some, steps) = ((x, row), steps.clone());
                match rows.end - row {
                    1 => add_steps::<S, P, 1, ALL>(simd, some, w, steps, totals),
                    2 => add_steps::<S, P, 2, ALL>(simd, some, w, steps, totals),
                    3 => add_steps::<S, P, 3, ALL>(simd, some, w, steps, totals),
                    _ => add_steps::<S, P, 4, ALL>(simd, some, w, steps, totals),
                }
            }
        }
        span.start = steps.end * STEP;
    }
    for start in (span.start..span.end).step_by(order.chunk) {
        let chunk = Chunk { x, w, range: start..(start + order.chunk).min(span.end) };
        let flush = order.way == Way::Elements { flush: true };
        if !start.is_multiple_of(2) || !chunk.range.end.is_multiple_of(2) {
            for row in rows.start..rows.end {
                chunk.add_elements(row, flush, &mut totals.0[row]);
            }
            continue;
        }
        if order.way != Way::Vectors || simd.takes_pairs_apart() && rows.len() > FEW {
            for row in rows.clone().step_by(S::ROWS.clamp(4, HALF)) {
                let left = rows.end - row;
                match (S::ROWS == HALF && left > 4, flush) {
                    (true, true) => chunk.add_apart::<S, HALF, true>(simd, &rows_from(row, rows.end), order, totals),
                    (true, false) => chunk.add_apart::<S, HALF, false>(simd, &rows_from(row, rows.end), order, totals),
                    (false, true) => chunk.add_apart::<S, 4, true>(simd, &rows_from(row, rows.end), order, totals),
                    (false, false) => chunk.add_apart::<S, 4, false>(simd, &rows_from(row, rows.end), order, totals),
                }
            }
            continue;
        }
        let mut row = rows.start;
        while row < rows.end {
            let some = S::ROWS.min((rows.end - row).next_power_of_two());
            // Rows beyond the last are computed again rather than not at all: the loops have fixed lengths.
            match some {
                1 => chunk.add_rows::<S, 1>(simd, &[row], totals),
                2 => chunk.add_rows::<S, 2>(simd, &rows_from(row, rows.end), totals),
                4 => chunk.add_rows::<S, 4>(simd, &rows_from(row, rows.end), totals),
                _ => chunk.add_rows::<S, 8>(simd, &rows_from(row, rows.end), totals),
            }
            row += some;
        }
    }
}

/// `R` rows from `first` on, the last one repeated where there are fewer.
#[inline(always)]
fn rows_from<const R: usize>(first: usize, end: usize) -> [usize; R] {
    let mut rows = [first; R];
    for (r, row) in rows.iter_mut().enumerate() {
        *row = (first + r).min(end - 1);
    }
    rows
}

/// Pairs of a span that complete a step at its beginning, the whole steps, and the pairs of a last one. Loops of their own keep
/// sums in the same registers from one whole step to the next.
#[inline(always)]
pub(super) fn steps_of(pairs: Range<usize>) -> [Range<usize>; 3] {
    let whole = pairs.start.div_ceil(LANES)..pairs.end / LANES;
    let first = pairs.start..pairs.end.min(whole.start * LANES);
    let last = first.end.max(whole.end * LANES)..pairs.end;
    [first, whole, last]
}

/// What totals are before the first chunk.
const NOTHING: [f32; PANEL] = [0.0; PANEL];

/// One chunk along k of both sides.
struct Chunk<'a, const P: usize> {
    x: &'a XTile<'a>,
    w: &'a [WPanel<'a>; P],
    range: Range<usize>,
}

impl<const P: usize> Chunk<'_, P> {
    /// Through vectors, all of these rows (of which some may be the same).
    #[inline(always)]
    fn add_rows<S: Simd, const R: usize>(&self, simd: S, rows: &[usize; R], totals: &mut Totals<P>) {
        let sums = self.sums(simd, rows);
        self.add_sums(simd, rows, sums, totals);
    }

    /// Adds the sums of these rows to their totals, scaled. Where there are scales, numbers are far from the ends of f32's range.
    #[inline(always)]
    fn add_sums<S: Simd, const R: usize>(
        &self,
        simd: S,
        rows: &[usize; R],
        mut sums: [[S::F32; P]; R],
        totals: &mut Totals<P>,
    ) {
        let first = self.range.start == 0;
        // Totals are read before any is written, so that a repeated row is not added twice.
        for p in 0..P {
            let w = self.w[p].power(self.range.start);
            let w = simd.load(w.unwrap_or(&[1.0; PANEL]));
            for r in 0..R {
                let power = simd.mul(w, simd.splat(self.x.power(self.range.start, rows[r])));
                let before = if first { &NOTHING } else { &totals.0[rows[r]][p] };
                sums[r][p] = simd.fma(sums[r][p], power, simd.load(before));
            }
        }
        for r in 0..R {
            for p in 0..P {
                simd.store(sums[r][p], &mut totals.0[rows[r]][p]);
            }
        }
    }

    /// The sums of the chunk, unscaled.
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, simd: S, rows: &[usize; R]) -> [[S::F32; P]; R] {
        let mut sums = [[simd.splat(0.0); P]; R];
        let [first, whole, last] = steps_of(self.range.start / 2..self.range.end / 2);
        self.add_pairs(simd, rows, first, &mut sums);
        for step in whole {
            if R <= FEW {
                self.fetch(simd, step + AHEAD_STEPS);
            }
            let (x, w) = self.step(rows, step);
            for pair in 0..LANES {
                add_pair(simd, &x, &w, pair, &mut sums);
            }
        }
        self.add_pairs(simd, rows, last, &mut sums);
        sums
    }

    /// Adds the products of some pairs of one step.
    #[inline(always)]
    fn add_pairs<S: Simd, const R: usize>(
        &self,
        simd: S,
        rows: &[usize; R],
        pairs: Range<usize>,
        sums: &mut [[S::F32; P]; R],
    ) {
        if pairs.is_empty() {
            return;
        }
        let (x, w) = self.step(rows, pairs.start / LANES);
        for pair in pairs {
            add_pair(simd, &x, &w, pair % LANES, sums);
        }
    }

    /// The pairs of these rows and of all panels in a step.
    #[inline(always)]
    fn step<const R: usize>(&self, rows: &[usize; R], step: usize) -> ([&[u32; LANES]; R], [&Step; P]) {
        let (mut x, mut w) = ([&[0; LANES]; R], [self.w[0].step(step); P]);
        for r in 0..R {
            x[r] = self.x.row(step, rows[r]);
        }
        for p in 1..P {
            w[p] = self.w[p].step(step);
        }
        (x, w)
    }

    /// Asks for the lines of a step, or of the last one.
    #[inline(always)]
    fn fetch<S: Simd>(&self, simd: S, step: usize) {
        let last = self.range.end.div_ceil(STEP).saturating_sub(1);
        for w in self.w {
            for line in w.step(step.min(last)) {
                simd.fetch(line);
            }
        }
    }

    /// The elements of pairs one after another, where all pairs are whole: these rows (of which some may be the same) side by
    /// side.
    #[inline(always)]
    fn add_apart<S: Simd, const R: usize, const FLUSH: bool>(
        &self,
        simd: S,
        rows: &[usize; R],
        order: Order,
        totals: &mut Totals<P>,
    ) {
        let mut sums = [[simd.splat(0.0); P]; R];
        let pairs = self.range.start / 2..self.range.end / 2;
        for step in pairs.start / LANES..pairs.end.div_ceil(LANES) {
            let ((x, w), at) = (self.step(rows, step), step * LANES);
            let some = pairs.start.max(at) - at..pairs.end.min(at + LANES) - at;
            add_step_apart::<S, R, P, FLUSH>(simd, &x, &w, some, &mut sums);
        }
        if order.is_fast() || self.x.is_unscaled() && self.w.iter().all(|w| w.scales.is_none()) {
            return self.add_sums(simd, rows, sums, totals);
        }
        // Totals are read before any is written, so that a repeated row is not added twice.
        let mut before = [[[0.0; PANEL]; P]; R];
        if self.range.start > 0 {
            for r in 0..R {
                before[r] = totals.0[rows[r]];
            }
        }
        for r in 0..R {
            let mut own = [[0.0; PANEL]; P];
            for p in 0..P {
                simd.store(sums[r][p], &mut own[p]);
            }
            totals.0[rows[r]] = before[r];
            self.add_scaled(rows[r], &own, &mut totals.0[rows[r]]);
        }
    }

    /// One row, one element after another.
    #[inline(always)]
    fn add_elements(&self, row: usize, flush: bool, totals: &mut [[f32; PANEL]; P]) {
        let mut sums = [[0f32; PANEL]; P];
        for (w, sums) in self.w.iter().zip(&mut sums) {
            for first in self.range.clone().step_by(2) {
                for k in [first + 1, first] {
                    if k >= self.range.end {
                        continue;
                    }
                    let x = half(self.x.row(k / STEP, row)[k % STEP / 2], k, flush);
                    let pairs = &w.step(k / STEP)[k % STEP / 2].0;
                    for (sum, &pair) in sums.iter_mut().zip(pairs) {
                        *sum = x.mul_add(half(pair, k, flush), *sum);
                    }
                }
            }
        }
        if self.range.start == 0 {
            *totals = [NOTHING; P];
        }
        self.add_scaled(row, &sums, totals);
    }

    /// Adds a row's sums to its totals, scaled.
    #[inline(always)]
    fn add_scaled(&self, row: usize, sums: &[[f32; PANEL]; P], totals: &mut [[f32; PANEL]; P]) {
        let x_power = f64::from(self.x.power(self.range.start, row));
        for ((w, sums), total) in self.w.iter().zip(sums).zip(totals) {
            let powers = w.power(self.range.start).unwrap_or(&[1.0; PANEL]);
            for ((total, &sum), &power) in total.iter_mut().zip(sums).zip(powers) {
                // The product of two powers may leave the range of f32, and only the outermost product may round.
                *total += (f64::from(sum) * (x_power * f64::from(power))) as f32;
            }
        }
    }
}

/// The element `k` of a pair, subnormals as zero if asked for.
#[inline(always)]
fn half(pair: u32, k: usize, flush: bool) -> f32 {
    let x = f32::from_bits(if k % 2 == 1 { pair & 0xFFFF_0000 } else { pair << 16 });
    if flush && x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

/// Both elements of pairs, the even ones first, subnormals as zero if they are to be flushed.
#[inline(always)]
pub(super) fn halves<S: Simd, const FLUSH: bool>(simd: S, pairs: S::Pairs) -> [S::F32; 2] {
    let [even, odd] = simd.floats(pairs);
    if FLUSH { [simd.flushed(even), simd.flushed(odd)] } else { [even, odd] }
}

#[inline(always)]
fn add_pair<S: Simd, const R: usize, const P: usize>(
    simd: S,
    x: &[&[u32; LANES]; R],
    w: &[&Step; P],
    pair: usize,
    sums: &mut [[S::F32; P]; R],
) {
    for r in 0..R {
        let x = simd.splat_pairs(x[r][pair]);
        for p in 0..P {
            sums[r][p] = simd.dot(x, simd.load_pairs(&w[p][pair].0), sums[r][p]);
        }
    }
}

/// Adds the products of some pairs of a step, whose elements are taken apart beforehand.
#[inline(always)]
pub(super) fn add_step_apart<S: Simd, const R: usize, const P: usize, const FLUSH: bool>(
    simd: S,
    x: &[&[u32; LANES]; R],
    w: &[&Step; P],
    pairs: Range<usize>,
    sums: &mut [[S::F32; P]; R],
) {
    // A row's elements one by one are broadcast from memory, which costs nothing beside the product.
    let mut rows = [[[0.0; LANES]; 2]; R];
    for r in 0..R {
        let [even, odd] = halves::<S, FLUSH>(simd, simd.load_pairs(x[r]));
        simd.store(even, &mut rows[r][0]);
        simd.store(odd, &mut rows[r][1]);
    }
    for pair in pairs {
        let mut outputs = [[simd.splat(0.0); 2]; P];
        for p in 0..P {
            outputs[p] = halves::<S, FLUSH>(simd, simd.load_pairs(&w[p][pair].0));
        }
        for r in 0..R {
            let [even, odd] = [simd.splat(rows[r][0][pair]), simd.splat(rows[r][1][pair])];
            for p in 0..P {
                sums[r][p] = simd.fma(even, outputs[p][0], simd.fma(odd, outputs[p][1], sums[r][p]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_falls_into_steps() {
        for start in 0..3 * LANES {
            for end in start..4 * LANES {
                let [first, whole, last] = steps_of(start..end);
                let pairs = first.clone().chain(whole.start * LANES..whole.end * LANES).chain(last.clone());
                assert!(pairs.eq(start..end), "{start}..{end}");
                assert!(first.len() < LANES && last.len() < LANES, "{start}..{end}");
            }
        }
    }
}
