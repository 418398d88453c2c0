#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;
use std::sync::LazyLock;

use microscale_formats::E8M0;

use super::avx512::Avx512;
use super::codes::CodeTable;
use super::{LANES, Simd};

/// Proof of AVX-512 with VBMI and BF16, the latter adding in the canonical order.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Avx512Bf16> {
        static DETECTED: LazyLock<Option<Avx512Bf16>> = LazyLock::new(|| {
            let base = Avx512::detect()?;
            let has = is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bf16");
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
    fn decode<const BITS: usize>(self, table: &CodeTable, packed: &[u8; 64]) -> [__m512i; 2] {
        // SAFETY: `self` proves AVX-512 with VBMI; the loads lie within the 64 bytes and the tables.
        unsafe {
            let packed = packed.as_ptr();
            let at = |table: &[u8; 128], i: usize| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast());
            match BITS {
                4 => {
                    let bytes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(packed.cast()));
                    let nibbles = _mm512_or_si512(bytes, _mm512_slli_epi16::<4>(bytes));
                    let codes = _mm512_and_si512(nibbles, _mm512_set1_epi8(15));
                    // The tables of 4-bit codes repeat every 16 bytes.
                    let [low, high] = [at(&table.low, 0), at(&table.high, 0)];
                    interleave(_mm512_shuffle_epi8(low, codes), _mm512_shuffle_epi8(high, codes))
                }
                6 => {
                    // Eight codes lie in six bytes: spread those over eight, then cut at every sixth bit.
                    const SPREAD: [u8; 64] = {
                        let mut spread = [0; 64];
                        let mut i = 0;
                        while i < 64 {
                            spread[i] = if i % 8 < 6 { (i / 8 * 6 + i % 8) as u8 } else { 0 };
                            i += 1;
                        }
                        spread
                    };
                    let spread = _mm512_loadu_si512(SPREAD.as_ptr().cast());
                    let bytes = _mm512_permutexvar_epi8(spread, _mm512_loadu_si512(packed.cast()));
                    let cuts = _mm512_set1_epi64(0x2A24_1E18_120C_0600);
                    // Bits above the sixth are ignored by the look-up.
                    let codes = _mm512_multishift_epi64_epi8(cuts, bytes);
                    let [low, high] = [at(&table.low, 0), at(&table.high, 0)];
                    interleave(_mm512_permutexvar_epi8(codes, low), _mm512_permutexvar_epi8(codes, high))
                }
                _ => {
                    let codes = _mm512_loadu_si512(packed.cast());
                    let magnitudes = if table.twos_complement { _mm512_abs_epi8(codes) } else { codes };
                    // The look-up takes seven bits.
                    let look_up =
                        |table| _mm512_permutex2var_epi8(at(table, 0), magnitudes, at(table, 1));
                    let (mut low, mut high) = (look_up(&table.low), look_up(&table.high));
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
        }
    }
    #[inline(always)]
    fn prefetch(self, here: &[u8; 64]) {
        self.0.prefetch(here);
    }
    #[inline(always)]
    fn powers(self, scales: &[E8M0; LANES]) -> __m512 {
        self.0.powers(scales)
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,fma")]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}
