//! Blocks of 32 of up to sixteen rows side by side, to element values: scales are found for all of them at once, and no
//! block waits for what another is about to know.

use microscale_formats::ScaleRule;

use super::words::{MAGNITUDES, SIGNS, WordSteps};
use super::{MAGNITUDE, Quantizer, joined};
use crate::cpu::kernel::extent::unit;
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
    pub(in crate::cpu) fn step<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> [f32; TILE] {
        self.step_side_by_side(simd, rows, scaled).unwrap_or_else(
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

    /// All of them at once; none where a block needs care.
    #[inline(always)]
    pub(super) fn step_side_by_side<S: Simd>(&self, simd: S, rows: &mut [Lanes], scaled: bool) -> Option<[f32; TILE]> {
        let bytes = self.scales_of(simd, rows)?;
        if scaled {
            let range = ScaledRange::of(self, bytes);
            for (r, row) in rows.iter_mut().enumerate() {
                let pairs = simd.load_pairs(&row.0);
                let [even, odd] = simd.floats(pairs);
                let limits = [range.lowest[r], range.most[r]];
                let even = self.nearest(simd, magnitude(simd, even), limits);
                let odd = self.nearest(simd, magnitude(simd, odd), limits);
                store_signed(simd, [even, odd], pairs, row);
            }
            return Some(range.powers);
        }
        let inverses = bytes.map(|byte| f32::from_bits((254 - byte) << 23));
        for (r, row) in rows.iter_mut().enumerate() {
            let (pairs, inverse) = (simd.load_pairs(&row.0), simd.splat(inverses[r]));
            let [even, odd] = simd.floats(pairs);
            let even = self.magnitudes(simd, magnitude(simd, simd.mul(even, inverse)));
            let odd = self.magnitudes(simd, magnitude(simd, simd.mul(odd, inverse)));
            store_signed(simd, [even, odd], pairs, row);
        }
        Some(bytes.map(|byte| f32::from_bits(byte << 23)))
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
    ) -> Option<[f32; TILE]> {
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
        let largest = simd.mul(simd.with_bits(largest), simd.load(factors));
        let mut magnitudes = [0; TILE];
        simd.store_pairs(simd.bits(simd.nearest_normal(largest)), &mut magnitudes);
        let range = ScaledRange::of(self, self.regular_scales(magnitudes)?);
        for (r, row) in rows.iter_mut().enumerate() {
            let (factor, [first, second]) = (simd.splat(factors[r]), numbers(r));
            let (first, second) = (simd.mul(simd.load(first), factor), simd.mul(simd.load(second), factor));
            // In a regular block what is subnormal becomes zero.
            let [even, odd] = simd.floats(simd.round_normal_pairs(first, second));
            let limits = [range.lowest[r], range.most[r]];
            let values = [self.nearest(simd, even, limits), self.nearest(simd, odd, limits)];
            simd.store_pairs(joined(simd, values), &mut row.0);
        }
        Some(range.powers)
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
        let bytes = self.scales_of(simd, rows)?;
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

    /// The bytes of the scales of a step's rows, and 1 of as many more as there are to a tile, if all are
    /// [regular](Self::regular_scales).
    #[inline(always)]
    fn scales_of<S: Simd>(&self, simd: S, rows: &[Lanes]) -> Option<[u32; TILE]> {
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
        let mut magnitudes = [0; TILE];
        simd.store_pairs(largest, &mut magnitudes);
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

/// Limits of the magnitudes of a step's rows, scaled, and the scales.
struct ScaledRange {
    /// The smallest normal number, as bits.
    lowest: [u32; TILE],
    /// The largest, likewise.
    most: [u32; TILE],
    powers: [f32; TILE],
}

impl ScaledRange {
    /// Of blocks with regular scales.
    #[inline(always)]
    fn of(quantizer: &Quantizer, bytes: [u32; TILE]) -> ScaledRange {
        let powers = bytes.map(|byte| f32::from_bits(byte << 23));
        ScaledRange {
            lowest: bytes.map(|byte| byte.wrapping_add_signed(quantizer.lowest) << 23),
            most: powers.map(|power| (quantizer.max * power).to_bits()),
            powers,
        }
    }
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
