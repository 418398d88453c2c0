//! Codes to what products take: pairs of bf16, or integers.

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::super::codes::{CodeTable, ORDER, PairTable, StepCodes};
use super::super::Simd;
use super::Avx512;

impl Avx512 {
    /// The codes of a quad, a byte each; of codes of 4 and 6 bits those lowest bits only count.
    #[inline(always)]
    pub(in crate::cpu::simd) fn codes<const BITS: usize>(self, step: StepCodes<'_>, quad: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512; 64 bytes are loaded from 64.
        let load = |i: usize| unsafe { _mm512_loadu_si512(step.line(i).as_ptr().cast()) };
        match BITS {
            4 if quad.is_multiple_of(2) => load(quad / 2),
            // SAFETY: `self` proves AVX-512.
            4 => unsafe { _mm512_srli_epi16::<4>(load(quad / 2)) },
            6 if quad % 4 < 3 => load(quad / 4 * 3 + quad % 4),
            6 => {
                let first = quad / 4 * 3;
                // SAFETY: `self` proves AVX-512. Shifts move bits between neighbouring bytes, to where they are
                // masked or do not count.
                unsafe {
                    let [a, b, c] = [
                        _mm512_srli_epi16::<6>(load(first)),
                        _mm512_srli_epi16::<4>(load(first + 1)),
                        _mm512_srli_epi16::<2>(load(first + 2)),
                    ];
                    // Where the mask is set the first, else the second.
                    let low = _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi8(0b0011), a, b);
                    _mm512_ternarylogic_epi32::<0xCA>(_mm512_set1_epi8(0b1111), low, c)
                }
            }
            _ => load(quad),
        }
    }

    /// Entries `16 · i` to `16 · i + 15` of a table, in every quarter of a register: what a look-up by the low four bits of
    /// bytes takes.
    #[inline(always)]
    pub(in crate::cpu::simd) fn part<const N: usize>(self, table: &[u8; N], i: usize) -> __m512i {
        // SAFETY: `self` proves AVX-512; 16 bytes are loaded from 16.
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_chunks::<16>().0[i].as_ptr().cast())) }
    }

    /// The values of a quad of codes of 4 or 6 bits: two pairs of each output. Tables of codes of 4 bits repeat every 16.
    #[inline(always)]
    pub(in crate::cpu::simd) fn look_up_words<const BITS: usize, const N: usize>(
        self,
        step: StepCodes<'_>,
        quad: usize,
        table: &PairTable<N>,
    ) -> [__m512i; 2] {
        const { assert!(N >= 64) };
        let codes = self.codes::<BITS>(step, quad);
        let words = table.words.as_chunks::<32>().0;
        // SAFETY: `self` proves AVX-512; 64 bytes are loaded from 64.
        unsafe {
            let [low, high] = [0, 1].map(|i| _mm512_loadu_si512(words[i].as_ptr().cast()));
            // The machine looks words up by their low bits, five or six: those of even bytes, and of odd ones.
            [codes, _mm512_srli_epi16::<8>(codes)].map(|codes| match BITS {
                4 => _mm512_permutexvar_epi16(codes, low),
                _ => _mm512_permutex2var_epi16(low, codes, high),
            })
        }
    }

    /// One byte of a table's first 32 values, for the low five bits of codes.
    #[inline(always)]
    pub(in crate::cpu::simd) fn look_up_bytes_32<const N: usize>(self, codes: __m512i, table: &[u8; N]) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            // The machine looks up by the low four bits, where the top one is not set.
            let index = _mm512_and_si512(codes, _mm512_set1_epi8(0x1F));
            let upper = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x10));
            let low = _mm512_shuffle_epi8(self.part(table, 0), index);
            _mm512_mask_shuffle_epi8(low, upper, self.part(table, 1), index)
        }
    }

    /// The values of 64 codes of 8 bits, a sign and a magnitude: the 16 smallest and the 16 largest magnitudes looked up, the
    /// others a shift and a sum away.
    #[inline(always)]
    pub(super) fn decode_8(self, table: &CodeTable, codes: __m512i) -> [__m512i; 2] {
        let PairTable { low, high, .. } = &table.halves;
        let middle = &table.middle;
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let magnitudes = _mm512_and_si512(codes, _mm512_set1_epi8(0x7F));
            let small = _mm512_testn_epi8_mask(codes, _mm512_set1_epi8(0x70));
            let large = _mm512_cmpge_epu8_mask(magnitudes, _mm512_set1_epi8(0x70));
            // Shifts move bits between neighbouring bytes, to where they are masked. Those by a count of each lane's own take
            // half of what one count for all takes.
            let up = _mm512_sllv_epi16(magnitudes, self.splat_pairs(middle.up));
            let middle_low = _mm512_and_si512(up, self.splat_pairs(middle.low));
            let down = _mm512_srlv_epi16(magnitudes, self.splat_pairs(middle.down));
            let down = _mm512_and_si512(down, self.splat_pairs(middle.high));
            let middle_high = _mm512_add_epi8(down, self.splat_pairs(middle.base));
            let low = {
                let some = _mm512_mask_shuffle_epi8(middle_low, small, self.part(low, 0), magnitudes);
                _mm512_mask_shuffle_epi8(some, large, self.part(low, 7), magnitudes)
            };
            let high = {
                let some = _mm512_mask_shuffle_epi8(middle_high, small, self.part(high, 0), magnitudes);
                _mm512_mask_shuffle_epi8(some, large, self.part(high, 7), magnitudes)
            };
            // high | (codes & sign bit)
            interleave(low, _mm512_ternarylogic_epi32::<0xF8>(high, codes, _mm512_set1_epi8(-128)))
        }
    }

    /// Those of 64 codes in two's complement.
    #[inline(always)]
    pub(super) fn decode_integers(self, table: &CodeTable, codes: __m512i) -> [__m512i; 2] {
        let unit = self.splat(f32::from_bits(u32::from(table.words[1]) << 16));
        // SAFETY: `self` proves AVX-512.
        let [first, second] = interleave(unsafe { _mm512_setzero_si512() }, codes);
        [self.integer_pairs(first, unit), self.integer_pairs(second, unit)]
    }

    /// The same as integers.
    #[inline(always)]
    pub(super) fn signed_words(self, codes: __m512i) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512.
        unsafe { interleave(_mm512_setzero_si512(), codes).map(|words| _mm512_srai_epi16::<8>(words)) }
    }

    /// Codes in the top bytes of 16 bits each, times a power of two.
    #[inline(always)]
    fn integer_pairs(self, words: __m512i, unit: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let even = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(_mm512_slli_epi32::<16>(words)));
            let odd = _mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(words));
            let (even, odd) = (self.bits(self.mul(even, unit)), self.bits(self.mul(odd, unit)));
            _mm512_or_si512(_mm512_srli_epi32::<16>(even), odd)
        }
    }
}

/// Low and high bytes of 64 values to two vectors of pairs.
#[inline(always)]
pub(in crate::cpu::simd) fn interleave(low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe { [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)] }
}

/// Codes of 8 bits, two pairs of four outputs, to four elements of each in their [`ORDER`].
#[inline(always)]
pub(super) fn fours(codes: __m512i) -> __m512i {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe {
        const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
        let order = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
        _mm512_shuffle_epi8(codes, _mm512_broadcast_i32x4(order))
    }
}
