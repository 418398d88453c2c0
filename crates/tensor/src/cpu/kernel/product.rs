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
//! whose sums are exact in any order ([`WPanel::limit`]); rows that are not go through vectors. What is left goes
//! *one element at a time*.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use microscale_formats::ElementFormat;

use super::quantize::ROUND_UP;
use crate::BlockFormat;
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::tiles::{Configured, Lanes, Step, Sums};
use crate::cpu::simd::{LANES, Simd};

/// Rows of a tile.
pub(in crate::cpu) const TILE: usize = 16;
/// Outputs of a panel: one vector.
pub(in crate::cpu) const PANEL: usize = LANES;
/// Elements along k of a [`Step`].
pub(in crate::cpu) const STEP: usize = 2 * LANES;

/// The totals of a tile by `P` panels: f32, before bias and rounding.
pub(in crate::cpu) type Totals<const P: usize> = [[[f32; PANEL]; P]; TILE];

/// Scales, one power of two (or NaN) per block and row (or output).
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Scales<'a> {
    pub(in crate::cpu) block_size: usize,
    pub(in crate::cpu) powers: &'a [[f32; LANES]],
}

/// Up to sixteen rows: `lanes[k / 32 · stride + row].0[k % 32 / 2]`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct XTile<'a> {
    pub(in crate::cpu) lanes: &'a [Lanes],
    /// Rows there is room for: 16, or as many as there are where those are few.
    pub(in crate::cpu) stride: usize,
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Per block and row the Euclidean norm of the elements over the largest power of two that divides them all.
    pub(in crate::cpu) norms: &'a [[f32; TILE]],
    /// `[step][row]`, where the elements are small integers times `unit` and the rows are few; else empty.
    pub(in crate::cpu) bytes: &'a [StepBytes],
    /// The smallest magnitude of the format, 1 where there is none.
    pub(in crate::cpu) unit: f32,
    pub(in crate::cpu) extent: Extent,
}

/// A step of a row in signed bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct StepBytes {
    /// Four elements each.
    pub(in crate::cpu) quads: [u32; QUADS],
    /// What a sum of products with bytes that are [`BYTE_BIAS`](crate::cpu::simd::codes::BYTE_BIAS) too large has to start with.
    pub(in crate::cpu) start: i32,
}

/// Sixteen outputs: `steps[stride · (k / 32 − first)][k % 32 / 2].0[output]`, scales likewise.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WPanel<'a> {
    pub(in crate::cpu) steps: &'a [Step],
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Distance of neighbours along k, in steps and in blocks.
    pub(in crate::cpu) stride: usize,
    /// The step and the block that `steps` and `scales` begin with.
    pub(in crate::cpu) first: [usize; 2],
    /// For every step, or one for all, the [`limit`].
    pub(in crate::cpu) limits: &'a [f32],
}

impl<'a> XTile<'a> {
    /// The pairs of a row in a step.
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, step: usize, row: usize) -> &'a [u32; LANES] {
        &self.lanes[step * self.stride + row].0
    }

    /// The pairs of the first `R` rows in a step.
    #[inline(always)]
    pub(in crate::cpu) fn rows<const R: usize>(&self, step: usize) -> [&'a [u32; LANES]; R] {
        let mut rows = [self.row(step, 0); R];
        for r in 1..R {
            rows[r] = self.row(step, r);
        }
        rows
    }

    /// The scale of a row in the block that holds element `k`.
    #[inline(always)]
    pub(in crate::cpu) fn power(&self, k: usize, row: usize) -> f32 {
        match self.scales {
            Some(s) => s.powers[k / s.block_size][row],
            None => 1.0,
        }
    }

    /// The scales of all rows in the block that holds element `k`.
    #[inline(always)]
    fn powers(&self, k: usize) -> &'a [f32; TILE] {
        match self.scales {
            Some(s) => &s.powers[k / s.block_size],
            None => &[1.0; TILE],
        }
    }

    /// A step of all sixteen rows.
    #[inline(always)]
    fn step(&self, step: usize) -> &'a Step {
        self.lanes[step * TILE..].first_chunk().expect("a tile has room for sixteen rows")
    }
}

impl<'a> WPanel<'a> {
    #[inline(always)]
    fn step(&self, step: usize) -> &'a Step {
        &self.steps[self.stride * (step - self.first[0])]
    }

    /// The largest norm of the other side whose products with this step are exact in any order.
    #[inline(always)]
    fn limit(&self, step: usize) -> f32 {
        self.limits.get(step).or(self.limits.last()).copied().unwrap_or(0.0)
    }

    #[inline(always)]
    fn power(&self, k: usize) -> Option<&'a [f32; PANEL]> {
        self.scales.map(|s| &s.powers[self.stride * (k / s.block_size - self.first[1])])
    }
}

/// How large and how small the numbers of an operand are, zeros, infinities and NaN left out of the smallest.
#[derive(Clone, Copy, Debug)]
pub(in crate::cpu) struct Extent {
    /// All elements, before scaling, are multiples of it.
    unit: f64,
    /// The same after scaling.
    scaled_unit: f64,
    /// Largest magnitude after scaling.
    largest: f64,
    /// Whether the operand is plain bf16.
    plain: bool,
}

impl Extent {
    /// Of elements of a format with these scales.
    pub(in crate::cpu) fn of_scales<'a>(
        element: ElementFormat,
        scales: impl IntoIterator<Item = &'a [f32; LANES]>,
    ) -> Extent {
        let (low, high) = scales.into_iter().flatten().fold((1f32, 1f32), |(low, high), &s| (low.min(s), high.max(s)));
        let unit = f64::from(unit(element));
        let largest = f64::from(element.max()) * f64::from(high);
        Extent { unit, scaled_unit: unit * f64::from(low), largest, plain: false }
    }

    /// Of nothing in this format.
    pub(in crate::cpu) fn none(format: Option<BlockFormat>) -> Extent {
        format.map_or_else(|| Extent::of_values([]), |f| Extent::of_scales(f.element, []))
    }

    /// Of bf16 values.
    #[inline(always)]
    pub(in crate::cpu) fn of_values(values: impl IntoIterator<Item = f32>) -> Extent {
        // As integers, magnitudes are ordered; zero less one is the largest of all.
        let (mut low, mut high) = (u32::MAX, 0);
        for x in values {
            let magnitude = x.to_bits() & 0x7FFF_FFFF;
            low = low.min(magnitude.wrapping_sub(1));
            high = high.max(magnitude);
        }
        // A bf16 has seven bits after its first.
        let smallest = f64::from(f32::from_bits(low.wrapping_add(1)));
        let unit = if low >= f32::INFINITY.to_bits() { f64::INFINITY } else { smallest / 128.0 };
        Extent { unit, scaled_unit: unit, largest: f64::from(f32::from_bits(high)), plain: true }
    }

    /// The extent of both.
    pub(in crate::cpu) fn join(self, other: Extent) -> Extent {
        let nan = self.largest.is_nan() || other.largest.is_nan();
        Extent {
            unit: self.unit.min(other.unit),
            scaled_unit: self.scaled_unit.min(other.scaled_unit),
            largest: if nan { f64::NAN } else { self.largest.max(other.largest) },
            plain: self.plain,
        }
    }

    /// Whether no sum of products of the two, scaled or not, can be subnormal or overflow on the way.
    ///
    /// Every such sum is a multiple of the product of the units, so it is zero or at least that large. Infinities and
    /// NaN are no hazard to fear, but one nobody needs to be fast for.
    fn is_safe_with(self, other: Extent) -> bool {
        const SUMMANDS: f64 = (1u64 << 32) as f64;
        let normal = f64::from(f32::MIN_POSITIVE);
        // A plain operand's smallest magnitude, 128 units, must itself be normal: machines differ in what they take
        // subnormals for.
        self.unit.min(other.unit) * 128.0 >= normal
            && self.unit * other.unit >= normal
            && self.scaled_unit * other.scaled_unit >= normal
            && self.largest * other.largest * SUMMANDS <= f64::from(f32::MAX)
            && self.largest.max(1.0) * other.largest.max(1.0) <= f64::from(f32::MAX)
    }
}

/// The smallest and the largest magnitude of bf16 values in pairs, lane by lane.
pub(in crate::cpu) struct Magnitudes<S: Simd> {
    /// Less one, so that zero is the largest of all.
    low: S::Pairs,
    high: S::Pairs,
}

impl<S: Simd> Magnitudes<S> {
    #[inline(always)]
    pub(in crate::cpu) fn none(simd: S) -> Self {
        Magnitudes { low: simd.splat_pairs(u32::MAX), high: simd.splat_pairs(0) }
    }

    #[inline(always)]
    pub(in crate::cpu) fn add(&mut self, simd: S, pairs: S::Pairs) {
        let odd = simd.and(pairs, simd.splat_pairs(0x7FFF_0000));
        let even = simd.shift_left(simd.and(pairs, simd.splat_pairs(0x7FFF)), 16);
        for half in [even, odd] {
            self.low = simd.min_bits(self.low, simd.sub_bits(half, simd.splat_pairs(1)));
            self.high = simd.max_bits(self.high, half);
        }
    }

    #[inline(always)]
    pub(in crate::cpu) fn extent(&self, simd: S) -> Extent {
        let (mut low, mut high) = ([0; LANES], [0; LANES]);
        simd.store_pairs(self.low, &mut low);
        simd.store_pairs(self.high, &mut high);
        let smallest = low.into_iter().fold(u32::MAX, u32::min).wrapping_add(1);
        let largest = high.into_iter().fold(0, u32::max);
        Extent::of_values([smallest, largest].map(f32::from_bits))
    }
}

/// The smallest magnitude of a format, of which all others are multiples.
pub(in crate::cpu) fn unit(element: ElementFormat) -> f32 {
    // 2^(1 − bias − mantissa bits)
    f32::from_bits(((128 - element.bias() - element.mantissa_bits() as i32) as u32) << 23)
}

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
        let way = if x.is_safe_with(w) { Way::Vectors } else { Way::Elements { flush: x.plain && w.plain } };
        Order { chunk, way }
    }

    pub(in crate::cpu) fn is_fast(self) -> bool {
        self.way == Way::Vectors
    }
}

/// Adds the products of elements `span` of these rows of `x` and of the panels `w` to the totals. `span` begins with
/// a chunk, and ends with a pair if that is to be fast.
#[inline(always)]
pub(in crate::cpu) fn multiply<S: Simd, const P: usize>(
    simd: S,
    x: &XTile<'_>,
    w: &[WPanel<'_>; P],
    order: Order,
    (span, rows): (Range<usize>, Range<usize>),
    totals: &mut Totals<P>,
) {
    for start in (span.start..span.end).step_by(order.chunk) {
        let chunk = Chunk { x, w, range: start..(start + order.chunk).min(span.end) };
        if order.way != Way::Vectors || !start.is_multiple_of(2) || !chunk.range.end.is_multiple_of(2) {
            for row in rows.start..rows.end {
                chunk.add_elements(row, order.way == Way::Elements { flush: true }, &mut totals[row]);
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
        let mut sums = self.sums(simd, rows);
        // Totals are read before any is written, so that a repeated row is not added twice.
        for p in 0..P {
            let w = self.w[p].power(self.range.start);
            let w = simd.load(w.unwrap_or(&[1.0; PANEL]));
            for r in 0..R {
                let power = simd.mul(w, simd.splat(self.x.power(self.range.start, rows[r])));
                sums[r][p] = simd.fma(sums[r][p], power, simd.load(&totals[rows[r]][p]));
            }
        }
        for r in 0..R {
            for p in 0..P {
                simd.store(sums[r][p], &mut totals[rows[r]][p]);
            }
        }
    }

    /// The sums of the chunk, unscaled.
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, simd: S, rows: &[usize; R]) -> [[S::F32; P]; R] {
        let mut sums = [[simd.splat(0.0); P]; R];
        let (start, end) = (self.range.start / 2, self.range.end / 2);
        let mut x = [&[0; LANES]; R];
        let mut w = [self.w[0].step(start / LANES); P];
        for step in start / LANES..end.div_ceil(LANES) {
            for r in 0..R {
                x[r] = self.x.row(step, rows[r]);
            }
            for p in 0..P {
                w[p] = self.w[p].step(step);
            }
            let pairs = start.max(step * LANES) - step * LANES..end.min((step + 1) * LANES) - step * LANES;
            if pairs.len() == LANES {
                for pair in 0..LANES {
                    add_pair(simd, &x, &w, pair, &mut sums);
                }
            } else {
                for pair in pairs {
                    add_pair(simd, &x, &w, pair, &mut sums);
                }
            }
        }
        sums
    }

    /// One row, one element after another.
    #[inline(always)]
    fn add_elements(&self, row: usize, flush: bool, totals: &mut [[f32; PANEL]; P]) {
        let x_power = f64::from(self.x.power(self.range.start, row));
        for (w, total) in self.w.iter().zip(totals) {
            let mut sums = [0f32; PANEL];
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
            let powers = w.power(self.range.start).unwrap_or(&[1.0; PANEL]);
            for ((total, sum), &power) in total.iter_mut().zip(sums).zip(powers) {
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

/// The [`WPanel::limit`] of elements with this norm, in units of the smallest of their format.
///
/// Sums of products are whole multiples of the two sides' powers of two, and integers are exact in f32 up to 2^24. By the
/// inequality of Cauchy and Schwarz no partial sum of products is larger than the product of the norms.
pub(in crate::cpu) fn limit(norm: f32) -> f32 {
    (1 << 24) as f32 / (norm * ROUND_UP)
}

/// [`multiply`] of whole tiles by two panels over some steps, through tiles where that is exact. Chunks are of 32 and the
/// order is the fast one.
#[inline(always)]
pub(in crate::cpu) fn multiply_tiles<S: Simd, const T: usize>(
    (simd, tiles): (S, &Configured),
    x: [&XTile<'_>; T],
    w: &[WPanel<'_>; 2],
    steps: Range<usize>,
    totals: &mut [Totals<2>; T],
) {
    let mut sums = [[Sums::ZERO; 2]; T];
    for step in steps {
        let k = step * STEP;
        let w_steps = [w[0].step(step), w[1].step(step)];
        let mut x_steps = [x[0].step(step); T];
        for t in 1..T {
            x_steps[t] = x[t].step(step);
        }
        tiles.multiply(x_steps, w_steps, &mut sums);
        let limit = w[0].limit(step).min(w[1].limit(step));
        let mut inexact: u32 = 0;
        for t in 0..T {
            let block = x[t].scales.map_or(0, |s| k / s.block_size);
            inexact |= u32::from(simd.above(&x[t].norms[block], limit)) << (t * TILE);
        }
        if inexact != 0 {
            add_in_order(simd, &x_steps, &w_steps, inexact, &mut sums);
        }
        let w_powers = [w[0].power(k).unwrap_or(&[1.0; PANEL]), w[1].power(k).unwrap_or(&[1.0; PANEL])];
        let w_powers = [simd.load(w_powers[0]), simd.load(w_powers[1])];
        for t in 0..T {
            let (sums, totals) = (&sums[t], &mut totals[t]);
            let x_powers = x[t].powers(k);
            for row in 0..TILE {
                let x_power = simd.splat(x_powers[row]);
                for p in 0..2 {
                    let total = &mut totals[row][p];
                    let power = simd.mul(w_powers[p], x_power);
                    simd.store(simd.fma(simd.load(&sums[p].0[row]), power, simd.load(total)), total);
                }
            }
        }
    }
}

/// Replaces the sums of some rows, a bit each, by those in the canonical order.
#[inline(always)]
fn add_in_order<S: Simd, const T: usize>(
    simd: S,
    x: &[&Step; T],
    w: &[&Step; 2],
    mut inexact: u32,
    sums: &mut [[Sums; 2]; T],
) {
    while inexact != 0 {
        if inexact.count_ones() > 2 {
            add_some_in_order::<S, T, 4>(simd, x, w, &mut inexact, sums);
        } else {
            add_some_in_order::<S, T, 2>(simd, x, w, &mut inexact, sums);
        }
    }
}

/// `R` of the rows, the first again where there are fewer.
#[inline(always)]
fn add_some_in_order<S: Simd, const T: usize, const R: usize>(
    simd: S,
    x: &[&Step; T],
    w: &[&Step; 2],
    inexact: &mut u32,
    sums: &mut [[Sums; 2]; T],
) {
    let mut rows = [inexact.trailing_zeros() as usize; R];
    for row in &mut rows {
        if *inexact != 0 {
            *row = inexact.trailing_zeros() as usize;
            *inexact &= *inexact - 1;
        }
    }
    let mut pairs = [&x[0][0].0; R];
    for r in 0..R {
        pairs[r] = &x[rows[r] / TILE][rows[r] % TILE].0;
    }
    let mut new = [[simd.splat(0.0); 2]; R];
    for pair in 0..LANES {
        add_pair(simd, &pairs, w, pair, &mut new);
    }
    for r in 0..R {
        for p in 0..2 {
            simd.store(new[r][p], &mut sums[rows[r] / TILE][p].0[rows[r] % TILE]);
        }
    }
}
