#![allow(unsafe_code, reason = "vector intrinsics")]

use super::{LANES, Simd};
use std::arch::aarch64::*;
use std::array::from_fn;

/// Proof of NEON, which every AArch64 CPU has.
#[derive(Clone, Copy)]
pub(crate) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Neon {
        Neon(())
    }
}

impl Simd for Neon {
    type F32 = [float32x4_t; 4];
    const ROWS: usize = 2;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F32 {
        // SAFETY: AArch64 has NEON; the four quarters lie within the sixteen floats.
        from_fn(|i| unsafe { vld1q_f32(x.as_ptr().add(4 * i)) })
    }
    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        for (i, quarter) in x.into_iter().enumerate() {
            // SAFETY: as in `load`.
            unsafe { vst1q_f32(to.as_mut_ptr().add(4 * i), quarter) }
        }
    }
    #[inline(always)]
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f() // NEON is part of the base target
    }
}
