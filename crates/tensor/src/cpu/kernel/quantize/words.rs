//! Blocks of bf16 to codes in lanes of 16 bits, half as many vectors as lanes of 32 take.
//!
//! A bf16 has eight bits of significand, its leading one included. Shifted so far that its last bit to be kept is bit 9
//! of 16, it rounds by a sum and a shift, whatever its exponent.

use microscale_formats::{BLOCK, E8M0};

use super::Quantizer;
use crate::Real;
use crate::cpu::simd::{LANES, Simd, Words};

/// The magnitudes and the fractions of two bf16.
pub(super) const MAGNITUDES: u32 = 0x7FFF_7FFF;
const FRACTIONS: u32 = 0x007F_007F;
/// Their leading ones.
const ONES: u32 = 0x0080_0080;
pub(super) const SIGNS: u32 = 0x8000_8000;
/// How far ahead memory is asked for blocks, of which sixteen are read in a burst.
const AHEAD: [usize; 2] = [3072, 8192];

impl Quantizer {
    /// [`encode`](Self::encode) for blocks of 32, sixteen at a time: the last sixteen once more where fewer are left.
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
        let Some(last) = row.len().checked_sub(LANES) else {
            return own.encode::<_, T, BITS>(simd, row, codes, scales);
        };
        // Scales are found one group ahead: they take long, and what waits for them then has other work beside.
        let mut starts = (0..last).step_by(LANES).chain([last]);
        let mut next = starts.next().map(|first| (first, own.scales_side_by_side(simd, &row[first..][..LANES])));
        while let Some((first, bytes)) = next {
            next = starts.next().map(
                #[inline(always)]
                |first| (first, own.scales_side_by_side(simd, &row[first..][..LANES])),
            );
            let codes = &mut codes[first * BLOCK * BITS / 8..][..LANES * BLOCK * BITS / 8];
            let (blocks, scales) = (&row[first..][..LANES], &mut scales[first..][..LANES]);
            match bytes {
                Some(bytes) => own.encode_side_by_side::<S, T, BITS>(simd, blocks, bytes, codes, scales),
                None => own.encode::<_, T, BITS>(simd, blocks, codes, scales),
            }
        }
    }

    /// The bytes of the scales of sixteen blocks; none where these are no bf16, or where one of them needs care.
    #[inline(always)]
    pub(super) fn scales_side_by_side<S: Words, T: Real>(&self, simd: S, blocks: &[[T; BLOCK]]) -> Option<S::Pairs> {
        T::pairs(&blocks[0])?;
        let largest = simd.largest_magnitudes(
            #[inline(always)]
            |r| {
                simd.prefetch_ahead(&blocks[r], AHEAD);
                load(simd, &blocks[r])
            },
        );
        self.normal_scales(simd, largest)
    }

    /// Sixteen blocks of bf16 at once.
    #[inline(always)]
    fn encode_side_by_side<S: Words, T: Real, const BITS: usize>(
        &self,
        simd: S,
        blocks: &[[T; BLOCK]],
        bytes: S::Pairs,
        codes: &mut [u8],
        scales: &mut [E8M0],
    ) {
        let (mut narrow, mut lowest) = ([0; LANES], [0; LANES]);
        simd.pack_pairs::<4>(bytes, &mut narrow);
        scales.iter_mut().zip(narrow).for_each(|(scale, byte)| *scale = E8M0(byte));
        let exponents = simd.add_bits(bytes, simd.splat_pairs(self.lowest as u32));
        simd.store_pairs(simd.or(exponents, simd.shift_left(exponents, 16)), &mut lowest);
        for (four, to) in codes.chunks_exact_mut(4 * BLOCK * BITS / 8).enumerate() {
            let mut codes = [simd.splat_pairs(0); 4];
            for (r, codes) in (4 * four..).zip(&mut codes) {
                *codes = self.word_codes::<S, BITS>(simd, load(simd, &blocks[r]), simd.splat_pairs(lowest[r]));
            }
            simd.pack_blocks::<BITS>(codes, to);
        }
    }

    /// The codes of 32 values; `lowest` is the exponent field that the format's smallest normal number has among them.
    #[inline(always)]
    fn word_codes<S: Words, const BITS: usize>(&self, simd: S, pairs: S::Pairs, lowest: S::Pairs) -> S::Pairs {
        let magnitudes = simd.and(pairs, simd.splat_pairs(MAGNITUDES));
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

/// A block of bf16, as pairs.
#[inline(always)]
fn load<S: Simd, T: Real>(simd: S, block: &[T; BLOCK]) -> S::Pairs {
    simd.load_pairs(&T::pairs(block).unwrap_or_default())
}

/// Magnitudes as whole steps.
pub(super) struct WordSteps<S: Words> {
    /// The exponent fields.
    pub(super) exponents: S::Pairs,
    pub(super) steps: S::Pairs,
}
