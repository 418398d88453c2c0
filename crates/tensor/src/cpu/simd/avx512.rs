#![allow(unsafe_code, reason = "vector intrinsics")]

mod decoding;
mod words;

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::avx2::prefetch_ahead;
use super::codes::{BlockScales, ByteTable, CodeTable, IntegerTable, StepCodes};
use super::machine::gathers_are_fast;
use super::{OverLargest, IntegerProducts, LANES, Simd, exponential};
use decoding::fours;
pub(super) use decoding::interleave;

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

/// The methods of [`Simd`] that a type takes over from the [`Avx512`] in it.
macro_rules! avx512_methods {
    ($(fn $name:ident($($x:ident: $argument:ty),+) $(-> $result:ty)?;)+) => {
        $(
            #[inline(always)]
            fn $name(self, $($x: $argument),+) $(-> $result)? {
                self.0.$name($($x),+)
            }
        )+
    };
    () => {
        type F32 = __m512;
        type Pairs = __m512i;
        const ROWS: usize = Avx512::ROWS;
        type Words = Avx512;
        #[inline(always)]
        fn words(self) -> Option<Avx512> {
            self.0.words()
        }

        avx512_methods! {
            fn settled(x: __m512) -> __m512;
            fn splat(x: f32) -> __m512;
            fn load(x: &[f32; LANES]) -> __m512;
            fn store(x: __m512, to: &mut [f32; LANES]);
            fn mul(a: __m512, b: __m512) -> __m512;
            fn fma(a: __m512, b: __m512, c: __m512) -> __m512;
            fn add(a: __m512, b: __m512) -> __m512;
            fn sub(a: __m512, b: __m512) -> __m512;
            fn max(a: __m512, b: __m512) -> __m512;
            fn bits(x: __m512) -> __m512i;
            fn with_bits(x: __m512i) -> __m512;
            fn and(a: __m512i, b: __m512i) -> __m512i;
            fn or(a: __m512i, b: __m512i) -> __m512i;
            fn max_bits(a: __m512i, b: __m512i) -> __m512i;
            fn min_bits(a: __m512i, b: __m512i) -> __m512i;
            fn add_bits(a: __m512i, b: __m512i) -> __m512i;
            fn sub_bits(a: __m512i, b: __m512i) -> __m512i;
            fn shift_left(x: __m512i, by: u32) -> __m512i;
            fn shift_right(x: __m512i, by: u32) -> __m512i;
            fn load_pairs(x: &[u32; LANES]) -> __m512i;
            fn load_values(values: &[bf16]) -> __m512i;
            fn load_words(values: &[bf16]) -> __m512i;
            fn floats_of(values: &[bf16; LANES]) -> __m512;
            fn store_pairs(x: __m512i, to: &mut [u32; LANES]);
            fn splat_pairs(x: u32) -> __m512i;
            fn above(x: &[f32; LANES], limit: f32) -> u16;
            fn largest(x: __m512i) -> u32;
            fn exceeds(x: __m512i, limit: u32) -> bool;
            fn across_rows(rows: impl Fn(usize) -> __m512i, join: impl Fn(__m512i, __m512i) -> __m512i) -> __m512i;
            fn largest_magnitudes(rows: impl Fn(usize) -> __m512i) -> __m512i;
            fn join(first: __m512, second: __m512) -> __m512i;
            fn bit_or(x: __m512i) -> u32;
            fn total(x: __m512) -> f32;
            fn powers(scales: &BlockScales) -> __m512;
            fn exp_of_negative(x: __m512) -> __m512;
            fn exponentials(x: &mut [f32; LANES]);
            fn look_up(table: &[bf16; (1 << 16) + 1], x: &[bf16; LANES]) -> __m512;
            fn exponentials_over(largest: &OverLargest, x: &[f32; LANES]) -> __m512;
            fn mul_from(least: __m512, a: __m512, b: __m512) -> __m512;
            fn fma_near_zero(a: __m512, b: __m512, c: __m512) -> __m512;
        }
        #[inline(always)]
        fn gathers(self) -> bool {
            self.0.gathers()
        }
        #[inline(always)]
        fn pack_pairs<const BITS: usize>(self, pairs: __m512i, to: &mut [u8]) {
            self.0.pack_pairs::<BITS>(pairs, to);
        }
        #[inline(always)]
        fn fetch<T>(self, at: &T) {
            self.0.fetch(at);
        }
        #[inline(always)]
        fn prefetch_ahead<T>(self, here: &T, ahead: [usize; 2]) {
            self.0.prefetch_ahead(here, ahead);
        }
    };
}
pub(super) use avx512_methods;

/// The first eight lanes and the others in f64.
#[inline(always)]
pub(super) fn widened(x: __m512) -> [__m512d; 2] {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe { [_mm512_cvtps_pd(_mm512_castps512_ps256(x)), _mm512_cvtps_pd(_mm512_extractf32x8_ps::<1>(x))] }
}

/// The same the other way, rounded.
#[inline(always)]
pub(super) fn narrowed(halves: [__m512d; 2]) -> __m512 {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(_mm512_cvtpd_ps(halves[0])), _mm512_cvtpd_ps(halves[1])) }
}

/// The nearest bf16, ties to even; of numbers that are not negative subnormal ones as zero, if they are to be flushed.
#[inline(always)]
fn round_words<const FLUSH: bool>(x: __m512) -> __m256i {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let high = _mm512_srli_epi32::<16>(bits);
        let even = _mm512_and_si512(high, _mm512_set1_epi32(1));
        let up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), even);
        let nearest = _mm512_srli_epi32::<16>(up);
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        let nearest = _mm512_mask_or_epi32(nearest, nan, high, _mm512_set1_epi32(0x40));
        if FLUSH {
            let normal = _mm512_cmpge_epu32_mask(nearest, _mm512_set1_epi32(0x80));
            _mm512_maskz_cvtepi32_epi16(normal, nearest)
        } else {
            _mm512_cvtepi32_epi16(nearest)
        }
    }
}

/// The places of the odd words of two vectors.
const fn odd_words() -> [u32; LANES] {
    let mut places = [0; LANES];
    let mut lane = 0;
    while lane < LANES {
        places[lane] = (4 * lane as u32 + 1) | (4 * lane as u32 + 3) << 16;
        lane += 1;
    }
    places
}

/// An instruction that is none, with an operand.
#[target_feature(enable = "avx512f")]
#[inline]
fn settled(mut x: __m512) -> __m512 {
    // SAFETY: there is no instruction.
    unsafe { asm!("/* {0} */", inout(zmm_reg) x, options(nomem, nostack, preserves_flags)) };
    x
}

impl Simd for Avx512 {
    type F32 = __m512;
    type Pairs = __m512i;
    const ROWS: usize = 8;
    type Words = Avx512;
    #[inline(always)]
    fn words(self) -> Option<Avx512> {
        Some(self)
    }

    #[inline(always)]
    fn settled(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { settled(x) }
    }
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
        max(a: F32, b: F32) -> F32 = _mm512_max_ps;
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
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        match BITS {
            4 | 6 => self.look_up_words::<BITS, _>(step, quad, &table.halves),
            _ if table.twos_complement => self.decode_integers(table, self.codes::<BITS>(step, quad)),
            _ => self.decode_8(table, self.codes::<BITS>(step, quad)),
        }
    }
    #[inline(always)]
    fn pack_pairs<const BITS: usize>(self, pairs: __m512i, to: &mut [u8]) {
        let to = to[..4 * BITS].as_mut_ptr();
        // SAFETY: `self` proves AVX-512; as many bytes are written as were checked to be there.
        unsafe {
            match BITS {
                4 => _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(pairs)),
                6 => {
                    // Two pairs to the low three bytes of eight, those of two such to the low six of sixteen, and the words of
                    // these side by side.
                    let fours = _mm512_or_si512(pairs, _mm512_srli_epi64::<20>(pairs));
                    let sixes = _mm_setr_epi8(0, 1, 2, 8, 9, 10, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
                    let sixes = _mm512_shuffle_epi8(fours, _mm512_broadcast_i32x4(sixes));
                    let order = const {
                        let mut order = [0u16; 2 * LANES];
                        let mut i = 0;
                        while i < 12 {
                            order[i] = (i / 3 * 8 + i % 3) as u16;
                            i += 1;
                        }
                        order
                    };
                    let words = _mm512_permutexvar_epi16(_mm512_loadu_si512(order.as_ptr().cast()), sixes);
                    _mm_storeu_si128(to.cast(), _mm512_castsi512_si128(words));
                    _mm_storeu_si64(to.add(16), _mm512_extracti32x4_epi32::<1>(words));
                }
                _ => _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(pairs)),
            }
        }
    }
    #[inline(always)]
    fn above(self, x: &[f32; LANES], limit: f32) -> u16 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(self.load(x), self.splat(limit)) }
    }
    #[inline(always)]
    fn fetch<T>(self, at: &T) {
        // SAFETY: a prefetch of any address is harmless.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(at).cast()) }
    }
    #[inline(always)]
    fn prefetch_ahead<T>(self, here: &T, ahead: [usize; 2]) {
        prefetch_ahead(here, ahead);
    }
    #[inline(always)]
    fn largest(self, x: __m512i) -> u32 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_reduce_max_epu32(x) }
    }
    #[inline(always)]
    fn exceeds(self, x: __m512i, limit: u32) -> bool {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cmpgt_epu32_mask(x, self.splat_pairs(limit)) != 0 }
    }
    #[inline(always)]
    fn across_rows(
        self,
        rows: impl Fn(usize) -> __m512i,
        join: impl Fn(__m512i, __m512i) -> __m512i,
    ) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let mut four_lanes = [_mm512_setzero_si512(); 4];
            for (r, four_lanes) in four_lanes.iter_mut().enumerate() {
                let [a, b, c, d] = [rows(r), rows(r + 4), rows(r + 8), rows(r + 12)];
                // Halves of a with halves of b, ...
                let eight = join(_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
                let other = join(_mm512_shuffle_i32x4::<0x44>(c, d), _mm512_shuffle_i32x4::<0xEE>(c, d));
                // ... then quarters, so that each quarter of the result belongs to one row.
                *four_lanes = join(_mm512_shuffle_i32x4::<0x88>(eight, other), _mm512_shuffle_i32x4::<0xDD>(eight, other));
            }
            let [a, b, c, d] = four_lanes;
            let two = join(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
            let other = join(_mm512_unpacklo_epi64(c, d), _mm512_unpackhi_epi64(c, d));
            let [two, other] = [self.with_bits(two), self.with_bits(other)];
            let (even, odd) = (_mm512_shuffle_ps::<0x88>(two, other), _mm512_shuffle_ps::<0xDD>(two, other));
            join(self.bits(even), self.bits(odd))
        }
    }
    #[inline(always)]
    fn largest_magnitudes(self, rows: impl Fn(usize) -> __m512i) -> __m512i {
        let magnitudes = self.splat_pairs(0x7FFF_7FFF);
        // Words, of which two are left in every lane.
        let words = self.across_rows(
            #[inline(always)]
            |r| self.and(rows(r), magnitudes),
            // SAFETY: `self` proves AVX-512.
            #[inline(always)]
            |a, b| unsafe { _mm512_max_epu16(a, b) },
        );
        let high = self.and(words, self.splat_pairs(0xFFFF_0000));
        self.max_bits(high, self.shift_left(words, 16))
    }
    #[inline(always)]
    fn join(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let odd_words = self.load_pairs(const { &odd_words() });
            _mm512_permutex2var_epi16(_mm512_castps_si512(first), odd_words, _mm512_castps_si512(second))
        }
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
    fn takes_pairs_apart(self) -> bool {
        true
    }
    #[inline(always)]
    fn round(self, x: __m512, to: &mut [bf16; LANES]) {
        // SAFETY: `self` proves AVX-512; sixteen bf16 are 32 bytes.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), round_words::<false>(x));
        }
    }
    #[inline(always)]
    fn round_pairs<const FLUSH: bool>(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let (first, second) = (round_words::<FLUSH>(first), round_words::<FLUSH>(second));
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
        }
    }
    #[inline(always)]
    fn load_words(self, values: &[bf16]) -> __m512i {
        let values = &values[..values.len().min(LANES)];
        let mask = ((1u32 << values.len()) - 1) as u16;
        // SAFETY: `self` proves AVX-512; words of the mask are loaded, of which there are so many.
        unsafe { _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, values.as_ptr().cast())) }
    }
    #[inline(always)]
    fn floats_of(self, values: &[bf16; LANES]) -> __m512 {
        self.with_bits(self.shift_left(self.load_words(values), 16))
    }
    #[inline(always)]
    fn load_values(self, values: &[bf16]) -> __m512i {
        let some = u32::MAX.checked_shr(32u32.saturating_sub(values.len() as u32)).unwrap_or(0);
        // SAFETY: `self` proves AVX-512; of words that the mask leaves out nothing is read.
        unsafe { _mm512_maskz_loadu_epi16(some, values.as_ptr().cast()) }
    }
    #[inline(always)]
    fn exp_of_negative(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { exponential::exp_of_negative(x) }
    }
    #[inline(always)]
    fn exponentials(self, x: &mut [f32; LANES]) {
        // SAFETY: `self` proves AVX-512.
        unsafe { exponential::exponentials(x) }
    }
    #[inline(always)]
    fn gathers(self) -> bool {
        gathers_are_fast()
    }
    #[inline(always)]
    fn look_up(self, table: &[bf16; (1 << 16) + 1], x: &[bf16; LANES]) -> __m512 {
        // SAFETY: `self` proves AVX-512; sixteen bf16 are 256 bits, and of each look-up's 32 bits the second half is the next entry.
        unsafe {
            let numbers = _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast()));
            let found = _mm512_i32gather_epi32::<2>(numbers, table.as_ptr().cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(found))
        }
    }
    #[inline(always)]
    fn exponentials_over(self, largest: &OverLargest, x: &[f32; LANES]) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { exponential::looked_up(largest, x) }
    }
    #[inline(always)]
    fn mul_from(self, least: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512. NaN are multiplied.
        unsafe { _mm512_maskz_mul_ps(_mm512_cmp_ps_mask::<_CMP_NLT_UQ>(a, least), a, b) }
    }
    #[inline(always)]
    fn fma_near_zero(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        // In f64 there is nothing subnormal. The product of two bf16 is exact, and a sum that is not cannot become the middle between
        // two f32: it would take one of the summands to be half a unit in the last place of the other, or so near to that as
        // neither's 16 or 24 bits can tell.
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let [a, b, c] = [widened(a), widened(b), widened(c)];
            narrowed([_mm512_fmadd_pd(a[0], b[0], c[0]), _mm512_fmadd_pd(a[1], b[1], c[1])])
        }
    }
    #[inline(always)]
    fn powers(self, scales: &BlockScales) -> __m512 {
        // SAFETY: `self` proves AVX-512; a scale is one byte.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(scales.as_ptr().cast()));
            // Byte 0 is 2^-127, a subnormal number; 255 would be infinity.
            let powers = _mm512_max_epu32(_mm512_slli_epi32::<23>(bytes), _mm512_set1_epi32(1 << 22));
            let powers = _mm512_castsi512_ps(powers);
            // Everything as it is, but infinity with the bit that makes it NaN.
            _mm512_fixupimm_ps::<0>(powers, powers, _mm512_set1_epi32(0x1121_1111))
        }
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,fma")]
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}

/// Signed bytes in the low bits of two words.
#[inline(always)]
fn words_of([low, high]: [u32; 2]) -> u32 {
    u32::from(i16::from(low as i8).cast_unsigned()) | u32::from(i16::from(high as i8).cast_unsigned()) << 16
}

impl IntegerProducts for Avx512 {
    sums_of_32_bits!(__m512i);
    const DOTS_BYTES: bool = false;

    #[inline(always)]
    fn start(self, x: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> __m512i {
        let codes = self.codes::<BITS>(step, quad);
        // SAFETY: `self` proves AVX-512.
        unsafe {
            match BITS {
                4 => _mm512_shuffle_epi8(self.part(&table.biased, 0), _mm512_and_si512(codes, _mm512_set1_epi8(0x0F))),
                6 => {
                    // 128 and the value; for the other sign 256 less that.
                    let values = self.look_up_bytes_32(codes, &table.biased);
                    let negative = _mm512_test_epi8_mask(codes, _mm512_set1_epi8(0x20));
                    _mm512_mask_sub_epi8(values, negative, _mm512_setzero_si512(), values)
                }
                // Codes of 8 bits are two's complement here: flipping the sign bit adds 128.
                _ => _mm512_xor_si512(fours(codes), _mm512_set1_epi8(-128)),
            }
        }
    }
    #[inline(always)]
    fn dot_bytes(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // The machine's own sums of products of bytes saturate.
        let (even, odd) = (words_of([x, x >> 16]), words_of([x >> 8, x >> 24]));
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let sum = self.dot_integers(even, _mm512_and_si512(w, _mm512_set1_epi16(0xFF)), sum);
            self.dot_integers(odd, _mm512_srli_epi16::<8>(w), sum)
        }
    }
    #[inline(always)]
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        if BITS == 8 {
            return self.signed_words(self.codes::<BITS>(step, quad));
        }
        self.look_up_words::<BITS, _>(step, quad, &table.values)
    }
    #[inline(always)]
    fn dot_integers(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_add_epi32(sum, _mm512_madd_epi16(w, self.splat_pairs(x))) }
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
    #[inline(always)]
    fn settled_integers(self, x: __m512i) -> __m512i {
        self.bits(self.settled(self.with_bits(x)))
    }
}
