//! Blocks of bf16 to codes in lanes of 16 bits, half as many vectors as lanes of 32 take.
//!
//! A bf16 has eight bits of significand, its leading one included. Shifted so far that its last bit to be kept is bit 9
//! of 16, it rounds by a sum and a shift, whatever its exponent.

use microscale_formats::{BLOCK, E8M0};

use super::{Quantizer, interleave};
use crate::Real;
use crate::cpu::simd::Words;

/// The magnitudes and the fractions of two bf16.
pub(super) const MAGNITUDES: u32 = 0x7FFF_7FFF;
const FRACTIONS: u32 = 0x007F_007F;
/// Their leading ones.
const ONES: u32 = 0x0080_0080;
pub(super) const SIGNS: u32 = 0x8000_8000;

impl Quantizer {
    /// [`encode`](Self::encode) for blocks of 32.
    #[inline(always)]
    pub(super) fn encode_words<S: Words, T: Real, const BITS: usize>(
        &self,
        simd: S,
        row: &[[T; BLOCK]],
        codes: &mut [u8],
        scales: &mut [E8M0],
    ) {
        // A copy, which no write to codes or scales can change.
        let own = *self;
        let blocks = row.iter().zip(codes.chunks_exact_mut(BLOCK * BITS / 8));
        for ((block, to), scale) in blocks.zip(scales) {
            simd.prefetch(block);
            let Some(pairs) = T::pairs(block) else {
                *scale = own.encode_block::<_, T, BITS>(simd, block, to);
                continue;
            };
            let pairs = simd.load_pairs(&pairs);
            let magnitudes = simd.and(pairs, simd.splat_pairs(MAGNITUDES));
            let largest = u32::from(simd.largest_word(magnitudes)) << 16;
            *scale = own.scale_or_nan(
                largest,
                #[inline(always)]
                || interleave(&T::halves(block)),
            );
            // A subnormal bf16 has no leading one; where the smallest normal number of the format is far enough above,
            // it rounds to zero either way.
            let lowest = i32::from(scale.0) + own.lowest;
            if *scale == E8M0::NAN || lowest < i32::from(own.mantissa) + 3 {
                *scale = own.encode_block::<_, T, BITS>(simd, block, to);
                continue;
            }
            let codes = own.word_codes::<S, BITS>(simd, (pairs, magnitudes), lowest as u16);
            let together = simd.or(codes, simd.shift_right(codes, 16 - BITS as u32));
            simd.pack_pairs::<BITS>(simd.and(together, simd.splat_pairs((1 << (2 * BITS)) - 1)), to);
        }
    }

    /// The codes of 32 values; `lowest` is the exponent field that the format's smallest normal number has among them.
    #[inline(always)]
    fn word_codes<S: Words, const BITS: usize>(
        &self,
        simd: S,
        (pairs, magnitudes): (S::Pairs, S::Pairs),
        lowest: u16,
    ) -> S::Pairs {
        let lowest = simd.splat_words(lowest);
        let WordSteps { exponents, steps, .. } = self.word_steps(simd, magnitudes, lowest);
        // A carry into the next power of two fits by itself.
        let powers = simd.shift_words_left(simd.sub_words(exponents, lowest), simd.splat_words(self.mantissa));
        let codes = simd.min_words(simd.add_words(powers, steps), simd.splat_words(self.max_code as u16));
        if self.twos_complement {
            return simd.and(simd.negate_words(codes, pairs), simd.splat_words(0xFF));
        }
        let signs = simd.and(pairs, simd.splat_pairs(SIGNS));
        simd.or(codes, simd.shift_words_right(signs, simd.splat_words(16 - BITS as u16)))
    }

    /// Rounds 32 magnitudes to whole steps of their power of two.
    #[inline(always)]
    pub(super) fn word_steps<S: Words>(&self, simd: S, magnitudes: S::Pairs, lowest: S::Pairs) -> WordSteps<S> {
        let exponents = simd.shift_words_right(magnitudes, simd.splat_words(7));
        let significands = simd.or(simd.and(magnitudes, simd.splat_pairs(FRACTIONS)), simd.splat_pairs(ONES));
        // Below the smallest normal number there is a bit less for every power of two.
        let less = simd.sub_words(lowest, exponents);
        let placed = simd.shift_words_left(significands, simd.sub_words(simd.splat_words(self.mantissa + 2), less));
        let odd = simd.and(simd.shift_words_right(placed, simd.splat_words(9)), simd.splat_words(1));
        // Where the sum is too large (of INT8 alone) the result is the largest anyway.
        let rounded = simd.add_words(placed, simd.add_words(odd, simd.splat_words(0xFF)));
        WordSteps { exponents, steps: simd.shift_words_right(rounded, simd.splat_words(9)) }
    }
}

/// Magnitudes as whole steps.
pub(super) struct WordSteps<S: Words> {
    /// The exponent fields.
    pub(super) exponents: S::Pairs,
    pub(super) steps: S::Pairs,
}
