#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::asm;
use std::arch::x86_64::*;

use half::bf16;

use super::avx512::{Avx512, avx512_methods};
use super::codes::{BlockScales, ByteTable, CodeTable, IntegerTable, StepCodes};
use super::{IntegerProducts, LANES, OverLargest, Simd};

/// Proof of AVX-512 with VNNI: sums of products of integers in one instruction.
#[derive(Clone, Copy)]
pub(crate) struct Avx512Vnni(Avx512);

impl Avx512Vnni {
    pub(super) fn detect() -> Option<Avx512Vnni> {
        Avx512::detect().filter(|_| is_x86_feature_detected!("avx512vnni")).map(Avx512Vnni)
    }

    /// The proof of what it adds to.
    #[inline(always)]
    pub(super) fn base(self) -> Avx512 {
        self.0
    }
}

/// `vpdpwssd`. Of the intrinsic the compiler makes two instructions where a sum waits for the one before; here others are
/// always at hand to fill the time, so one takes less.
#[target_feature(enable = "avx512f,avx512vnni")]
#[inline]
fn dot_words(mut sum: __m512i, w: __m512i, x: __m512i) -> __m512i {
    // SAFETY: registers in, registers out.
    unsafe {
        asm!(
            "vpdpwssd {sum}, {w}, {x}",
            sum = inout(zmm_reg) sum,
            w = in(zmm_reg) w,
            x = in(zmm_reg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

impl Simd for Avx512Vnni {
    avx512_methods!();

    #[inline(always)]
    fn dot(self, x: __m512i, w: __m512i, sum: __m512) -> __m512 {
        self.0.dot(x, w, sum)
    }
    #[inline(always)]
    fn takes_pairs_apart(self) -> bool {
        true
    }
    #[inline(always)]
    fn round(self, x: __m512, to: &mut [bf16; LANES]) {
        self.0.round(x, to);
    }
    #[inline(always)]
    fn round_pairs<const FLUSH: bool>(self, first: __m512, second: __m512) -> __m512i {
        self.0.round_pairs::<FLUSH>(first, second)
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        self.0.decode::<BITS>(table, step, quad)
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,fma")]
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        // SAFETY: `self` proves these features.
        unsafe { run(f) }
    }
}

impl IntegerProducts for Avx512Vnni {
    sums_of_32_bits!(__m512i);
    const DOTS_BYTES: bool = true;

    #[inline(always)]
    fn start(self, x: i32) -> __m512i {
        self.0.start(x)
    }
    #[inline(always)]
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> __m512i {
        self.0.bytes::<BITS>(table, step, quad)
    }
    #[inline(always)]
    fn dot_bytes(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { _mm512_dpbusd_epi32(sum, w, self.splat_pairs(x)) }
    }
    #[inline(always)]
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [__m512i; 2] {
        self.0.integers::<BITS>(table, step, quad)
    }
    #[inline(always)]
    fn dot_integers(self, x: u32, w: __m512i, sum: __m512i) -> __m512i {
        // SAFETY: `self` proves AVX-512 VNNI.
        unsafe { dot_words(sum, w, self.splat_pairs(x)) }
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
