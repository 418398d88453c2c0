//! Softmax of the rows of a tile, one step of it for all rows before the next: what a row's step waits for is then long
//! there, and rows of a few vectors do not spend their time on getting started.

use std::array::from_fn;

use super::operand::Rows;
use super::quantize::Quantizer;
use super::sides::{STEP, TILE};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{LANES, Simd};

/// The exponentials of the first `lengths[r]` elements of each row over the row's largest, in place; rows are `stride` apart.
/// What follows up to a multiple of 16, for which a row has room, becomes zero. Answers with the reciprocals of the sums:
/// exponentials times these are softmax.
#[inline(always)]
pub(in crate::cpu) fn softmax<S: Simd>(simd: S, rows: &mut [f32], stride: usize, lengths: &[usize]) -> [f32; TILE] {
    let mut lanes_of = [[f32::NEG_INFINITY; LANES]; TILE];
    let row = |r: usize| r * stride..r * stride + lengths[r].next_multiple_of(LANES);
    for (r, &n) in lengths.iter().enumerate() {
        let row = &mut rows[row(r)];
        if let Some(last) = row.last_chunk_mut::<LANES>() {
            // As a whole: single lanes written would have to reach the cache before they are read as one vector.
            simd.store(up_to(simd, simd.load(last), (n - 1) % LANES + 1), last);
        }
        // NaN are left out.
        let mut largest = simd.splat(f32::NEG_INFINITY);
        for vector in row.as_chunks().0 {
            largest = simd.max(simd.load(vector), largest);
        }
        simd.store(largest, &mut lanes_of[r]);
    }
    let mut maxima = [0.0; TILE];
    let largest = simd.floats_across_rows(
        &lanes_of,
        #[inline(always)]
        |a, b| simd.max(a, b),
    );
    simd.store(largest, &mut maxima);
    // Rows that are not there have weights of zero.
    lanes_of = [[f32::INFINITY; LANES]; TILE];
    for r in 0..lengths.len() {
        let (max, mut lanes) = (simd.splat(maxima[r]), simd.splat(0.0));
        for vector in rows[row(r)].as_chunks_mut().0 {
            let exponentials = simd.exp_of_negative(simd.sub(simd.load(vector), max));
            lanes = simd.add(lanes, exponentials);
            simd.store(exponentials, vector);
        }
        simd.store(lanes, &mut lanes_of[r]);
    }
    let mut sums = [0.0; TILE];
    let all = simd.floats_across_rows(
        &lanes_of,
        #[inline(always)]
        |a, b| simd.add(a, b),
    );
    simd.store(all, &mut sums);
    sums.map(
        #[inline(always)]
        |sum| 1.0 / sum,
    )
}

/// Lanes of one kind, then as many of another: a window of sixteen holds some of either.
type Ends = [u32; 2 * LANES];

/// The first of the lanes, then numbers whose exponential is the zero that adds nothing.
#[inline(always)]
fn up_to<S: Simd>(simd: S, x: S::F32, lanes: usize) -> S::F32 {
    static KEPT: Ends = ends(u32::MAX, 0);
    static OTHERS: Ends = ends(0, f32::NEG_INFINITY.to_bits());
    kept(simd, x, [&KEPT, &OTHERS], lanes)
}

/// Such numbers in the first of the lanes, then the others.
#[inline(always)]
pub(super) fn from_lane<S: Simd>(simd: S, x: S::F32, lane: usize) -> S::F32 {
    static KEPT: Ends = ends(0, u32::MAX);
    static OTHERS: Ends = ends(f32::NEG_INFINITY.to_bits(), 0);
    kept(simd, x, [&KEPT, &OTHERS], lane)
}

/// What is kept of the lanes, and what stands in place of others, the first kind having so many of them.
#[inline(always)]
fn kept<S: Simd>(simd: S, x: S::F32, ends: [&'static Ends; 2], lanes: usize) -> S::F32 {
    let window = |of: &'static Ends| of[LANES - lanes..].first_chunk().expect("as many as there are lanes");
    let [kept, others] = [simd.load_pairs(window(ends[0])), simd.load_pairs(window(ends[1]))];
    simd.with_bits(simd.or(simd.and(simd.bits(x), kept), others))
}

/// Sixteen of each.
const fn ends(first: u32, then: u32) -> Ends {
    let mut ends = [first; 2 * LANES];
    let mut lane = LANES;
    while lane < ends.len() {
        ends[lane] = then;
        lane += 1;
    }
    ends
}

/// What [`softmax`] left behind, multiplied and rounded to bf16, as rows of a tile.
pub(super) struct Weights<'a> {
    /// Rows that are `stride` apart, up to the end of a step.
    pub(super) exponentials: &'a [f32],
    pub(super) stride: usize,
    pub(super) reciprocals: &'a [f32; TILE],
    /// Whether subnormal numbers become zero, as they are to a product of two plain operands.
    pub(super) flush: bool,
}

impl Weights<'_> {
    /// The exponentials of a step.
    #[inline(always)]
    fn step(&self, r: usize, step: usize) -> [&[f32; LANES]; 2] {
        let at = r * self.stride + step * STEP;
        let vectors = self.exponentials[at..at + STEP].as_chunks().0;
        [&vectors[0], &vectors[1]]
    }
}

impl<S: Simd> Rows<S> for Weights<'_> {
    #[inline(always)]
    fn pairs(&self, simd: S, r: usize, step: usize, to: &mut [u32; LANES]) {
        let ([first, second], by) = (self.step(r, step), simd.splat(self.reciprocals[r]));
        let (first, second) = (simd.mul(simd.load(first), by), simd.mul(simd.load(second), by));
        let pairs =
            if self.flush { simd.round_pairs::<true>(first, second) } else { simd.round_pairs::<false>(first, second) };
        simd.store_pairs(pairs, to);
    }

    #[inline(always)]
    fn quantized(&self, simd: S, quantizer: &Quantizer, step: usize, to: &mut [Lanes]) -> Option<S::F32> {
        quantizer.step_of_products(
            simd,
            #[inline(always)]
            |r| self.step(r, step),
            self.reciprocals,
            to,
        )
    }
}

/// The largest of all lanes, NaN left out.
#[inline(always)]
pub(super) fn largest(vectors: impl Iterator<Item = [f32; LANES]>) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for vector in vectors {
        for (lane, x) in lanes.iter_mut().zip(vector) {
            *lane = larger(x, *lane);
        }
    }
    halved(lanes, larger)
}

#[inline(always)]
fn larger(x: f32, than: f32) -> f32 {
    if x > than { x } else { than }
}

/// Sums sixteen lanes: i with i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
pub(super) fn fold<T: Copy + std::ops::Add<Output = T>>(lanes: [T; LANES]) -> T {
    halved(
        lanes,
        #[inline(always)]
        |x, y| x + y,
    )
}

/// One half with the other, until one is left. Written out, since a loop over widths is done lane by lane.
#[inline(always)]
fn halved<T: Copy>(lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let lanes: [T; 8] = from_fn(
        #[inline(always)]
        |i| join(lanes[i], lanes[i + 8]),
    );
    let lanes: [T; 4] = from_fn(
        #[inline(always)]
        |i| join(lanes[i], lanes[i + 4]),
    );
    join(join(lanes[0], lanes[2]), join(lanes[1], lanes[3]))
}
