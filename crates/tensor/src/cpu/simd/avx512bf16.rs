#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use half::bf16;
use microscale_formats::E8M0;

use super::avx512::Avx512;
use super::codes::{CodeTable, PairTable, QUAD};
use super::{IntegerProducts, LANES, Simd, Words};

/// Proof of AVX-512 with VBMI, VNNI and BF16, the latter adding in the canonical order.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Avx512Bf16> {
        static DETECTED: LazyLock<Option<Avx512Bf16>> = LazyLock::new(|| {
            let base = Avx512::detect()?;
            let has = is_x86_feature_detected!("avx512vbmi")
                && is_x86_feature_detected!("avx512bf16")
                && is_x86_feature_detected!("avx512vnni");
            has.then_some(Avx512Bf16(base)).filter(|simd| simd.adds_in_order())
        });
        *DETECTED
    }

    /// Whether the machine's dot product equals two fused multiply-adds, the high elements first. Its maker's manual
    /// says so of this order only in pseudo-code, so it is tried on products whose sum depends on it.
    fn adds_in_order(self) -> bool {
        let mut state = 0x2545_F491_4F6C_DD1Du64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            // Two bf16 of random sign and fraction, with exponents between -12 and 12.
            let half = |bits: u64| (bits & 0x807F) as u32 | (115 + (bits >> 16) as u32 % 25) << 7;
            half(state) | half(state >> 32) << 16
        };
        (0..512).all(|_| {
            let (x, w): ([u32; LANES], [u32; LANES]) = (std::array::from_fn(|_| next()), std::array::from_fn(|_| next()));
            let sum: [f32; LANES] = std::array::from_fn(|_| f32::from_bits(next()));
            let (mut found, mut expected) = ([0f32; LANES], [0f32; LANES]);
            self.vectorize(|| {
                let (x, w, sum) = (self.load_pairs(&x), self.load_pairs(&w), self.load(&sum));
                self.store(self.dot(x, w, sum), &mut found);
                self.0.store(self.0.dot(x, w, sum), &mut expected);
            });
            found.map(f32::to_bits) == expected.map(f32::to_bits)
        })
    }
}

impl Avx512Bf16 {
    /// The codes of a quad, a byte each; of codes of 4 and 6 bits those lowest bits only count.
    #[inline(always)]
    fn codes<const BITS: usize>(self, step: &[u8], quad: usize) -> __m512i {
        let step: &[[u8; QUAD]] = step.as_chunks().0;
        // SAFETY: `self` proves AVX-512; 64 bytes are loaded from 64.
        let load = |i: usize| unsafe { _mm512_loadu_si512(step[i].as_ptr().cast()) };
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
}

/// The values of 64 codes, of which the low six bits count, from the first 64 entries of a table. Tables of codes of four
/// bits repeat every 16.
#[inline(always)]
fn look_up_pairs<const N: usize>(codes: __m512i, low: &[u8; N], high: &[u8; N]) -> [__m512i; 2] {
    const { assert!(N >= 64) };
    // SAFETY: called with a proof of AVX-512 with VBMI at hand only; the loads lie within the tables.
    unsafe {
        let (low, high) = (_mm512_loadu_si512(low.as_ptr().cast()), _mm512_loadu_si512(high.as_ptr().cast()));
        interleave(_mm512_permutexvar_epi8(codes, low), _mm512_permutexvar_epi8(codes, high))
    }
}

/// Low and high bytes of 64 values to two vectors of pairs.
#[inline(always)]
fn interleave(low: __m512i, high: __m512i) -> [__m512i; 2] {
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe { [_mm512_unpacklo_epi8(low, high), _mm512_unpackhi_epi8(low, high)] }
}

impl Simd for Avx512Bf16 {
    type F32 = __m512;
    type Pairs = __m512i;
    const ROWS: usize = 8;

    #[inline(always)]
    fn splat(self, x: f32) -> __m512 {
        self.0.splat(x)
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> __m512 {
        self.0.load(x)
    }
    #[inline(always)]
    fn store(self, x: __m512, to: &mut [f32; LANES]) {
        self.0.store(x, to);
    }
    #[inline(always)]
    fn mul(self, a: __m512, b: __m512) -> __m512 {
        self.0.mul(a, b)
    }
    #[inline(always)]
    fn fma(self, a: __m512, b: __m512, c: __m512) -> __m512 {
        self.0.fma(a, b, c)
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.0.add(a, b)
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.0.sub(a, b)
    }
    #[inline(always)]
    fn and(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.and(a, b)
    }
    #[inline(always)]
    fn or(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.or(a, b)
    }
    #[inline(always)]
    fn max_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.max_bits(a, b)
    }
    #[inline(always)]
    fn min_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.min_bits(a, b)
    }
    #[inline(always)]
    fn add_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.add_bits(a, b)
    }
    #[inline(always)]
    fn sub_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        self.0.sub_bits(a, b)
    }
    #[inline(always)]
    fn bits(self, x: Self::F32) -> Self::Pairs {
        self.0.bits(x)
    }
    #[inline(always)]
    fn with_bits(self, x: Self::Pairs) -> Self::F32 {
        self.0.with_bits(x)
    }
    #[inline(always)]
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        self.0.shift_left(x, by)
    }
    #[inline(always)]
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        self.0.shift_right(x, by)
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u32; LANES]) -> __m512i {
        self.0.load_pairs(x)
    }
    #[inline(always)]
    fn store_pairs(self, x: __m512i, to: &mut [u32; LANES]) {
        self.0.store_pairs(x, to);
    }
    #[inline(always)]
    fn splat_pairs(self, x: u32) -> __m512i {
        self.0.splat_pairs(x)
    }
    #[inline(always)]
    fn dot(self, x: __m512i, w: __m512i, sum: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 BF16; both types are 512 bits of bf16 pairs.
        unsafe { _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(w)) }
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: &[u8], quad: usize) -> [__m512i; 2] {
        let codes = self.codes::<BITS>(step, quad);
        let PairTable { low, high } = &table.halves;
        if BITS < 8 {
            return look_up_pairs(codes, low, high);
        }
        // SAFETY: `self` proves AVX-512 with VBMI; the loads lie within the tables.
        unsafe {
            let at = |table: &[u8; 128], i: usize| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast());
            let magnitudes = if table.twos_complement { _mm512_abs_epi8(codes) } else { codes };
            // The look-up takes seven bits.
            let look_up = |table| _mm512_permutex2var_epi8(at(table, 0), magnitudes, at(table, 1));
            let (mut low, mut high) = (look_up(low), look_up(high));
            // high | (codes & sign bit)
            high = _mm512_ternarylogic_epi32::<0xF8>(high, codes, _mm512_set1_epi8(-128));
            if table.twos_complement {
                let most_negative = _mm512_cmpeq_epi8_mask(codes, _mm512_set1_epi8(-128));
                let word = table.words[128].to_le_bytes().map(|b| _mm512_set1_epi8(b as i8));
                low = _mm512_mask_mov_epi8(low, most_negative, word[0]);
                high = _mm512_mask_mov_epi8(high, most_negative, word[1]);
            }
            interleave(low, high)
        }
    }
    #[inline(always)]
    fn pack_pairs<const BITS: usize>(self, pairs: __m512i, to: &mut [u8]) {
        let to = to[..4 * BITS].as_mut_ptr();
        // SAFETY: `self` proves AVX-512 with VBMI; as many bytes are written as were checked to be there.
        unsafe {
            match BITS {
                4 => _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(pairs)),
                6 => {
                    // Two pairs to the low three bytes of eight, then the three of each side by side.
                    let fours = _mm512_or_si512(pairs, _mm512_srli_epi64::<20>(pairs));
                    let order = const {
                        let mut order = [0u8; 64];
                        let mut i = 0;
                        while i < 24 {
                            order[i] = (i / 3 * 8 + i % 3) as u8;
                            i += 1;
                        }
                        order
                    };
                    let bytes = _mm512_permutexvar_epi8(_mm512_loadu_si512(order.as_ptr().cast()), fours);
                    _mm256_mask_storeu_epi8(to.cast(), 0xFF_FFFF, _mm512_castsi512_si256(bytes));
                }
                _ => _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(pairs)),
            }
        }
    }
    #[inline(always)]
    fn fetch<T>(self, at: &T) {
        self.0.fetch(at);
    }
    #[inline(always)]
    fn prefetch_past<T>(self, here: &T, skips: [usize; 2]) {
        self.0.prefetch_past(here, skips);
    }
    #[inline(always)]
    fn above(self, x: &[f32; LANES], limit: f32) -> u16 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cmp_ps_mask::<_CMP_NLE_UQ>(self.load(x), self.splat(limit)) }
    }
    #[inline(always)]
    fn largest(self, x: __m512i) -> u32 {
        self.0.largest(x)
    }
    #[inline(always)]
    fn bit_or(self, x: __m512i) -> u32 {
        self.0.bit_or(x)
    }
    #[inline(always)]
    fn total(self, x: __m512) -> f32 {
        self.0.total(x)
    }
    #[inline(always)]
    fn round(self, x: __m512, to: &mut [bf16; LANES]) {
        self.0.round(x, to);
    }
    #[inline(always)]
    fn powers(self, scales: &[E8M0; LANES]) -> __m512 {
        self.0.powers(scales)
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx512vnni,fma")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}

impl IntegerProducts for Avx512Bf16 {
    type I32 = __m512i;

    #[inline(always)]
    fn start(self, x: i32) -> __m512i {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_set1_epi32(x) }
    }
    #[inline(always)]
    fn bytes<const BITS: usize>(self, table: &[u8; 256], step: &[u8], quad: usize) -> __m512i {
        let codes = self.codes::<BITS>(step, quad);
        // SAFETY: `self` proves AVX-512 with VBMI; the load lies within the table.
        unsafe {
            // Two pairs of four outputs to four elements of each.
            let order = _mm512_broadcast_i32x4(_mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15));
            let codes = _mm512_shuffle_epi8(codes, order);
            match BITS {
                // Codes of 8 bits are two's complement here: flipping the sign bit adds 128.
                8 => _mm512_xor_si512(codes, _mm512_set1_epi8(-128)),
                _ => _mm512_permutexvar_epi8(codes, _mm512_loadu_si512(table.as_ptr().cast())),
            }
        }
    }
    #[inline(always)]
    fn dot_bytes(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, w, _mm512_set1_epi32(x as i32)) }
    }
    #[inline(always)]
    fn integers<const BITS: usize>(self, table: &PairTable<64>, step: &[u8], quad: usize) -> [__m512i; 2] {
        look_up_pairs(self.codes::<BITS>(step, quad), &table.low, &table.high)
    }
    #[inline(always)]
    fn dot_integers(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpwssd_epi32(sum, w, self.splat_pairs(x)) }
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        // SAFETY: `self` proves AVX-512.
        unsafe { _mm512_cvtepi32_ps(x) }
    }
}

impl Words for Avx512Bf16 {
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
    fn largest_word(self, x: __m512i) -> u16 {
        // SAFETY: `self` proves AVX-512.
        unsafe {
            let half = _mm256_max_epu16(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64::<1>(x));
            let quarter = _mm_max_epu16(_mm256_castsi256_si128(half), _mm256_extracti128_si256::<1>(half));
            // The machine finds the smallest of eight.
            let least = _mm_minpos_epu16(_mm_xor_si128(quarter, _mm_set1_epi16(-1)));
            !(_mm_cvtsi128_si32(least) as u16)
        }
    }
}
