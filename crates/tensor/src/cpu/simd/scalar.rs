use std::array::from_fn;

use super::codes::{self, BlockScales, ByteTable, CodeTable, IntegerTable, StepCodes};
use super::{IntegerProducts, LANES, Simd, Words};

/// Plain Rust.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type F32 = [f32; LANES];
    type Pairs = [u32; LANES];
    const ROWS: usize = 1;
    type Words = Scalar;
    #[inline(always)]
    fn words(self) -> Option<Scalar> {
        None
    }

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
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| a[i] - b[i])
    }
    #[inline(always)]
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32 {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    fn and(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i] & b[i])
    }
    #[inline(always)]
    fn or(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    fn max_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i].max(b[i]))
    }
    #[inline(always)]
    fn min_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i].min(b[i]))
    }
    #[inline(always)]
    fn add_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i].wrapping_add(b[i]))
    }
    #[inline(always)]
    fn sub_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| a[i].wrapping_sub(b[i]))
    }
    #[inline(always)]
    fn bits(self, x: Self::F32) -> Self::Pairs {
        x.map(f32::to_bits)
    }
    #[inline(always)]
    fn with_bits(self, x: Self::Pairs) -> Self::F32 {
        x.map(f32::from_bits)
    }
    #[inline(always)]
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        x.map(|x| x << by)
    }
    #[inline(always)]
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs {
        x.map(|x| x >> by)
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
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2] {
        table.decode::<BITS>(step, quad)
    }
    #[inline(always)]
    fn powers(self, scales: &BlockScales) -> Self::F32 {
        codes::powers(scales)
    }
    #[inline(always)]
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R {
        #[inline(never)]
        fn run<R>(f: impl FnOnce() -> R) -> R {
            f()
        }
        run(f)
    }
}

impl IntegerProducts for Scalar {
    sums_of_32_bits!([i32; LANES]);
    const DOTS_BYTES: bool = false;

    fn start(self, x: i32) -> Self::I32 {
        [x; LANES]
    }
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> Self::Pairs {
        let at = |output, k| codes::position(BITS as u32, output, k);
        let byte = |output, k| table.biased[usize::from(codes::code::<BITS>(step, quad, at(output, k)))];
        from_fn(|output| u32::from_le_bytes(codes::ORDER.map(|k| byte(output, k))))
    }
    fn dot_bytes(self, x: u32, w: Self::Pairs, sum: Self::I32) -> Self::I32 {
        let x = x.to_le_bytes().map(|x| i32::from(x as i8));
        from_fn(|i| x.iter().zip(w[i].to_le_bytes()).fold(sum[i], |sum, (x, w)| sum + x * i32::from(w)))
    }
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2] {
        let integer = |output, k| {
            let code = usize::from(codes::code::<BITS>(step, quad, codes::position(BITS as u32, output, k)));
            u32::from(table.values.words[code])
        };
        from_fn(|pair| from_fn(|output| integer(output, 2 * pair) | integer(output, 2 * pair + 1) << 16))
    }
    fn dot_integers(self, x: u32, w: Self::Pairs, sum: Self::I32) -> Self::I32 {
        let halves = |pair: u32| [pair as i16, (pair >> 16) as i16].map(i32::from);
        from_fn(|i| {
            let ([a, b], [c, d]) = (halves(x), halves(w[i]));
            sum[i] + a * c + b * d
        })
    }
    fn float(self, x: Self::I32) -> Self::F32 {
        x.map(|x| x as f32)
    }
}

/// Both halves of a pair, by themselves.
fn each(a: u32, b: u32, f: impl Fn(u16, u16) -> u16) -> u32 {
    u32::from(f(a as u16, b as u16)) | u32::from(f((a >> 16) as u16, (b >> 16) as u16)) << 16
}

impl Words for Scalar {
    fn splat_words(self, x: u16) -> Self::Pairs {
        [u32::from(x) << 16 | u32::from(x); LANES]
    }
    fn sub_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(a[i], b[i], u16::saturating_sub))
    }
    fn add_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(a[i], b[i], u16::saturating_add))
    }
    fn min_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(a[i], b[i], u16::min))
    }
    fn shift_words_left(self, x: Self::Pairs, by: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(x[i], by[i], |x, by| x.checked_shl(by.into()).unwrap_or(0)))
    }
    fn shift_words_right(self, x: Self::Pairs, by: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(x[i], by[i], |x, by| x.checked_shr(by.into()).unwrap_or(0)))
    }
    fn negate_words(self, x: Self::Pairs, sign: Self::Pairs) -> Self::Pairs {
        from_fn(|i| each(x[i], sign[i], |x, sign| if sign >> 15 == 1 { x.wrapping_neg() } else { x }))
    }
    fn bytes_of_words(self, x: Self::Pairs) -> ([u32; codes::QUADS], i32) {
        let byte = |i: usize| (x[i / 2] >> (i % 2 * 16)) as u8;
        let quads = from_fn(|quad| u32::from_le_bytes(codes::ORDER.map(|k| byte(4 * quad + k))));
        (quads, (0..2 * LANES).map(|i| i32::from(byte(i).cast_signed())).sum())
    }
    fn pack_blocks<const BITS: usize>(self, codes: [Self::Pairs; 4], to: &mut [u8]) {
        for (to, codes) in to.chunks_exact_mut(4 * BITS).zip(codes) {
            codes::pack_pairs::<BITS>(&codes.map(|pair| pair & 0xFF | pair >> 16 << BITS), to);
        }
    }
}
