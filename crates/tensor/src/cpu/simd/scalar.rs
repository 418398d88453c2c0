use std::array::from_fn;

use microscale_formats::E8M0;

use super::codes::{self, CodeTable};
use super::{LANES, Simd};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type F32 = [f32; LANES];
    type Pairs = [u32; LANES];
    const ROWS: usize = 1;

    #[inline(always)]
    fn splat(self, x: f32) -> Self::F32 {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, x: &[f32; LANES]) -> Self::F32 {
        *x
    }
    #[inline(always)]
    fn store(self, x: Self::F32, to: &mut [f32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        from_fn(|i| a[i].mul_add(b[i], c[i]))
    }
    #[inline(always)]
    fn load_pairs(self, x: &[u32; LANES]) -> Self::Pairs {
        *x
    }
    #[inline(always)]
    fn store_pairs(self, x: Self::Pairs, to: &mut [u32; LANES]) {
        *to = x;
    }
    #[inline(always)]
    fn splat_pairs(self, x: u32) -> Self::Pairs {
        [x; LANES]
    }
    #[inline(always)]
    fn dot(self, x: Self::Pairs, w: Self::Pairs, sum: Self::F32) -> Self::F32 {
        let (low, high) = (|x: u32| f32::from_bits(x << 16), |x: u32| f32::from_bits(x & 0xFFFF_0000));
        from_fn(|i| low(x[i]).mul_add(low(w[i]), high(x[i]).mul_add(high(w[i]), sum[i])))
    }
    #[inline(always)]
    fn decode<const BITS: usize>(self, table: &CodeTable, packed: &[u8; 64]) -> [Self::Pairs; 2] {
        table.decode::<BITS>(packed)
    }
    #[inline(always)]
    fn powers(self, scales: &[E8M0; LANES]) -> Self::F32 {
        codes::powers(scales)
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        f()
    }
}
