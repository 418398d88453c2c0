//! Blocks of 32 of up to sixteen rows side by side, to element values: scales are found for all of them at once, and no
//! block waits for what another is about to know.

use microscale_formats::ScaleRule;

use super::words::{MAGNITUDES, SIGNS, WordSteps};
use super::{MAGNITUDE, Quantizer, joined};
use crate::cpu::kernel::sides::{StepBytes, TILE};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{LANES, Simd, Words};

/// Exponent field of the first number that may be too large for what is done side by side: 2^22 times as much is added to it.
const TOO_LARGE: u32 = 230;

impl Quantizer {
    /// Takes a step of up to sixteen rows, pairs of bf16, to the nearest element values, in place, and answers with the
    /// scales; those beyond the last row are 1. Each block's values are those of [`pairs`](Self::pairs), zeros of either
    /// sign in blocks of zeros, times the scale if they are to be `scaled`: what that is beyond bf16 is not defined.
    #[inline(always)]
    pub(in crate::cpu) fn step<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> S::F32 {
        match self.step_side_by_side(simd, rows, scaled) {
            Some(powers) => powers,
            None => self.step_by_blocks(simd, rows, scaled),
        }
    }

    /// One block after another, whatever is in them.
    #[inline(always)]
    fn step_by_blocks<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> S::F32 {
        let mut powers = [1.0; TILE];
        for (row, power) in rows.iter_mut().zip(&mut powers) {
            let (mut values, scale) = self.pairs(simd, simd.load_pairs(&row.0));
            if scaled {
                let scale = simd.splat(scale);
                let [even, odd] = simd.floats(values);
                values = joined(simd, [simd.mul(even, scale), simd.mul(odd, scale)]);
            }
            simd.store_pairs(values, &mut row.0);
            *power = scale;
        }
        simd.load(&powers)
    }

    /// All of them at once; none where a block needs care.
    #[inline(always)]
    pub(super) fn step_side_by_side<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> Option<S::F32> {
        let bytes = self.scales_of(simd, rows)?;
        if scaled {
            let limits = self.limits(simd, bytes);
            for (r, row) in rows.iter_mut().enumerate() {
                let (pairs, limits) = (simd.load_pairs(&row.0), limits.map(|limits| limits[r]));
                let [even, odd] = simd.floats(pairs);
                let even = self.nearest(simd, magnitude(simd, even), limits);
                let odd = self.nearest(simd, magnitude(simd, odd), limits);
                store_signed(simd, [even, odd], pairs, row);
            }
        } else {
            let mut inverses = [0.0; TILE];
            simd.store(inverses_of(simd, bytes), &mut inverses);
            for (r, row) in rows.iter_mut().enumerate() {
                let (pairs, inverse) = (simd.load_pairs(&row.0), simd.splat(inverses[r]));
                let [even, odd] = simd.floats(pairs);
                let even = self.magnitudes(simd, magnitude(simd, simd.mul(even, inverse)));
                let odd = self.magnitudes(simd, magnitude(simd, simd.mul(odd, inverse)));
                store_signed(simd, [even, odd], pairs, row);
            }
        }
        Some(powers_of(simd, bytes))
    }

    /// [`step`](Self::step), `scaled`, of products of which none is negative: `numbers(r)` by `factors[r]`, each rounded to bf16
    /// first. None where a block needs care. Factors beyond the last row are 0.
    #[inline(always)]
    pub(in crate::cpu) fn step_of_products<'a, S: Simd>(
        &self,
        simd: S,
        numbers: impl Fn(usize) -> [&'a [f32; LANES]; 2],
        factors: &[f32; TILE],
        rows: &mut [Lanes],
    ) -> Option<S::F32> {
        let last = rows.len() - 1;
        let largest = simd.across_rows(
            #[inline(always)]
            |r| {
                let [first, second] = numbers(r.min(last));
                simd.max_bits(simd.bits(simd.load(first)), simd.bits(simd.load(second)))
            },
            #[inline(always)]
            |a, b| simd.max_bits(a, b),
        );
        // Rounding keeps the order.
        let largest = simd.nearest(simd.mul(simd.with_bits(largest), simd.load(factors)));
        let bytes = self.regular_scales(simd, simd.bits(largest))?;
        let limits = self.limits(simd, bytes);
        for (r, row) in rows.iter_mut().enumerate() {
            let (factor, [first, second]) = (simd.splat(factors[r]), numbers(r));
            let (first, second) = (simd.mul(simd.load(first), factor), simd.mul(simd.load(second), factor));
            // In a regular block what is subnormal becomes zero.
            let [even, odd] = simd.floats(simd.round_normal_pairs(first, second));
            let limits = limits.map(|limits| limits[r]);
            let values = [self.nearest(simd, even, limits), self.nearest(simd, odd, limits)];
            simd.store_pairs(joined(simd, values), &mut row.0);
        }
        Some(powers_of(simd, bytes))
    }

    /// Takes a step of up to sixteen rows, of a format whose elements are small integers times a unit, to these integers, and
    /// answers with the scales; none where a block needs care. What is beyond the last row is left as it is.
    #[inline(always)]
    pub(in crate::cpu) fn step_in_bytes<S: Words>(
        &self,
        simd: S,
        rows: &[Lanes],
        to: &mut [StepBytes; TILE],
    ) -> Option<S::F32> {
        let scales = self.scales_of(simd, rows)?;
        let powers = powers_of(simd, scales);
        let most = simd.splat_words((self.max / self.unit) as u16);
        let (mut bytes, mut worth) = ([0; TILE], [0.0; TILE]);
        simd.store_pairs(scales, &mut bytes);
        simd.store(simd.mul(powers, simd.splat(self.unit)), &mut worth);
        for (r, row) in rows.iter().enumerate() {
            let pairs = simd.load_pairs(&row.0);
            let lowest = simd.splat_pairs(twice(bytes[r].wrapping_add_signed(self.lowest)));
            let magnitudes = simd.and(pairs, simd.splat_pairs(MAGNITUDES));
            let WordSteps { exponents, steps, .. } = self.word_steps(simd, magnitudes, lowest);
            let units = simd.shift_words_left(steps, simd.sub_words(exponents, lowest));
            let integers = simd.negate_words(simd.min_words(units, most), pairs);
            to[r] = StepBytes::new(simd.bytes_of_words(integers), worth[r]);
        }
        Some(powers)
    }

    /// The bytes of the scales of a step's rows, and 1 of as many more as there are to a tile, if all are
    /// [regular](Self::regular_scales).
    #[inline(always)]
    fn scales_of<S: Simd>(&self, simd: S, rows: &[Lanes]) -> Option<S::Pairs> {
        let largest = if let Ok(rows) = <&[Lanes; TILE]>::try_from(rows) {
            simd.largest_magnitudes(
                #[inline(always)]
                |r| simd.load_pairs(&rows[r].0),
            )
        } else {
            simd.largest_magnitudes(
                #[inline(always)]
                |r| simd.load_pairs(&rows.get(r).unwrap_or(&Lanes::ZERO).0),
            )
        };
        self.regular_scales(simd, largest)
    }

    /// The bytes of the scales of blocks with these largest magnitudes, as bits, if all are regular: [normal](Self::normal_scales),
    /// or zeros, which get the scale 1.
    #[inline(always)]
    pub(super) fn regular_scales<S: Simd>(&self, simd: S, largest: S::Pairs) -> Option<S::Pairs> {
        // All ones where a block is zeros.
        let zeros = simd.sub_bits(simd.min_bits(largest, simd.splat_pairs(1)), simd.splat_pairs(1));
        self.normal_scales(simd, simd.or(largest, simd.and(zeros, simd.splat_pairs((self.emax as u32 + 127) << 23))))
    }

    /// The same if the blocks' largest elements, and what becomes of the others on the way, are normal numbers.
    #[inline(always)]
    pub(super) fn normal_scales<S: Simd>(&self, simd: S, largest: S::Pairs) -> Option<S::Pairs> {
        if self.format.scale_rule == ScaleRule::Mse {
            return None;
        }
        let emax = self.emax as u32;
        // The smallest normal number of the format has to be so far up that what is half of the smallest number is normal.
        let least = (emax + self.least_byte()) << 23;
        if simd.exceeds(simd.sub_bits(largest, simd.splat_pairs(least)), (TOO_LARGE << 23) - 1 - least) {
            return None;
        }
        let up = simd.add_bits(largest, simd.splat_pairs(self.bump));
        Some(simd.sub_bits(simd.shift_right(up, 23), simd.splat_pairs(emax)))
    }

    /// The smallest normal number and the largest, scaled by the scales with these bytes, as bits.
    #[inline(always)]
    fn limits<S: Simd>(&self, simd: S, bytes: S::Pairs) -> [[u32; TILE]; 2] {
        let mut limits = [[0; TILE]; 2];
        let lowest = simd.add_bits(bytes, simd.splat_pairs(self.lowest as u32));
        simd.store_pairs(simd.shift_left(lowest, 23), &mut limits[0]);
        simd.store_pairs(simd.bits(simd.mul(powers_of(simd, bytes), simd.splat(self.max))), &mut limits[1]);
        limits
    }

    /// A scale from which on the halves of the smallest magnitudes are normal bf16.
    fn least_byte(&self) -> u32 {
        (i32::from(self.mantissa) + 3 - self.lowest).max(1) as u32
    }
}

/// The powers of two of regular scales with these bytes.
#[inline(always)]
pub(super) fn powers_of<S: Simd>(simd: S, bytes: S::Pairs) -> S::F32 {
    simd.with_bits(simd.shift_left(bytes, 23))
}

/// Their inverses.
#[inline(always)]
pub(super) fn inverses_of<S: Simd>(simd: S, bytes: S::Pairs) -> S::F32 {
    powers_of(simd, simd.sub_bits(simd.splat_pairs(254), bytes))
}

#[inline(always)]
fn magnitude<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    simd.with_bits(simd.and(simd.bits(x), simd.splat_pairs(MAGNITUDE)))
}

/// Writes magnitudes, the even and the odd ones, with the signs of pairs.
#[inline(always)]
fn store_signed<S: Simd>(simd: S, magnitudes: [S::F32; 2], pairs: S::Pairs, to: &mut Lanes) {
    let signs = simd.and(pairs, simd.splat_pairs(SIGNS));
    simd.store_pairs(simd.or(joined(simd, magnitudes), signs), &mut to.0);
}

/// A word in both halves of a pair.
#[inline(always)]
fn twice(word: u32) -> u32 {
    word & 0xFFFF | word << 16
}
