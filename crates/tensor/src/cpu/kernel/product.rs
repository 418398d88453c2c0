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
//! whose sums are exact in any order ([`XTile::mass`]); rows that are not go through vectors. What is left goes
//! *one element at a time*.

use std::ops::Range;

use microscale_formats::ElementFormat;

use crate::BlockFormat;
use crate::cpu::simd::tiles::{Configured, Step, Sums};
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

/// Sixteen rows: `steps[k / 32].0[row][k % 32 / 2]`.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct XTile<'a> {
    pub(in crate::cpu) steps: &'a [Step],
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Per block and row the sum of magnitudes over the largest power of two that divides all of them: no partial
    /// sum of the block is a larger multiple of that power. Empty where nobody asks.
    pub(in crate::cpu) mass: &'a [[f32; TILE]],
    pub(in crate::cpu) extent: Extent,
}

/// Sixteen outputs: `steps[stride · (k / 32 − first)].0[k % 32 / 2][output]`, scales likewise.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WPanel<'a> {
    pub(in crate::cpu) steps: &'a [Step],
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Distance of neighbours along k, in steps and in blocks.
    pub(in crate::cpu) stride: usize,
    /// The step and the block that `steps` and `scales` begin with.
    pub(in crate::cpu) first: [usize; 2],
    /// The largest magnitude over the smallest, of the format.
    pub(in crate::cpu) ratio: f32,
}

impl<'a> WPanel<'a> {
    #[inline(always)]
    fn step(&self, step: usize) -> &'a Step {
        &self.steps[self.stride * (step - self.first[0])]
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
/// a chunk.
#[inline(always)]
pub(in crate::cpu) fn multiply<S: Simd, const P: usize>(
    simd: S,
    x: &XTile<'_>,
    w: &[WPanel<'_>; P],
    order: Order,
    (span, rows): (Range<usize>, Range<usize>),
    totals: &mut Totals<P>,
) {
    for start in span.clone().step_by(order.chunk) {
        let chunk = Chunk { x, w, range: start..(start + order.chunk).min(span.end) };
        if order.way != Way::Vectors || !start.is_multiple_of(2) || !chunk.range.end.is_multiple_of(2) {
            for row in rows.clone() {
                chunk.add_elements(row, order.way == Way::Elements { flush: true }, &mut totals[row]);
            }
            continue;
        }
        let mut row = rows.start;
        while row < rows.end {
            let some = S::ROWS.min((rows.end - row).next_power_of_two());
            // Rows beyond the last are computed again rather than not at all: the loops have fixed lengths.
            match some {
                1 => chunk.add_rows::<S, 1>(simd, &std::array::from_fn(|r| row + r), totals),
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
    std::array::from_fn(|r| (first + r).min(end - 1))
}

/// One chunk along k of both sides.
struct Chunk<'a, const P: usize> {
    x: &'a XTile<'a>,
    w: &'a [WPanel<'a>; P],
    range: Range<usize>,
}

impl<const P: usize> Chunk<'_, P> {
    #[inline(always)]
    fn x_power(&self, row: usize) -> f32 {
        self.x.scales.map_or(1.0, |s| s.powers[self.range.start / s.block_size][row])
    }

    /// Through vectors, all of these rows (of which some may be the same).
    #[inline(always)]
    fn add_rows<S: Simd, const R: usize>(&self, simd: S, rows: &[usize; R], totals: &mut Totals<P>) {
        let sums = self.sums(simd, rows);
        let w: [Option<S::F32>; P] =
            std::array::from_fn(|p| self.w[p].power(self.range.start).map(|power| simd.load(power)));
        // Totals are read before any is written, so that a repeated row is not added twice.
        let new: [[S::F32; P]; R] = std::array::from_fn(|r| {
            let x = simd.splat(self.x_power(rows[r]));
            std::array::from_fn(|p| {
                let power = w[p].map_or(x, |w| simd.mul(w, x));
                simd.fma(sums[r][p], power, simd.load(&totals[rows[r]][p]))
            })
        });
        for (new, &row) in new.iter().zip(rows) {
            for (new, total) in new.iter().zip(&mut totals[row]) {
                simd.store(*new, total);
            }
        }
    }

    /// The sums of the chunk, unscaled.
    #[inline(always)]
    fn sums<S: Simd, const R: usize>(&self, simd: S, rows: &[usize; R]) -> [[S::F32; P]; R] {
        let mut sums = [[simd.splat(0.0); P]; R];
        let (start, end) = (self.range.start / 2, self.range.end / 2);
        for step in start / LANES..end.div_ceil(LANES) {
            let x = &self.x.steps[step].0;
            let x: [&[u32; LANES]; R] = rows.map(|row| &x[row]);
            let w: [&Step; P] = std::array::from_fn(|p| self.w[p].step(step));
            let pairs = start.max(step * LANES) - step * LANES..end.min((step + 1) * LANES) - step * LANES;
            if pairs == (0..LANES) {
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
    #[inline(never)]
    fn add_elements(&self, row: usize, flush: bool, totals: &mut [[f32; PANEL]; P]) {
        let half = |pair: u32, k: usize| f32::from_bits(if k % 2 == 1 { pair & 0xFFFF_0000 } else { pair << 16 });
        let flushed = |x: f32| if flush && x.abs() < f32::MIN_POSITIVE { 0.0 } else { x };
        let x_power = f64::from(self.x_power(row));
        for (w, total) in self.w.iter().zip(totals) {
            let mut sums = [0f32; PANEL];
            for first in self.range.clone().step_by(2) {
                for k in [first + 1, first].into_iter().filter(|&k| k < self.range.end) {
                    let x = flushed(half(self.x.steps[k / STEP].0[row][k % STEP / 2], k));
                    let pairs = &w.step(k / STEP).0[k % STEP / 2];
                    for (sum, &pair) in sums.iter_mut().zip(pairs) {
                        *sum = x.mul_add(flushed(half(pair, k)), *sum);
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

#[inline(always)]
fn add_pair<S: Simd, const R: usize, const P: usize>(
    simd: S,
    x: &[&[u32; LANES]; R],
    w: &[&Step; P],
    pair: usize,
    sums: &mut [[S::F32; P]; R],
) {
    let w: [S::Pairs; P] = std::array::from_fn(|p| simd.load_pairs(&w[p].0[pair]));
    for (sums, x) in sums.iter_mut().zip(x) {
        let x = simd.splat_pairs(x[pair]);
        for (sum, w) in sums.iter_mut().zip(w) {
            *sum = simd.dot(x, w, *sum);
        }
    }
}

/// [`multiply`] of whole tiles by two panels over all of k, through tiles where that is exact. Chunks are of 32, k is a
/// multiple of 32, and `order` is the fast one.
#[inline(always)]
pub(in crate::cpu) fn multiply_tiles<S: Simd, const T: usize>(
    (simd, tiles): (S, &Configured),
    x: [&XTile<'_>; T],
    w: &[WPanel<'_>; 2],
    steps: Range<usize>,
    totals: &mut [Totals<2>; T],
) {
    let mut sums = [[Sums::ZERO; 2]; T];
    // Integers of f32 are exact up to 2^24.
    let most = (1 << 24) as f32 / w[0].ratio.max(w[1].ratio);
    for step in steps {
        let w_steps = [w[0].step(step), w[1].step(step)];
        tiles.multiply(x.map(|x| &x.steps[step]), w_steps, &mut sums);
        let w_powers = [0, 1].map(|p| w[p].power(step * STEP).map_or(simd.splat(1.0), |power| simd.load(power)));
        for t in 0..T {
            let (x, sums, totals) = (x[t], &mut sums[t], &mut totals[t]);
            let size = x.scales.map_or(STEP, |s| s.block_size);
            inexact_rows(simd, x, &w_steps, (step, &x.mass[step * STEP / size], most), sums);
            for (row, total) in totals.iter_mut().enumerate() {
                let x_power = simd.splat(x.scales.map_or(1.0, |s| s.powers[step * STEP / s.block_size][row]));
                for p in 0..2 {
                    let new =
                        simd.fma(simd.load(&sums[p].0[row]), simd.mul(w_powers[p], x_power), simd.load(&total[p]));
                    simd.store(new, &mut total[p]);
                }
            }
        }
    }
}

/// Replaces the sums of the rows that are too massive to be exact in any order.
#[inline(always)]
fn inexact_rows<S: Simd>(
    simd: S,
    x: &XTile<'_>,
    w: &[&Step; 2],
    (step, mass, most): (usize, &[f32; TILE], f32),
    sums: &mut [Sums; 2],
) {
    let mut inexact: u32 = 0;
    for (row, &mass) in mass.iter().enumerate() {
        inexact |= u32::from(mass > most) << row;
    }
    while inexact != 0 {
        let mut rows = [inexact.trailing_zeros() as usize; 4];
        for row in &mut rows {
            if inexact != 0 {
                *row = inexact.trailing_zeros() as usize;
                inexact &= inexact - 1;
            }
        }
        let pairs = rows.map(|row| &x.steps[step].0[row]);
        let mut new = [[simd.splat(0.0); 2]; 4];
        for pair in 0..LANES {
            add_pair(simd, &pairs, w, pair, &mut new);
        }
        for (new, row) in new.iter().zip(rows) {
            simd.store(new[0], &mut sums[0].0[row]);
            simd.store(new[1], &mut sums[1].0[row]);
        }
    }
}
