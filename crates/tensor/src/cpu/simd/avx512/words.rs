//! Lanes of 16 bits.

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use super::super::codes::{ORDER, QUADS};
use super::super::{LANES, Words};
use super::Avx512;

impl Words for Avx512 {
    lanewise! { 1;
        sub_words(a: Pairs, b: Pairs) -> Pairs = _mm512_subs_epu16;
        add_words(a: Pairs, b: Pairs) -> Pairs = _mm512_adds_epu16;
        min_words(a: Pairs, b: Pairs) -> Pairs = _mm512_min_epu16;
        shift_words_left(x: Pairs, by: Pairs) -> Pairs = _mm512_sllv_epi16;
        shift_words_right(x: Pairs, by: Pairs) -> Pairs = _mm512_srlv_epi16;
    }
    #[inline(always)]
    fn splat_words(self, x: u16) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi16(x.cast_signed()) }
    }
    #[inline(always)]
    fn negate_words(self, x: __m512i, sign: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mask_sub_epi16(x, _mm512_movepi16_mask(sign), _mm512_setzero_si512(), x) }
    }
    #[inline(always)]
    fn bytes_of_words(self, x: __m512i) -> ([u32; QUADS], i32) {
        let mut quads = [0; QUADS];
        // SAFETY: `self` proves AVX-512; 32 bytes are written to 32.
        unsafe {
            let bytes = _mm512_cvtepi16_epi8(x);
            const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
            let order = _mm256_setr_epi8(
                0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15, 0, 2, 1, 3, 4, 6, 5, 7, 8, 10, 9, 11, 12, 14, 13, 15,
            );
            _mm256_storeu_si256(quads.as_mut_ptr().cast(), _mm256_shuffle_epi8(bytes, order));
            // The machine sums eight unsigned bytes at a time: flipping the sign bit adds 128 to each.
            let sums = _mm256_sad_epu8(_mm256_xor_si256(bytes, _mm256_set1_epi8(-128)), _mm256_setzero_si256());
            let two = _mm_add_epi64(_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums));
            let sum = _mm_cvtsi128_si32(two) + _mm_extract_epi32::<2>(two);
            (quads, sum - 128 * 2 * LANES as i32)
        }
    }
    #[inline(always)]
    fn pack_blocks<const BITS: usize>(self, codes: [__m512i; 4], to: &mut [u8]) {
        const {
            assert!(BITS == 4 || BITS == 6 || BITS == 8);
        }
        let to = to[..16 * BITS].as_mut_ptr();
        let [a, b, c, d] = codes;
        // SAFETY: `self` proves AVX-512; as many bytes are written as were checked to be there.
        unsafe {
            // The machine packs within quarters: eight codes of one block, then eight of the other.
            let halves = [_mm512_packus_epi16(a, b), _mm512_packus_epi16(c, d)];
            if BITS == 4 {
                let [first, second] = halves.map(|codes| _mm512_maddubs_epi16(codes, _mm512_set1_epi16(0x1001)));
                let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
                let bytes = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(first, second));
                return _mm512_storeu_si512(to.cast(), bytes);
            }
            for (i, half) in halves.into_iter().enumerate() {
                let to = to.add(i * 8 * BITS);
                if BITS == 8 {
                    let order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
                    _mm512_storeu_si512(to.cast(), _mm512_permutexvar_epi64(order, half));
                    continue;
                }
                // Two codes to the low 12 bits of a word, four to the low 24 of a double word; three bytes of these are left, and
                // three words of a block in each quarter.
                let twos = _mm512_maddubs_epi16(half, _mm512_set1_epi16(0x4001));
                let fours = _mm512_madd_epi16(twos, _mm512_set1_epi32(0x1000_0001));
                let left = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
                let left = _mm512_shuffle_epi8(fours, _mm512_broadcast_i32x4(left));
                let order = const {
                    let mut order = [0u16; 2 * LANES];
                    let mut i = 0;
                    while i < 24 {
                        order[i] = (i % 12 / 3 * 8 + i / 12 * 3 + i % 3) as u16;
                        i += 1;
                    }
                    order
                };
                let words = _mm512_permutexvar_epi16(_mm512_loadu_si512(order.as_ptr().cast()), left);
                _mm256_storeu_si256(to.cast(), _mm512_castsi512_si256(words));
                _mm_storeu_si128(to.add(32).cast(), _mm512_extracti32x4_epi32::<2>(words));
            }
        }
    }
}
