#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::asm;
use std::arch::x86_64::*;

use microscale_formats::ElementFormat;

use super::codes::{BlockScales, ByteTable, CodeTable, IntegerTable, ORDER, PairTable, SMALL_BIAS, StepCodes};
use super::scalar::Scalar;
use super::machine::subnormals_are_fast;
use super::{IntegerProducts, LANES, Simd};

/// Proof of AVX2 and FMA.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Avx2> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")).then_some(Avx2(()))
    }

    /// Entries `16 · i` to `16 · i + 15` of a table, in both halves of a register.
    #[inline(always)]
    fn part<const N: usize>(self, table: &[u8; N], i: usize) -> __m256i {
        // SAFETY: `self` proves AVX2; 16 bytes are loaded from 16.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_chunks::<16>().0[i].as_ptr().cast())) }
    }

    /// The values of 32 codes of 8 bits: of a sign and a magnitude the 16 smallest and the 16 largest looked up, the others a
    /// shift and a sum away ([`Middle`](codes::Middle)).
    #[inline(always)]
    fn decode_8(self, table: &CodeTable, codes: &[u8; 32]) -> [__m256i; 2] {
        let middle = &table.middle;
        // SAFETY: `self` proves AVX2; 32 bytes are loaded from 32.
        unsafe {
            let codes = _mm256_loadu_si256(codes.as_ptr().cast());
            if table.twos_complement {
                let zero = _mm256_setzero_si256();
                let (first, second) = (_mm256_unpacklo_epi8(zero, codes), _mm256_unpackhi_epi8(zero, codes));
                return [self.integer_pairs(table, first), self.integer_pairs(table, second)];
            }
            let magnitudes = _mm256_and_si256(codes, _mm256_set1_epi8(0x7F));
            let small = _mm256_cmpgt_epi8(_mm256_set1_epi8(0x10), magnitudes);
            let large = _mm256_cmpgt_epi8(magnitudes, _mm256_set1_epi8(0x6F));
            let up = _mm256_sll_epi16(magnitudes, _mm_cvtsi32_si128((middle.up & 0xFFFF) as i32));
            let down = _mm256_srl_epi16(magnitudes, _mm_cvtsi32_si128((middle.down & 0xFFFF) as i32));
            let mut low = _mm256_and_si256(up, _mm256_set1_epi32(middle.low as i32));
            let mut high = _mm256_add_epi8(_mm256_and_si256(down, _mm256_set1_epi32(middle.high as i32)), _mm256_set1_epi32(middle.base as i32));
            for (i, which) in [(0, small), (7, large)] {
                let looked_up = _mm256_shuffle_epi8(self.part(&table.halves.low, i), magnitudes);
                low = _mm256_blendv_epi8(low, looked_up, which);
                let looked_up = _mm256_shuffle_epi8(self.part(&table.halves.high, i), magnitudes);
                high = _mm256_blendv_epi8(high, looked_up, which);
            }
            high = _mm256_or_si256(high, _mm256_and_si256(codes, _mm256_set1_epi8(-128)));
            [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)]
        }
    }

    /// Codes in two's complement, in the top bytes of 16 bits each.
    #[inline(always)]
    fn integer_pairs(self, table: &CodeTable, words: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let unit = _mm256_castsi256_ps(_mm256_set1_epi32(i32::from(table.words[1]) << 16));
            let even = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(_mm256_slli_epi32::<16>(words)));
            let odd = _mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(words));
            let even = _mm256_castps_si256(_mm256_mul_ps(even, unit));
            let odd = _mm256_castps_si256(_mm256_mul_ps(odd, unit));
            _mm256_or_si256(_mm256_srli_epi32::<16>(even), odd)
        }
    }

    /// Half a quad of codes of 4 or 6 bits, a byte each; if `MASKED` with nothing above them.
    #[inline(always)]
    fn half_quad<const BITS: usize, const MASKED: bool>(self, step: StepCodes<'_>, quad: usize, half: usize) -> __m256i {
        // SAFETY: `self` proves AVX2; 32 bytes are loaded from 32. Shifts move bits between neighbouring bytes, to where they are
        // masked.
        unsafe {
            let load = |bytes: usize| _mm256_loadu_si256(half_line(step, bytes, half).as_ptr().cast());
            let masked = |x, mask| _mm256_and_si256(x, _mm256_set1_epi8(mask));
            match BITS {
                6 if !MASKED && quad % 4 < 3 => load(quad / 4 * 3 + quad % 4),
                4 if quad.is_multiple_of(2) => masked(load(quad / 2), 15),
                4 => masked(_mm256_srli_epi16::<4>(load(quad / 2)), 15),
                _ if quad % 4 < 3 => masked(load(quad / 4 * 3 + quad % 4), 63),
                _ => {
                    let first = quad / 4 * 3;
                    let low = masked(_mm256_srli_epi16::<6>(load(first)), 3);
                    let middle = masked(_mm256_srli_epi16::<4>(load(first + 1)), 12);
                    let high = masked(_mm256_srli_epi16::<2>(load(first + 2)), 48);
                    _mm256_or_si256(low, _mm256_or_si256(middle, high))
                }
            }
        }
    }

    /// One byte of the values of [`half_quad`](Self::half_quad)'s codes without their signs, which are their top bits if there are
    /// six.
    #[inline(always)]
    fn look_up<const BITS: usize, const N: usize>(self, table: &[u8; N], codes: __m256i) -> __m256i {
        // SAFETY: `self` proves AVX2.
        unsafe {
            // A look-up goes by the low four bits.
            let low = _mm256_shuffle_epi8(self.part(table, 0), codes);
            if BITS == 4 {
                return low;
            }
            // Bytes are chosen by their top bits: here the fifth.
            let upper = _mm256_slli_epi16::<3>(codes);
            _mm256_blendv_epi8(low, _mm256_shuffle_epi8(self.part(table, 1), codes), upper)
        }
    }

    /// Low and high bytes of values to pairs: those of the elements 0 and 1 of eight outputs, then of 2 and 3.
    #[inline(always)]
    fn pairs_of_bytes(self, low: __m256i, high: __m256i) -> [__m256i; 2] {
        const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
        // SAFETY: `self` proves AVX2.
        unsafe {
            let even = _mm256_set1_epi16(0xFF);
            let first = _mm256_or_si256(_mm256_and_si256(low, even), _mm256_slli_epi16::<8>(high));
            [first, _mm256_or_si256(_mm256_srli_epi16::<8>(low), _mm256_andnot_si256(even, high))]
        }
    }

    /// The values of half a quad of codes of 4 or 6 bits.
    #[inline(always)]
    fn decode_half<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize, half: usize) -> [__m256i; 2] {
        let codes = self.half_quad::<BITS, true>(step, quad, half);
        let PairTable { low, high, .. } = &table.halves;
        let (low, mut high) = (self.look_up::<BITS, _>(low, codes), self.look_up::<BITS, _>(high, codes));
        if BITS == 6 {
            // SAFETY: `self` proves AVX2.
            unsafe {
                let signs = _mm256_and_si256(_mm256_slli_epi16::<2>(codes), _mm256_set1_epi8(-128));
                high = _mm256_or_si256(high, signs);
            }
        }
        self.pairs_of_bytes(low, high)
    }

    /// The integers of half a quad of a packed step.
    #[inline(always)]
    fn integers_half<const BITS: usize>(
        self,
        IntegerTable { values, factors }: &IntegerTable,
        step: StepCodes<'_>,
        quad: usize,
        half: usize,
    ) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2; 32 bytes are loaded from 32.
        unsafe {
            let broadcast = |x: u32| _mm256_set1_epi32(x.cast_signed());
            match BITS {
                4 => {
                    let values = self.look_up::<4, _>(&values.low, self.half_quad::<4, true>(step, quad, half));
                    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(values)), _mm256_srai_epi16::<8>(values)]
                }
                6 => {
                    let codes = self.half_quad::<6, false>(step, quad, half);
                    let significands = _mm256_min_epu8(
                        _mm256_and_si256(codes, _mm256_set1_epi8(0x1F)),
                        _mm256_and_si256(_mm256_or_si256(codes, broadcast(factors.hidden)), broadcast(factors.significand)),
                    );
                    let exponents = _mm256_srl_epi16(codes, _mm_cvtsi32_si128(factors.fraction_bits as i32));
                    let exponents = _mm256_and_si256(exponents, broadcast(factors.exponent));
                    let powers = _mm256_shuffle_epi8(self.part(&factors.powers, 0), exponents);
                    // Of each two products one is of zero.
                    let even = _mm256_set1_epi16(0xFF);
                    [
                        products(_mm256_and_si256(significands, even), powers),
                        products(_mm256_andnot_si256(even, significands), powers),
                    ]
                }
                _ => {
                    let codes = _mm256_loadu_si256(half_line(step, quad, half).as_ptr().cast());
                    let zero = _mm256_setzero_si256();
                    [
                        _mm256_srai_epi16::<8>(_mm256_unpacklo_epi8(zero, codes)),
                        _mm256_srai_epi16::<8>(_mm256_unpackhi_epi8(zero, codes)),
                    ]
                }
            }
        }
    }

    /// The bytes of half a quad of a packed step, plus their bias.
    #[inline(always)]
    fn bytes_half<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize, half: usize) -> __m256i {
        // SAFETY: `self` proves AVX2; 32 bytes are loaded from 32.
        unsafe {
            if BITS == 8 {
                let codes = _mm256_loadu_si256(half_line(step, quad, half).as_ptr().cast());
                const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
                let order = _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15);
                let fours = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(order));
                // Codes of 8 bits are two's complement here: flipping the sign bit adds 128.
                return _mm256_xor_si256(fours, _mm256_set1_epi8(-128));
            }
            let codes = self.half_quad::<BITS, true>(step, quad, half);
            if BITS == 4 {
                return self.look_up::<4, _>(&table.small, codes);
            }
            let values = self.look_up::<BITS, _>(&table.biased, codes);
            // 128 and the value, which as a signed byte is not zero; for the other sign 256 less that.
            _mm256_sign_epi8(values, _mm256_or_si256(_mm256_slli_epi16::<2>(codes), _mm256_set1_epi8(1)))
        }
    }
}

/// What [`Simd::prefetch_ahead`] does on all of these machines.
#[inline(always)]
pub(super) fn prefetch_ahead<T>(here: &T, ahead: [usize; 2]) {
    let here = std::ptr::from_ref(here).cast::<i8>();
    // SAFETY: a prefetch of any address is harmless.
    unsafe {
        _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(ahead[0]));
        _mm_prefetch::<_MM_HINT_T1>(here.wrapping_add(ahead[1]));
    }
}

/// An instruction that is none, with two operands.
#[target_feature(enable = "avx2")]
#[inline]
fn settled([mut first, mut second]: [__m256; 2]) -> [__m256; 2] {
    // SAFETY: there is no instruction.
    unsafe {
        asm!(
            "/* {0} {1} */",
            inout(ymm_reg) first,
            inout(ymm_reg) second,
            options(nostack, preserves_flags),
        );
    }
    [first, second]
}

/// What scales in lanes of 32 bits stand for.
#[inline(always)]
fn powers(scales: __m256i) -> __m256 {
    // SAFETY: called with a proof of AVX2 at hand only.
    unsafe {
        // Byte 0 is 2^-127, a subnormal number; 255 would be infinity, and is NaN.
        let powers = _mm256_max_epu32(_mm256_slli_epi32::<23>(scales), _mm256_set1_epi32(1 << 22));
        let nan = _mm256_cmpeq_epi32(scales, _mm256_set1_epi32(255));
        _mm256_castsi256_ps(_mm256_or_si256(powers, _mm256_and_si256(nan, _mm256_set1_epi32(1 << 22))))
    }
}

/// Half a line of packed codes.
#[inline(always)]
fn half_line(step: StepCodes<'_>, line: usize, half: usize) -> &[u8; 32] {
    &step.line(line).as_chunks().0[half]
}

/// [`Simd::dot`] of half the lanes.
#[inline(always)]
fn dot_half(x: __m256i, w: __m256i, sum: __m256) -> __m256 {
    // SAFETY: called with a proof of AVX2 and FMA at hand only.
    unsafe {
        let mask = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
        let [high_x, high_w] = [_mm256_and_si256(x, mask), _mm256_and_si256(w, mask)];
        let [low_x, low_w] = [_mm256_slli_epi32::<16>(x), _mm256_slli_epi32::<16>(w)];
        let sum = _mm256_fmadd_ps(_mm256_castsi256_ps(high_x), _mm256_castsi256_ps(high_w), sum);
        _mm256_fmadd_ps(_mm256_castsi256_ps(low_x), _mm256_castsi256_ps(low_w), sum)
    }
}

impl Simd for Avx2 {
    type F32 = [__m256; 2];
    type Pairs = [__m256i; 2];
    const ROWS: usize = 2;
    type Words = Scalar;
    #[inline(always)]
    fn words(self) -> Option<Scalar> {
        None
    }

    #[inline(always)]
    fn settled(self, x: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX2.
        unsafe { settled(x) }
    }
    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F32 {
        // SAFETY: `self` proves AVX2; both halves lie within the sixteen floats.
        unsafe { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))] }
    }
    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        // SAFETY: as in `load`.
        unsafe {
            _mm256_storeu_ps(to.as_mut_ptr(), x[0]);
            _mm256_storeu_ps(to.as_mut_ptr().add(8), x[1]);
        }
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // SAFETY: `self` proves FMA.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    lanewise! { 2;
        add(a: F32, b: F32) -> F32 = _mm256_add_ps;
        sub(a: F32, b: F32) -> F32 = _mm256_sub_ps;
        max(a: F32, b: F32) -> F32 = _mm256_max_ps;
        bits(x: F32) -> Pairs = _mm256_castps_si256;
        with_bits(x: Pairs) -> F32 = _mm256_castsi256_ps;
        and(a: Pairs, b: Pairs) -> Pairs = _mm256_and_si256;
        or(a: Pairs, b: Pairs) -> Pairs = _mm256_or_si256;
        max_bits(a: Pairs, b: Pairs) -> Pairs = _mm256_max_epu32;
        min_bits(a: Pairs, b: Pairs) -> Pairs = _mm256_min_epu32;
        add_bits(a: Pairs, b: Pairs) -> Pairs = _mm256_add_epi32;
        sub_bits(a: Pairs, b: Pairs) -> Pairs = _mm256_sub_epi32;
    }
    #[inline(always)]
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_sll_epi32(x[0], _mm_cvtsi32_si128(by as i32)), _mm256_sll_epi32(x[1], _mm_cvtsi32_si128(by as i32))] }
    }
    #[inline(always)]
    fn across_rows(
        self,
        rows: impl Fn(usize) -> Self::Pairs,
        join: impl Fn(Self::Pairs, Self::Pairs) -> Self::Pairs,
    ) -> Self::Pairs {
        // SAFETY: `self` proves AVX2.
        unsafe {
            // The first eight rows are in the first register from here on, the others in the second.
            let mut four_lanes = [[_mm256_setzero_si256(); 2]; 4];
            for (r, four_lanes) in four_lanes.iter_mut().enumerate() {
                let [a, b] = [[rows(r), rows(r + 8)], [rows(r + 4), rows(r + 12)]];
                let a = join([a[0][0], a[1][0]], [a[0][1], a[1][1]]);
                let b = join([b[0][0], b[1][0]], [b[0][1], b[1][1]]);
                let low = [_mm256_permute2x128_si256::<0x20>(a[0], b[0]), _mm256_permute2x128_si256::<0x20>(a[1], b[1])];
                let high = [_mm256_permute2x128_si256::<0x31>(a[0], b[0]), _mm256_permute2x128_si256::<0x31>(a[1], b[1])];
                *four_lanes = join(low, high);
            }
            let [a, b, c, d] = four_lanes;
            let [mut two_lanes, mut other] = [[_mm256_setzero_si256(); 2]; 2];
            for (to, [a, b]) in [(&mut two_lanes, [a, b]), (&mut other, [c, d])] {
                let low = [_mm256_unpacklo_epi64(a[0], b[0]), _mm256_unpacklo_epi64(a[1], b[1])];
                let high = [_mm256_unpackhi_epi64(a[0], b[0]), _mm256_unpackhi_epi64(a[1], b[1])];
                *to = join(low, high);
            }
            let [a, b] = [self.with_bits(two_lanes), self.with_bits(other)];
            let even = [_mm256_shuffle_ps::<0x88>(a[0], b[0]), _mm256_shuffle_ps::<0x88>(a[1], b[1])];
            let odd = [_mm256_shuffle_ps::<0xDD>(a[0], b[0]), _mm256_shuffle_ps::<0xDD>(a[1], b[1])];
            join(self.bits(even), self.bits(odd))
        }
    }
    #[inline(always)]
    fn join(self, first: Self::F32, second: Self::F32) -> Self::Pairs {
        let [first, second] = [self.shift_right(self.bits(first), 16), self.shift_right(self.bits(second), 16)];
        // SAFETY: `self` proves AVX2.
        unsafe {
            // Packing takes a quarter of each in turn.
            [
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(first[0], first[1])),
                _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(second[0], second[1])),
            ]
        }
    }
    #[inline(always)]
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_srl_epi32(x[0], _mm_cvtsi32_si128(by as i32)), _mm256_srl_epi32(x[1], _mm_cvtsi32_si128(by as i32))] }
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u32; LANES]) -> Self::Pairs {
        // SAFETY: `self` proves AVX2; both halves lie within the sixteen words.
        unsafe { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x.as_ptr().add(8).cast())] }
    }
    #[inline(always)]
    fn store_pairs(self, x: Self::Pairs, to: &mut [u32; LANES]) {
        // SAFETY: as in `load_pairs`.
        unsafe {
            _mm256_storeu_si256(to.as_mut_ptr().cast(), x[0]);
            _mm256_storeu_si256(to.as_mut_ptr().add(8).cast(), x[1]);
        }
    }
    #[inline(always)]
    fn splat_pairs(self, x: u32) -> Self::Pairs {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_epi32(x as i32); 2] }
    }
    #[inline(always)]
    fn dot(self, x: Self::Pairs, w: Self::Pairs, sum: Self::F32) -> Self::F32 {
        [dot_half(x[0], w[0], sum[0]), dot_half(x[1], w[1], sum[1])]
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2] {
        if BITS == 8 {
            let first = self.decode_8(table, half_line(step, quad, 0));
            let second = self.decode_8(table, half_line(step, quad, 1));
            return [[first[0], second[0]], [first[1], second[1]]];
        }
        let first = self.decode_half::<BITS>(table, step, quad, 0);
        let second = self.decode_half::<BITS>(table, step, quad, 1);
        [[first[0], second[0]], [first[1], second[1]]]
    }
    fn takes_codes_for_floats(self, element: ElementFormat) -> bool {
        // Subnormal codes are subnormal numbers: hardly ever in formats of many exponents, often in others.
        element.bits() == 8 || subnormals_are_fast()
    }
    #[inline(always)]
    fn floats_of_codes<const BITS: usize>(self, fraction_bits: u32, step: StepCodes<'_>, quad: usize) -> [[Self::F32; 2]; 2] {
        // The sign stays at the top, the magnitude moves from below it to where an `f32` has it.
        let (by, magnitude) = (9 - BITS as i32 + fraction_bits as i32, (1u32 << (BITS - 1)) - 1);
        let kept = 1 << 31 | magnitude << (23 - fraction_bits);
        // SAFETY: `self` proves AVX2; 32 bytes are loaded from 32.
        unsafe {
            let (by, kept) = (_mm_cvtsi32_si128(by), _mm256_set1_epi32(kept.cast_signed()));
            let float = |top| _mm256_castsi256_ps(_mm256_and_si256(_mm256_sra_epi32(top, by), kept));
            if BITS == 8 {
                let zero = _mm256_setzero_si256();
                let first = _mm256_loadu_si256(half_line(step, quad, 0).as_ptr().cast());
                let second = _mm256_loadu_si256(half_line(step, quad, 1).as_ptr().cast());
                // Two codes to a lane, the odd element's at the top.
                let [a, b] = [_mm256_unpacklo_epi8(zero, first), _mm256_unpacklo_epi8(zero, second)];
                let [c, d] = [_mm256_unpackhi_epi8(zero, first), _mm256_unpackhi_epi8(zero, second)];
                let even = |low| float(_mm256_slli_epi32::<16>(low));
                return [[[float(a), float(b)], [even(a), even(b)]], [[float(c), float(d)], [even(c), even(d)]]];
            }
            // Four codes to a lane, each in the low six bits of a byte.
            const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
            let a = self.half_quad::<BITS, false>(step, quad, 0);
            let b = self.half_quad::<BITS, false>(step, quad, 1);
            [
                [
                    [float(_mm256_slli_epi32::<10>(a)), float(_mm256_slli_epi32::<10>(b))],
                    [float(_mm256_slli_epi32::<26>(a)), float(_mm256_slli_epi32::<26>(b))],
                ],
                [
                    [float(_mm256_slli_epi32::<2>(a)), float(_mm256_slli_epi32::<2>(b))],
                    [float(_mm256_slli_epi32::<18>(a)), float(_mm256_slli_epi32::<18>(b))],
                ],
            ]
        }
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
    fn powers(self, scales: &BlockScales) -> Self::F32 {
        // SAFETY: `self` proves AVX2; a scale is one byte.
        unsafe {
            let bytes = _mm_loadu_si128(scales.as_ptr().cast());
            [powers(_mm256_cvtepu8_epi32(bytes)), powers(_mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)))]
        }
    }
    #[inline(always)]
    fn normal_powers(self, scales: &BlockScales) -> Self::F32 {
        let (first, second) = (scales.as_ptr(), scales[LANES / 2..].as_ptr());
        // SAFETY: `self` proves AVX2; a scale is one byte, and eight are loaded from eight.
        unsafe {
            let exponents = [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(first.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(second.cast())),
            ];
            self.with_bits(self.shift_left(exponents, 23))
        }
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx2,fma")]
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves AVX2 and FMA.
        unsafe { run(f) }
    }
}

/// The sums of each two neighbouring products of unsigned bytes with signed ones.
#[inline(always)]
fn products(w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: called with a proof of AVX2 at hand only.
    unsafe { _mm256_maddubs_epi16(w, x) }
}

impl IntegerProducts for Avx2 {
    type I32 = [__m256i; 2];
    type Short = [__m256i; 2];
    const SHORT: i32 = i16::MAX as i32;
    const BIAS_OF_4_BITS: i32 = SMALL_BIAS;
    const DOTS_BYTES: bool = true;

    #[inline(always)]
    fn start(self, x: i32) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> [__m256i; 2] {
        [self.bytes_half::<BITS>(table, step, quad, 0), self.bytes_half::<BITS>(table, step, quad, 1)]
    }
    #[inline(always)]
    fn dot_bytes(self, x: u32, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        let x = self.splat_pairs(x);
        self.long([products(w[0], x[0]), products(w[1], x[1])], sum)
    }
    #[inline(always)]
    fn short(self, _: [__m256i; 2]) -> [__m256i; 2] {
        self.splat_pairs(0)
    }
    #[inline(always)]
    fn dot_bytes_short(self, x: u32, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        let x = self.splat_pairs(x);
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_add_epi16(sum[0], products(w[0], x[0])), _mm256_add_epi16(sum[1], products(w[1], x[1]))] }
    }
    #[inline(always)]
    fn long(self, short: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(short[0], ones)),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(short[1], ones)),
            ]
        }
    }
    #[inline(always)]
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [[__m256i; 2]; 2] {
        let first = self.integers_half::<BITS>(table, step, quad, 0);
        let second = self.integers_half::<BITS>(table, step, quad, 1);
        [[first[0], second[0]], [first[1], second[1]]]
    }
    #[inline(always)]
    fn dot_integers(self, x: u32, w: [__m256i; 2], sum: [__m256i; 2]) -> [__m256i; 2] {
        let x = self.splat_pairs(x);
        // SAFETY: `self` proves AVX2.
        unsafe {
            [
                _mm256_add_epi32(sum[0], _mm256_madd_epi16(w[0], x[0])),
                _mm256_add_epi32(sum[1], _mm256_madd_epi16(w[1], x[1])),
            ]
        }
    }
    #[inline(always)]
    fn float(self, x: [__m256i; 2]) -> [__m256; 2] {
        // SAFETY: `self` proves AVX2.
        unsafe { [_mm256_cvtepi32_ps(x[0]), _mm256_cvtepi32_ps(x[1])] }
    }
    #[inline(always)]
    fn settled_short(self, x: [__m256i; 2]) -> [__m256i; 2] {
        self.settled_integers(x)
    }
    #[inline(always)]
    fn settled_integers(self, x: [__m256i; 2]) -> [__m256i; 2] {
        self.bits(self.settled(self.with_bits(x)))
    }
}
