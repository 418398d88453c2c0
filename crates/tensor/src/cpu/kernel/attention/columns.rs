//! Attention of small heads that is not quantized, a query a lane.
//!
//! A panel of values would be empty but for a few features, and softmax's rows would be laid out as an operand for a product of a
//! few instructions. With a tile's queries side by side in a vector no lane is empty, nothing is summed across lanes, and weights
//! go from their rounding into the product in registers. Keys and values are broadcast from memory one by one.
//!
//! The sums are those of [`product`](super::super::product), element by element: they hold for all numbers.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use half::bf16;

use super::super::cache::Head;
use super::super::product::{HALF, halves};
use super::super::sides::{PANEL, STEP, TILE};
use super::super::softmax::from_lane;
use super::Task;
use super::queries::Queries;
use crate::cpu::simd::{ExponentialTable, LANES, LEAST_EXPONENT, OverLargest, Simd};
use crate::reference::PLAIN_CHUNK;
use crate::spare::capacity;

/// 2^-123. Times a value that is not small a normal number.
const TINY: f32 = f32::from_bits((127 - 123) << 23);

/// Pairs of tokens of which it is asked at once whether any weight is tiny.
const GROUP: usize = 8;

/// The keys and values of a head, and the scores of a tile.
#[derive(Default)]
pub(super) struct Columns {
    /// `[panel of keys][feature][key]`.
    keys: Vec<[f32; PANEL]>,
    /// `[token][feature]`, and after the last what is not looked at.
    values: Vec<f32>,
    /// `[token][query]`: scores, then their exponentials.
    scores: Vec<Column>,
}

/// A number for every query.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Column([f32; TILE]);

impl Columns {
    pub(super) fn capacity(&self) -> usize {
        capacity(&self.keys) + capacity(&self.values) + capacity(&self.scores)
    }

    /// Takes a head's keys and values apart, subnormals as zero.
    #[inline(always)]
    pub(super) fn lay<S: Simd>(&mut self, simd: S, head: &Head, tokens: usize, dim: usize) {
        let panels = tokens.div_ceil(PANEL);
        // What is there is written over, so memory need not become zero first.
        self.keys.resize((panels * dim).max(self.keys.len()), [0.0; PANEL]);
        self.values.resize((panels * PANEL * dim + LANES).max(self.values.len()), 0.0);
        self.scores.resize((panels * PANEL).max(self.scores.len()), Column([0.0; TILE]));
        for (index, to) in self.keys.chunks_exact_mut(dim).take(panels).enumerate() {
            let pairs = head.keys.panel(index).step(0);
            for (pair, to) in pairs.iter().zip(to.as_chunks_mut::<2>().0) {
                let [even, odd] = halves::<S, true>(simd, simd.load_pairs(&pair.0));
                simd.store(even, &mut to[0]);
                simd.store(odd, &mut to[1]);
            }
        }
        let panel = head.values.panel(0);
        for pair in 0..tokens.div_ceil(2) {
            let tokens = &panel.step(2 * pair / STEP)[2 * pair % STEP / 2];
            let both = halves::<S, true>(simd, simd.load_pairs(&tokens.0));
            // What is beyond the features is written over by the next token's.
            for (token, values) in both.into_iter().enumerate() {
                if let Some(to) = self.values[(2 * pair + token) * dim..].first_chunk_mut() {
                    simd.store(values, to);
                }
            }
        }
    }

    /// Writes the results of a tile of a task's queries, into rows that are so far apart, given the reciprocal of the root of their `D`
    /// features.
    #[inline(always)]
    pub(super) fn tile<S: Simd, const D: usize>(
        &mut self,
        simd: S,
        (task, queries): (&Task<'_>, &Queries),
        root: f32,
        (out, stride): (&mut [bf16], usize),
    ) {
        const { assert!(D.is_multiple_of(2) && D <= LANES) };
        let tokens = queries.last() + 1;
        let reach = self.scores::<S, D>(simd, (task, queries), root);
        let mut sums = [0.0; TILE];
        simd.store(self.exponentials(simd, tokens, reach.largest), &mut sums);
        let weights = Weights::new(simd, &sums);
        let results = if weights.are_normal(simd, &reach) {
            self.mix::<S, D, false>(simd, tokens, &weights)
        } else {
            self.mix::<S, D, true>(simd, tokens, &weights)
        };
        let mut columns = [[0; TILE]; D];
        for d in 0..D {
            simd.store_pairs(simd.bits(simd.nearest(results[d])), &mut columns[d]);
        }
        for (row, to) in out.chunks_mut(stride).take(queries.rows).enumerate() {
            for d in 0..D {
                to[d] = bf16::from_bits((columns[d][row] >> 16) as u16);
            }
        }
    }

    /// The scores of every token up to the last one seen, and of a few more; what a query does not see is −∞. Answers with how far
    /// those of every query reach.
    #[inline(always)]
    fn scores<S: Simd, const D: usize>(
        &mut self,
        simd: S,
        (task, queries): (&Task<'_>, &Queries),
        root: f32,
    ) -> Reach<S> {
        let mut columns = [[0; TILE]; D];
        for row in 0..queries.rows {
            for (pair, values) in task.query(queries, row).as_chunks::<2>().0.iter().take(D / 2).enumerate() {
                let [even, odd] = values.map(|x| u32::from(x.to_bits()));
                columns[pair][row] = even | odd << 16;
            }
        }
        let mut q = [simd.splat(0.0); D];
        for pair in 0..D / 2 {
            [q[2 * pair], q[2 * pair + 1]] = halves::<S, true>(simd, simd.load_pairs(&columns[pair]));
        }
        let root = simd.splat(root);
        let mut reach = Reach { largest: simd.splat(f32::NEG_INFINITY), bits: simd.splat_pairs(0) };
        let first_position = queries.positions[0];
        let tokens = queries.last() + 1;
        let keys = self.keys.as_chunks::<D>().0;
        for ((panel, keys), to) in
            keys[..tokens.div_ceil(PANEL)].iter().enumerate().zip(self.scores.as_chunks_mut::<PANEL>().0)
        {
            for half in 0..(tokens - panel * PANEL).div_ceil(HALF).min(PANEL / HALF) {
                let mut sums = [simd.splat(0.0); HALF];
                for pair in 0..D / 2 {
                    for d in [2 * pair + 1, 2 * pair] {
                        for key in 0..HALF {
                            sums[key] = simd.fma(q[d], simd.splat(keys[d][half * HALF + key]), sums[key]);
                        }
                    }
                }
                for pair in sums.as_chunks_mut::<2>().0 {
                    let products = simd.both_rounded(*pair);
                    *pair = simd.both_rounded([simd.mul(products[0], root), simd.mul(products[1], root)]);
                    for score in pair {
                        reach.bits = simd.max_bits(simd.bits(*score), reach.bits);
                    }
                }
                let first = panel * PANEL + half * HALF;
                if first + HALF > first_position + 1 {
                    for key in 0..HALF {
                        sums[key] = from_lane(simd, sums[key], queries.before(first + key));
                    }
                }
                for key in 0..HALF {
                    reach.largest = simd.max(sums[key], reach.largest);
                    simd.store(sums[key], &mut to[half * HALF + key].0);
                }
            }
        }
        reach
    }

    /// The exponentials of all tokens' scores over the largest, in place, and their sums, in softmax's order.
    #[inline(always)]
    fn exponentials<S: Simd>(&mut self, simd: S, tokens: usize, largest: S::F32) -> S::F32 {
        let (mut lanes, mut found) = ([0.0; LANES], [Column([0.0; TILE]); LANES]);
        simd.store(largest, &mut lanes);
        let over = if simd.gathers() { Some(ExponentialTable::get().over(&lanes)) } else { None };
        let mut sums = [simd.splat(0.0); LANES];
        let groups = &mut self.scores.as_chunks_mut::<LANES>().0[..tokens.div_ceil(LANES)];
        for (group, scores) in groups.iter_mut().enumerate() {
            let (some, rest) = scores.split_at_mut(LANES.min(tokens - group * LANES));
            let found = &mut found[..some.len()];
            if let Some(over) = &over
                && looked_up(simd, over, some, found)
            {
                some.copy_from_slice(found);
            } else {
                for scores in &mut *some {
                    let below = simd.sub(simd.load(&scores.0), largest);
                    // NaN remain.
                    simd.store(simd.max(simd.splat(LEAST_EXPONENT), below), &mut scores.0);
                }
                for scores in some {
                    simd.exponentials(&mut scores.0);
                }
            }
            rest.fill(Column([0.0; TILE]));
            for lane in 0..LANES {
                sums[lane] = simd.add(sums[lane], simd.load(&scores[lane].0));
            }
        }
        for half in [8, 4, 2, 1] {
            for lane in 0..half {
                sums[lane] = simd.add(sums[lane], sums[lane + half]);
            }
        }
        sums[0]
    }

    /// The products of the weights and the values; `CAREFUL` if weights or results may be subnormal on the way.
    #[inline(always)]
    fn mix<S: Simd, const D: usize, const CAREFUL: bool>(
        &self,
        simd: S,
        tokens: usize,
        weights: &Weights<S>,
    ) -> [S::F32; D] {
        let (scores, values) = (self.scores.as_chunks::<2>().0, self.values.as_chunks::<D>().0.as_chunks::<2>().0);
        let pairs = tokens.div_ceil(2);
        let mut totals = [simd.splat(0.0); D];
        let chunks = scores[..pairs].chunks(PLAIN_CHUNK / 2).zip(values[..pairs].chunks(PLAIN_CHUNK / 2));
        for (scores, values) in chunks {
            let mut sums = [simd.splat(0.0); D];
            let mut near_zero = NearZero::default();
            let some = if CAREFUL { GROUP } else { PLAIN_CHUNK / 2 };
            for (scores, values) in scores.chunks(some).zip(values.chunks(some)) {
                let careful = CAREFUL && near_zero.may_come(simd, weights, scores);
                for (exponentials, values) in scores.iter().zip(values) {
                    let [even, odd] = weights.of::<CAREFUL>(simd, exponentials);
                    if careful && near_zero.with(simd, [even, odd]) {
                        for d in 0..D {
                            let sum = simd.fma_near_zero(odd, simd.splat(values[1][d]), sums[d]);
                            sums[d] = simd.fma_near_zero(even, simd.splat(values[0][d]), sum);
                        }
                        continue;
                    }
                    for d in 0..D {
                        let sum = simd.fma(odd, simd.splat(values[1][d]), sums[d]);
                        sums[d] = simd.fma(even, simd.splat(values[0][d]), sum);
                    }
                }
            }
            for d in 0..D {
                totals[d] = simd.add(sums[d], totals[d]);
            }
        }
        totals
    }
}

/// The exponentials of scores over the largest; whether they could be looked up.
#[inline(always)]
fn looked_up<S: Simd>(simd: S, over: &OverLargest, scores: &[Column], to: &mut [Column]) -> bool {
    let mut largest = simd.splat_pairs(0);
    for (scores, to) in scores.iter().zip(to) {
        let exponentials = simd.exponentials_over(over, &scores.0);
        simd.store(exponentials, &mut to.0);
        largest = simd.max_bits(simd.bits(exponentials), largest);
    }
    // As bits, infinity and NaN are larger than any number from 0 to 1.
    !simd.exceeds(largest, 1f32.to_bits())
}

/// How far the scores of each query reach.
struct Reach<S: Simd> {
    /// NaN left out.
    largest: S::F32,
    /// The largest as bits: that is the smallest negative one, if there are such.
    bits: S::Pairs,
}

/// What makes weights of a tile's exponentials.
struct Weights<S: Simd> {
    reciprocals: S::F32,
    /// Exponentials less than these have weights of zero.
    least: S::F32,
}

impl<S: Simd> Weights<S> {
    #[inline(always)]
    fn new(simd: S, sums: &[f32; TILE]) -> Self {
        let (mut reciprocals, mut least) = ([0.0; TILE], [0.0; TILE]);
        for r in 0..TILE {
            reciprocals[r] = 1.0 / sums[r];
            // From 1 − 2^-8 times the smallest normal number on what is rounded becomes that.
            least[r] = 0.99 * sums[r] * f32::MIN_POSITIVE;
        }
        Weights { reciprocals: simd.load(&reciprocals), least: simd.load(&least) }
    }

    /// Whether all of scores that reach so far, but those of what is not seen, are more than [`TINY`].
    #[inline(always)]
    fn are_normal(&self, simd: S, reach: &Reach<S>) -> bool {
        let mut smallest = [0; TILE];
        simd.store_pairs(reach.bits, &mut smallest);
        let smallest = smallest.map(
            #[inline(always)]
            |bits| f32::from_bits(bits).min(0.0),
        );
        let exponentials = simd.exp_of_negative(simd.sub(simd.load(&smallest), reach.largest));
        let mut weights = [0.0; TILE];
        simd.store(simd.mul_from(self.least, exponentials, self.reciprocals), &mut weights);
        // No NaN is.
        weights.iter().fold(
            true,
            #[inline(always)]
            |all, &weight| all & (weight > TINY),
        )
    }

    /// Those of two tokens; with `CAREFUL` subnormal ones become zero.
    #[inline(always)]
    fn of<const CAREFUL: bool>(&self, simd: S, exponentials: &[Column; 2]) -> [S::F32; 2] {
        let [even, odd] = [simd.load(&exponentials[0].0), simd.load(&exponentials[1].0)];
        if CAREFUL {
            let (by, least) = (self.reciprocals, self.least);
            simd.nearest_normal([simd.mul_from(least, even, by), simd.mul_from(least, odd, by)])
        } else {
            simd.both_rounded([simd.mul(even, self.reciprocals), simd.mul(odd, self.reciprocals)])
        }
    }
}

/// Which queries' sums may be subnormal.
#[derive(Default)]
struct NearZero {
    /// Some weights were tiny, and none more than that.
    tiny: u16,
    /// Some were more.
    more: u16,
}

impl NearZero {
    /// Whether [`with`](Self::with) may say so of any two tokens of some; if not, it need not be told of them.
    #[inline(always)]
    fn may_come<S: Simd>(&mut self, simd: S, weights: &Weights<S>, exponentials: &[[Column; 2]]) -> bool {
        let Weights { least, reciprocals } = *weights;
        let (zero, mut above_least, mut largest) = (simd.bits(least), simd.splat_pairs(u32::MAX), simd.splat_pairs(0));
        for column in exponentials.as_flattened() {
            let bits = simd.bits(simd.load(&column.0));
            // What is below the least wraps, to above all others.
            above_least = simd.min_bits(simd.sub_bits(bits, zero), above_least);
            largest = simd.max_bits(bits, largest);
        }
        let mut lanes = [[0.0; LANES]; 2];
        for (bits, lanes) in [simd.add_bits(above_least, zero), largest].into_iter().zip(&mut lanes) {
            simd.store(simd.mul_from(least, simd.with_bits(bits), reciprocals), lanes);
        }
        // Not yet rounded, so with a margin.
        let tiny = simd.above(&lanes[0], 0.0) & !simd.above(&lanes[0], 2.0 * TINY);
        let may = (tiny & !self.more | self.tiny & simd.above(&lanes[1], 0.0)) != 0;
        if !may {
            self.more |= simd.above(&lanes[1], 2.0 * TINY);
        }
        may
    }

    /// Whether any query's sums may be so before or after two more tokens of these weights are added.
    #[inline(always)]
    fn with<S: Simd>(&mut self, simd: S, weights: [S::F32; 2]) -> bool {
        let (mut some, mut more, mut tiny) = (0, 0, 0);
        for weights in weights {
            let mut lanes = [0.0; LANES];
            simd.store(weights, &mut lanes);
            let own = [simd.above(&lanes, 0.0), simd.above(&lanes, TINY)];
            (some, more, tiny) = (some | own[0], more | own[1], tiny | own[0] & !own[1]);
        }
        let tiny = tiny & !self.more;
        let may = (tiny | self.tiny & some) != 0;
        self.tiny = (self.tiny | tiny) & !more;
        self.more |= more;
        may
    }
}
