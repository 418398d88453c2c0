#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;

use half::bf16;
use microscale_formats::E8M0;

use super::codes::CodeTable;
use super::avx2::prefetch_past;
use super::{LANES, Simd};

/// Proof of AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Avx512> {
        (is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma"))
        .then_some(Avx512(()))
    }
}

impl Simd for Avx512 {
    type F32 = __m512;
    type Pairs = __m512i;
    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves AVX-512; the sixteen floats are there.
        unsafe { _mm512_loadu_ps(x.as_ptr()) }
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        // SAFETY: as in `load`.
        unsafe { _mm512_storeu_ps(to.as_mut_ptr(), x) }
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    lanewise! { 1;
        add(a: F32, b: F32) -> F32 = _mm512_add_ps;
        sub(a: F32, b: F32) -> F32 = _mm512_sub_ps;
        bits(x: F32) -> Pairs = _mm512_castps_si512;
        with_bits(x: Pairs) -> F32 = _mm512_castsi512_ps;
        and(a: Pairs, b: Pairs) -> Pairs = _mm512_and_si512;
        or(a: Pairs, b: Pairs) -> Pairs = _mm512_or_si512;
        max_bits(a: Pairs, b: Pairs) -> Pairs = _mm512_max_epu32;
        min_bits(a: Pairs, b: Pairs) -> Pairs = _mm512_min_epu32;
        add_bits(a: Pairs, b: Pairs) -> Pairs = _mm512_add_epi32;
        sub_bits(a: Pairs, b: Pairs) -> Pairs = _mm512_sub_epi32;
    }
    #[inline(always)]
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_sll_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_srl_epi32(x, _mm_cvtsi32_si128(by as i32)) }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u32; LANES]) -> __m512i {
        // SAFETY: `self` proves AVX-512; the sixteen words are there.
        unsafe { _mm512_loadu_si512(x.as_ptr().cast()) }
    }
    #[inline(always)]
    fn store_pairs(self, x: __m512i, to: &mut [u32; LANES]) {
        // SAFETY: as in `load_pairs`.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), x) }
    }
    #[inline(always)]
    fn splat_pairs(self, x: u32) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(x as i32) }
    }
    #[inline(always)]
    fn dot(self, x: __m512i, w: __m512i, sum: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let mask = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
            let high = |x| _mm512_castsi512_ps(_mm512_and_si512(x, mask));
            let low = |x| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(x));
            _mm512_fmadd_ps(low(x), low(w), _mm512_fmadd_ps(high(x), high(w), sum))
        }
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: &[u8], quad: usize) -> [__m512i; 2] {
        table.decode::<BITS>(step, quad).map(|pairs| self.load_pairs(&pairs))
    }
    #[inline(always)]
    fn fetch<T>(self, at: &T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) }
    }
    #[inline(always)]
    fn prefetch_past<T>(self, here: &T, skips: [usize; 2]) {
        prefetch_past(here, skips);
    }
    #[inline(always)]
    fn largest(self, x: __m512i) -> u32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_max_epu32(x) }
    }
    #[inline(always)]
    fn bit_or(self, x: __m512i) -> u32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_or_epi32(x) as u32 }
    }
    #[inline(always)]
    fn total(self, x: __m512) -> f32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_add_ps(x) }
    }
    #[inline(always)]
    fn round(self, x: __m512, to: &mut [bf16; LANES]) {
        // SAFETY: `self` proves AVX-512; sixteen bf16 are 32 bytes.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let even = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let nearest = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), even);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let rounded = _mm512_mask_or_epi32(nearest, nan, bits, _mm512_set1_epi32(0x40_0000));
            let high = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(rounded));
            _mm256_storeu_si256(to.as_mut_ptr().cast(), high);
        }
    }
    #[inline(always)]
    fn powers(self, scales: &[E8M0; LANES]) -> __m512 {
        // SAFETY: `self` proves AVX-512; a scale is one byte.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(scales.as_ptr().cast()));
            let powers = _mm512_slli_epi32::<23>(bytes);
            let smallest = _mm512_cmpeq_epi32_mask(bytes, _mm512_setzero_si512());
            let powers = _mm512_mask_mov_epi32(powers, smallest, _mm512_set1_epi32(1 << 22));
            let nan = _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255));
            _mm512_castsi512_ps(_mm512_mask_mov_epi32(powers, nan, _mm512_set1_epi32(0x7FC0_0000)))
        }
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}
