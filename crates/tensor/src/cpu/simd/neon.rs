#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::aarch64::*;
use std::array::from_fn;

use super::codes::{self, BlockScales, CodeTable, StepCodes};
use super::scalar::Scalar;
use super::{LANES, Simd};

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
    type Pairs = [uint32x4_t; 4];
    const ROWS: usize = 2;
    type Words = Scalar;
    #[inline(always)]
    fn words(self) -> Option<Scalar> {
        None
    }

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
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    lanewise! { 4;
        add(a: F32, b: F32) -> F32 = vaddq_f32;
        sub(a: F32, b: F32) -> F32 = vsubq_f32;
        max(a: F32, b: F32) -> F32 = |a, b| vbslq_f32(vcgtq_f32(a, b), a, b);
        bits(x: F32) -> Pairs = vreinterpretq_u32_f32;
        with_bits(x: Pairs) -> F32 = vreinterpretq_f32_u32;
        and(a: Pairs, b: Pairs) -> Pairs = vandq_u32;
        or(a: Pairs, b: Pairs) -> Pairs = vorrq_u32;
        max_bits(a: Pairs, b: Pairs) -> Pairs = vmaxq_u32;
        min_bits(a: Pairs, b: Pairs) -> Pairs = vminq_u32;
        add_bits(a: Pairs, b: Pairs) -> Pairs = vaddq_u32;
        sub_bits(a: Pairs, b: Pairs) -> Pairs = vsubq_u32;
    }
    #[inline(always)]
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vshlq_u32(x[i], vdupq_n_s32(by as i32)) })
    }
    #[inline(always)]
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe { vshlq_u32(x[i], vdupq_n_s32(-(by as i32))) })
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u32; LANES]) -> Self::Pairs {
        // SAFETY: AArch64 has NEON; the four quarters lie within the sixteen words.
        from_fn(|i| unsafe { vld1q_u32(x.as_ptr().add(4 * i)) })
    }
    #[inline(always)]
    fn store_pairs(self, x: Self::Pairs, to: &mut [u32; LANES]) {
        for (i, quarter) in x.into_iter().enumerate() {
            // SAFETY: as in `load_pairs`.
            unsafe { vst1q_u32(to.as_mut_ptr().add(4 * i), quarter) }
        }
    }
    #[inline(always)]
    fn splat_pairs(self, x: u32) -> Self::Pairs {
        // SAFETY: AArch64 has NEON.
        unsafe { [vdupq_n_u32(x); 4] }
    }
    #[inline(always)]
    fn dot(self, x: Self::Pairs, w: Self::Pairs, sum: Self::F32) -> Self::F32 {
        // SAFETY: AArch64 has NEON.
        from_fn(|i| unsafe {
            let high = |x| vreinterpretq_f32_u32(vandq_u32(x, vdupq_n_u32(0xFFFF_0000)));
            let low = |x| vreinterpretq_f32_u32(vshlq_n_u32::<16>(x));
            vfmaq_f32(vfmaq_f32(sum[i], high(x[i]), high(w[i])), low(x[i]), low(w[i]))
        })
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2] {
        if BITS == 8 {
            return table.decode::<BITS>(step, quad).map(|pairs| self.load_pairs(&pairs));
        }
        // SAFETY: AArch64 has NEON; 64 bytes are loaded from tables of 128 and 16 from 16.
        unsafe {
            let (low, high) = (vld1q_u8_x4(table.halves.low.as_ptr()), vld1q_u8_x4(table.halves.high.as_ptr()));
            let load = |line: usize, quarter: usize| vld1q_u8(step.line(line).as_chunks::<16>().0[quarter].as_ptr());
            let codes = |quarter| match BITS {
                4 if quad.is_multiple_of(2) => vandq_u8(load(quad / 2, quarter), vdupq_n_u8(15)),
                4 => vshrq_n_u8::<4>(load(quad / 2, quarter)),
                _ if quad % 4 < 3 => vandq_u8(load(quad / 4 * 3 + quad % 4, quarter), vdupq_n_u8(63)),
                _ => {
                    let third = |i| vshrq_n_u8::<6>(load(quad / 4 * 3 + i, quarter));
                    vorrq_u8(third(0), vorrq_u8(vshlq_n_u8::<2>(third(1)), vshlq_n_u8::<4>(third(2))))
                }
            };
            let values: [[uint32x4_t; 2]; 4] = from_fn(|quarter| {
                let codes = codes(quarter);
                let (low, high) = (vqtbl4q_u8(low, codes), vqtbl4q_u8(high, codes));
                // A pair is in the even bytes of two neighbouring words, or in the odd ones.
                [vreinterpretq_u32_u8(vtrn1q_u8(low, high)), vreinterpretq_u32_u8(vtrn2q_u8(low, high))]
            });
            [values.map(|v| v[0]), values.map(|v| v[1])]
        }
    }
    #[inline(always)]
    fn powers(self, scales: &BlockScales) -> Self::F32 {
        self.load(&codes::powers(scales))
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        // NEON is part of the base target.
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
    }
}
