#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::asm;
use std::arch::x86_64::*;
use std::sync::LazyLock;

use half::bf16;

use super::avx512::{Avx512, avx512_methods, interleave};
use super::avx512vnni::Avx512Vnni;
use super::codes::{BlockScales, ByteTable, CodeTable, IntegerTable, PairTable, StepCodes};
use super::machine::pairs_are_slow;
use super::{IntegerProducts, LANES, OverLargest, Simd};

/// Proof of AVX-512 with VBMI, VNNI and BF16, the latter adding in the canonical order.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Bf16(Avx512Vnni);

impl Avx512Bf16 {
    pub(super) fn detect() -> Option<Avx512Bf16> {
        static DETECTED: LazyLock<Option<Avx512Bf16>> = LazyLock::new(|| {
            let vnni = Avx512Vnni::detect()?;
            let has = is_x86_feature_detected!("avx512vbmi") && is_x86_feature_detected!("avx512bf16");
            has.then_some(Avx512Bf16(vnni)).filter(|simd| simd.adds_in_order())
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

/// The class of subnormal numbers, as `vfpclassps` counts.
const SUBNORMAL: i32 = 0x20;

/// Subnormal numbers whose nearest bf16 is normal, as that; all others as they are.
#[inline(always)]
fn up_to_normal(x: __m512) -> __m512 {
    const LEAST: f32 = f32::from_bits(f32::MIN_POSITIVE.to_bits() - 0x8000);
    // SAFETY: called with a proof of AVX-512 at hand only.
    unsafe {
        let normal = _mm512_set1_ps(f32::MIN_POSITIVE);
        _mm512_mask_max_ps(x, _mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, _mm512_set1_ps(LEAST)), x, normal)
    }
}

/// Sixteen bf16 of 32, so that each becomes an f32. Of the intrinsic the compiler makes two instructions, the mask being known to it.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[inline]
fn spread(words: __m512i, places: &[u8; 64]) -> __m512i {
    // SAFETY: registers in, registers out; 64 bytes are loaded from 64.
    unsafe {
        let (mut spread, places) = (words, _mm512_loadu_si512(places.as_ptr().cast()));
        asm!(
            "vpermb {spread} {{{mask}}} {{z}}, {places}, {spread}",
            spread = inout(zmm_reg) spread,
            places = in(zmm_reg) places,
            mask = in(kreg) 0xCCCC_CCCC_CCCC_CCCCu64,
            options(pure, nomem, nostack, preserves_flags),
        );
        spread
    }
}

/// By byte of sixteen f32, where in 32 bf16 the byte of one of the first sixteen, or of the others, is to be found.
static HIGH_BYTES: [[u8; 64]; 2] = {
    let mut places = [[0; 64]; 2];
    let mut i = 0;
    while i < 64 {
        places[0][i] = (i / 4 * 2 + i % 2) as u8;
        places[1][i] = 32 + places[0][i];
        i += 1;
    }
    places
};

impl Simd for Avx512Bf16 {
    const READS_TOGETHER: bool = true;
    avx512_methods!();

    #[inline(always)]
    fn dot(self, x: __m512i, w: __m512i, sum: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 BF16; both types are 512 bits of bf16 pairs.
        unsafe { _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(w), std::mem::transmute::<__m512i, __m512bh>(x)) }
    }
    #[inline(always)]
    fn takes_pairs_apart(self) -> bool {
        pairs_are_slow()
    }
    #[inline(always)]
    fn round(self, x: __m512, to: &mut [bf16; LANES]) {
        // SAFETY: `self` proves AVX-512 BF16; sixteen bf16 are 256 bits.
        unsafe {
            // The machine takes subnormal numbers for zero.
            if _mm512_fpclass_ps_mask::<SUBNORMAL>(x) != 0 {
                return self.0.round(x, to);
            }
            _mm256_storeu_si256(to.as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)));
        }
    }
    #[inline(always)]
    fn rounded(self, x: __m512) -> __m512 {
        // SAFETY: `self` proves AVX-512 BF16; both types are 256 bits of bf16.
        unsafe {
            let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(halves)))
        }
    }
    #[inline(always)]
    fn both_rounded(self, [a, b]: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: `self` proves AVX-512 BF16 and VBMI; both types are 512 bits of bf16.
        unsafe {
            let words = std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(b, a));
            let [low, high] = [&HIGH_BYTES[0], &HIGH_BYTES[1]];
            [_mm512_castsi512_ps(spread(words, low)), _mm512_castsi512_ps(spread(words, high))]
        }
    }
    #[inline(always)]
    fn nearest_normal(self, [a, b]: [__m512; 2]) -> [__m512; 2] {
        self.both_rounded([up_to_normal(a), up_to_normal(b)])
    }
    #[inline(always)]
    fn round_pairs<const FLUSH: bool>(self, mut first: __m512, mut second: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512 BF16; both types are 512 bits of bf16.
        unsafe {
            // The machine takes subnormal numbers for zero, before it rounds.
            if FLUSH {
                [first, second] = [up_to_normal(first), up_to_normal(second)];
            } else if (_mm512_fpclass_ps_mask::<SUBNORMAL>(first) | _mm512_fpclass_ps_mask::<SUBNORMAL>(second)) != 0 {
                return self.0.round_pairs::<FLUSH>(first, second);
            }
            std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first))
        }
    }
    #[inline(always)]
    fn round_normal_pairs(self, first: __m512, second: __m512) -> __m512i {
        // SAFETY: `self` proves AVX-512 BF16; both types are 512 bits of bf16.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first)) }
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        if BITS < 8 {
            return self.0.decode::<BITS>(table, step, quad);
        }
        let codes = self.0.base().codes::<BITS>(step, quad);
        let PairTable { low, high, .. } = &table.halves;
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
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16,avx512vnni,fma")]
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}

impl IntegerProducts for Avx512Bf16 {
    sums_of_32_bits!(__m512i);
    const DOTS_BYTES: bool = true;

    #[inline(always)]
    fn start(self, x: i32) -> __m512i {
        self.0.start(x)
    }
    #[inline(always)]
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> __m512i {
        if BITS == 8 {
            return self.0.bytes::<BITS>(table, step, quad);
        }
        let codes = self.0.base().codes::<BITS>(step, quad);
        // SAFETY: `self` proves AVX-512 with VBMI; the load lies within the table.
        unsafe { _mm512_permutexvar_epi8(codes, _mm512_loadu_si512(table.biased.as_ptr().cast())) }
    }
    #[inline(always)]
    fn dot_bytes(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        self.0.dot_bytes(x, w, sum)
    }
    #[inline(always)]
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        self.0.integers::<BITS>(table, step, quad)
    }
    #[inline(always)]
    fn dot_integers(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        self.0.dot_integers(x, w, sum)
    }
    #[inline(always)]
    fn float(self, x: __m512i) -> __m512 {
        self.0.float(x)
    }
    #[inline(always)]
    fn settled_integers(self, x: __m512i) -> __m512i {
        self.0.settled_integers(x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::scalar;

    /// The same on this instruction set as on none.
    fn compare<S: Simd, const FLUSH: bool>(simd: S, numbers: &[[f32; LANES]; 2]) {
        let (mut found, mut expected) = ([0; LANES], [0; LANES]);
        simd.vectorize(|| {
            simd.store_pairs(simd.round_pairs::<FLUSH>(simd.load(&numbers[0]), simd.load(&numbers[1])), &mut found);
        });
        let scalar = scalar();
        let pairs = scalar.round_pairs::<FLUSH>(scalar.load(&numbers[0]), scalar.load(&numbers[1]));
        scalar.store_pairs(pairs, &mut expected);
        assert_eq!(found, expected, "{numbers:?}");
    }

    /// With subnormal numbers, those next to normal ones, and NaN among them.
    #[test]
    fn pairs_are_rounded_alike() {
        let Some(simd) = Avx512Bf16::detect() else { return };
        let ends =
            [0, 1, 0x007F_7FFF, 0x007F_8000, 0x007F_8001, 0x007F_FFFF, 0x0080_0000, 0x7F80_0000, 0x7FC0_0000, 0x7FFF_FFFF];
        let from = |bits: u32| std::array::from_fn(|i| f32::from_bits(bits + 0x1235 * i as u32));
        for (round, bits) in (0..0x3F80_0000).step_by(0x1_2347).enumerate() {
            let mut numbers = [from(bits), from(bits + 0x20_0001)];
            for _ in 0..2 {
                compare::<_, true>(simd, &numbers);
                compare::<_, false>(simd, &numbers);
                compare::<_, true>(simd.0, &numbers);
                compare::<_, false>(simd.0, &numbers);
                numbers[round % 2][round % LANES] = f32::from_bits(ends[round / 2 % ends.len()]);
            }
        }
    }
}
