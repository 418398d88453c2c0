//! Blocks of 32 of up to sixteen rows side by side, to element values: scales are found for all of them at once, and no
//! block waits for what another is about to know.

use microscale_formats::ScaleRule;

use super::words::{MAGNITUDES, ONES, WordSteps};
use super::{Quantizer, joined, largest};
use crate::cpu::kernel::extent::unit;
use crate::cpu::kernel::sides::{StepBytes, TILE};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{Simd, Words};

/// The exponents of two bf16.
const EXPONENTS: u32 = 0x7F80_7F80;

/// Exponent field of the first number that may be too large for what is done side by side.
const TOO_LARGE: u32 = 240;

impl Quantizer {
    /// Takes a step of up to sixteen rows, pairs of bf16, to the nearest element values, in place, and answers with the
    /// scales; those beyond the last row are 1. Each block's values are those of [`pairs`](Self::pairs), zeros of either
    /// sign in blocks of zeros, times the scale if they are to be `scaled`: what that is beyond bf16 is not defined.
    #[inline(always)]
    pub(in crate::cpu) fn step<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> [f32; TILE] {
        let side_by_side = match simd.words() {
            Some(words) => self.step_in_words(words, rows, scaled),
            None => self.step_in_floats(simd, rows, scaled),
        };
        side_by_side.unwrap_or_else(
            #[inline(always)]
            || self.step_by_blocks(simd, rows, scaled),
        )
    }

    /// One block after another, whatever is in them.
    #[inline(always)]
    fn step_by_blocks<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> [f32; TILE] {
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
        powers
    }

    /// In lanes of 32 bits; none where a block needs care.
    #[inline(always)]
    fn step_in_floats<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> Option<[f32; TILE]> {
        let bytes = self.scales_of(
            rows,
            #[inline(always)]
            |row| {
                let [even, odd] = simd.floats(simd.load_pairs(&row.0));
                largest(simd, even, odd)
            },
        )?;
        let powers = bytes.map(|byte| f32::from_bits(byte << 23));
        let inverses = bytes.map(|byte| f32::from_bits((254 - byte) << 23));
        for (r, row) in rows.iter_mut().enumerate() {
            let inverse = simd.splat(inverses[r]);
            let [even, odd] = simd.floats(simd.load_pairs(&row.0));
            let mut halves = [self.values(simd, even, inverse), self.values(simd, odd, inverse)];
            if scaled {
                let scale = simd.splat(powers[r]);
                halves = [simd.mul(halves[0], scale), simd.mul(halves[1], scale)];
            }
            simd.store_pairs(joined(simd, halves), &mut row.0);
        }
        Some(powers)
    }

    /// In lanes of 16 bits, half as many vectors; likewise.
    #[inline(always)]
    pub(super) fn step_in_words<S: Words>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> Option<[f32; TILE]> {
        let bytes = self.scales_of_words(simd, rows)?;
        let max = self.max.to_bits() >> 16;
        let (mut lowest, mut most, mut back) = ([0; TILE], [0; TILE], [0; TILE]);
        for (i, byte) in bytes.into_iter().enumerate() {
            lowest[i] = twice(byte.wrapping_add_signed(self.lowest));
            most[i] = twice((max + (byte << 7)).wrapping_sub(127 << 7));
            back[i] = twice(if scaled { 0 } else { (byte << 7).wrapping_sub(127 << 7) });
        }
        for (r, row) in rows.iter_mut().enumerate() {
            let values = self.word_values(simd, simd.load_pairs(&row.0), lowest[r], most[r], back[r]);
            simd.store_pairs(values, &mut row.0);
        }
        Some(bytes.map(|byte| f32::from_bits(byte << 23)))
    }

    /// Takes a step of up to sixteen rows, of a format whose elements are small integers times a unit, to these integers, and
    /// answers with the scales; none where a block needs care. What is beyond the last row is left as it is.
    #[inline(always)]
    pub(in crate::cpu) fn step_in_bytes<S: Words>(
        &self,
        simd: S,
        rows: &[Lanes],
        to: &mut [StepBytes; TILE],
    ) -> Option<[f32; TILE]> {
        let bytes = self.scales_of_words(simd, rows)?;
        let powers = bytes.map(|byte| f32::from_bits(byte << 23));
        let unit = unit(self.format.element);
        let most = simd.splat_words((self.max / unit) as u16);
        let lowest = bytes.map(|byte| twice(byte.wrapping_add_signed(self.lowest)));
        for (r, row) in rows.iter().enumerate() {
            let (pairs, lowest) = (simd.load_pairs(&row.0), simd.splat_pairs(lowest[r]));
            let magnitudes = simd.and(pairs, simd.splat_pairs(MAGNITUDES));
            let WordSteps { exponents, steps, .. } = self.word_steps(simd, magnitudes, lowest);
            let units = simd.shift_words_left(steps, simd.sub_words(exponents, lowest));
            let integers = simd.negate_words(simd.min_words(units, most), pairs);
            to[r] = StepBytes::new(simd.bytes_of_words(integers), unit * powers[r]);
        }
        Some(powers)
    }

    /// [`scales_of`](Self::scales_of), in lanes of 16 bits.
    #[inline(always)]
    fn scales_of_words<S: Words>(&self, simd: S, rows: &[Lanes]) -> Option<[u32; TILE]> {
        self.scales_of(
            rows,
            #[inline(always)]
            |row| {
                let magnitudes = simd.and(simd.load_pairs(&row.0), simd.splat_pairs(MAGNITUDES));
                u32::from(simd.largest_word(magnitudes)) << 16
            },
        )
    }

    /// The values of 32 bf16, scaled: `lowest` is the exponent field that the format's smallest normal number has among them,
    /// `most` the largest value. What `back` holds is taken from what is not zero. All three are there twice.
    #[inline(always)]
    fn word_values<S: Words>(&self, simd: S, pairs: S::Pairs, lowest: u32, most: u32, back: u32) -> S::Pairs {
        let magnitudes = simd.and(pairs, simd.splat_pairs(MAGNITUDES));
        let WordSteps { less, steps, .. } = self.word_steps(simd, magnitudes, simd.splat_pairs(lowest));
        // Back to where the significands were; their leading one, and a carry, add to the exponent.
        let kept = simd.shift_words_left(steps, simd.add_words(less, simd.splat_words(7 - self.mantissa)));
        let below = simd.sub_words(simd.and(magnitudes, simd.splat_pairs(EXPONENTS)), simd.splat_pairs(ONES));
        let values = simd.min_words(simd.add_words(below, kept), simd.splat_pairs(most));
        let values = simd.words_where_not_zero(simd.wrapping_sub_words(values, simd.splat_pairs(back)), kept);
        simd.or(values, simd.and(pairs, simd.splat_pairs(!MAGNITUDES)))
    }

    /// The bytes of the scales of a step's rows and of as many more as there are to a tile, if all are
    /// [regular](Self::regular_scales).
    #[inline(always)]
    fn scales_of(&self, rows: &[Lanes], largest: impl Fn(&Lanes) -> u32) -> Option<[u32; TILE]> {
        let mut magnitudes = [0; TILE];
        for (row, magnitude) in rows.iter().zip(&mut magnitudes) {
            *magnitude = largest(row);
        }
        self.regular_scales(magnitudes)
    }

    /// The bytes of the scales of blocks with these largest magnitudes, as bits, if all are regular: the blocks' elements, and
    /// what becomes of them on the way, are normal numbers. Blocks of zeros get the scale 1.
    #[inline(always)]
    pub(super) fn regular_scales(&self, largest: [u32; TILE]) -> Option<[u32; TILE]> {
        if self.format.scale_rule == ScaleRule::Mse {
            return None;
        }
        let emax = self.emax as u32;
        // The smallest normal number of the format has to be so far up that what is half of the smallest number is normal.
        let least = (emax + self.least_byte()) << 23;
        let one = (emax + 127) << 23;
        let (mut bytes, mut regular) = ([0; TILE], true);
        for (largest, byte) in largest.into_iter().zip(&mut bytes) {
            regular &= (largest.wrapping_sub(least) < (TOO_LARGE << 23) - least) | (largest == 0);
            // What is not regular may wrap around: it is not taken.
            let up = if largest == 0 { one } else { largest }.wrapping_add(self.bump);
            *byte = (up >> 23).wrapping_sub(emax);
        }
        regular.then_some(bytes)
    }

    /// A scale from which on the halves of the smallest magnitudes are normal bf16.
    fn least_byte(&self) -> u32 {
        (i32::from(self.mantissa) + 3 - self.lowest).max(1) as u32
    }
}

/// A word in both halves of a pair.
#[inline(always)]
fn twice(word: u32) -> u32 {
    word & 0xFFFF | word << 16
}
