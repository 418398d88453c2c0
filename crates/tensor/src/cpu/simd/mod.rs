//! Sixteen `f32` lanes, whatever the machine has.
//!
//! A kernel is written once over [`Simd`]; a value of an implementor proves that the running CPU has the
//! instructions. The lane count is fixed, so every instruction set performs the same operations in the same order
//! and returns the same bits. All of the crate's `unsafe` is in this folder.

/// Methods of [`Simd`] that apply an intrinsic to every register of their arguments, of which there are `$registers`.
macro_rules! lanewise {
    ($registers:tt; $($name:ident($($x:ident: $argument:ident),+) -> $result:ident = $intrinsic:expr;)+) => {
        $(
            #[inline(always)]
            fn $name(self, $($x: Self::$argument),+) -> Self::$result {
                // SAFETY: the value proves that the CPU has these instructions.
                unsafe { lanewise!(@ $registers, $intrinsic, $($x),+) }
            }
        )+
    };
    (@ 1, $f:expr, $a:ident) => { $f($a) };
    (@ 1, $f:expr, $a:ident, $b:ident) => { $f($a, $b) };
    // Written out: what calls a closure for every element is now and then a function of its own, compiled without these
    // instructions, and each of them becomes a call.
    (@ 2, $f:expr, $a:ident) => { [$f($a[0]), $f($a[1])] };
    (@ 2, $f:expr, $a:ident, $b:ident) => { [$f($a[0], $b[0]), $f($a[1], $b[1])] };
    (@ 4, $f:expr, $a:ident) => { [$f($a[0]), $f($a[1]), $f($a[2]), $f($a[3])] };
    (@ 4, $f:expr, $a:ident, $b:ident) => {
        [$f($a[0], $b[0]), $f($a[1], $b[1]), $f($a[2], $b[2]), $f($a[3], $b[3])]
    };
}

/// What [`IntegerProducts`] has where sums of products of bytes have 32 bits from the first on.
macro_rules! sums_of_32_bits {
    ($sum:ty) => {
        type I32 = $sum;
        type Short = $sum;
        const SHORT: i32 = i32::MAX;
        #[inline(always)]
        fn short(self, sum: $sum) -> $sum {
            sum
        }
        #[inline(always)]
        fn dot_bytes_short(self, x: u32, w: Self::Pairs, sum: $sum) -> $sum {
            self.dot_bytes(x, w, sum)
        }
        #[inline(always)]
        fn long(self, short: $sum, _: $sum) -> $sum {
            short
        }
    };
}

pub(in crate::cpu) mod codes;
mod dispatch;
mod exponential_table;
mod isa;
mod machine;
mod scalar;
pub(in crate::cpu) mod tiles;
cfg_select! {
    target_arch = "x86_64" => {
        mod avx2;
        mod avx512;
        mod avx512bf16;
        mod avx512vnni;
        mod exponential;
    }
    target_arch = "aarch64" => { mod neon; }
    _ => {}
}

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::compiler_fence;

use half::bf16;
use microscale_formats::ElementFormat;

use super::kernel::bf16::{float, floats as widen, pair, round, rounded};
use super::kernel::operand::pairs_of_floats;
use crate::math;
use codes::{BYTE_BIAS, BlockScales, ByteTable, CodeTable, IntegerTable, StepCodes};
pub(crate) use dispatch::*;
pub(crate) use exponential_table::{ExponentialTable, OverLargest};
pub use isa::{Isa, UnsupportedIsa};
pub(crate) use machine::code_stride;

/// Lanes of [`Simd::F32`].
pub(crate) const LANES: usize = 16;

/// How many bytes ahead a stream is asked into the first-level cache, and into the second: the machines' own prefetchers
/// stop at the end of a page.
pub(crate) const AHEAD: [usize; 2] = [768, 2048];

/// Of this and of everything below the exponential is 0 in f32.
pub(crate) const LEAST_EXPONENT: f32 = -200.0;

/// A proof that the running CPU has an instruction set, and its operations.
pub(crate) trait Simd: Copy + Send + Sync {
    /// Sixteen `f32` lanes.
    type F32: Copy;
    /// Sixteen lanes of two bf16 values each: an even element in the low half, the odd one after it in the high half.
    type Pairs: Copy;
    /// Rows of a product tile whose 2 × 16 accumulators fit the registers.
    const ROWS: usize;
    /// Whether there is code for panels whose lines of codes lie side by side. Of the machines that want them so ([`code_stride`]) the
    /// best instruction set is enough.
    const READS_TOGETHER: bool = false;
    /// What has lanes of 16 bits too.
    type Words: Words;
    /// Those, where they are faster than lanes of 32.
    fn words(self) -> Option<Self::Words>;

    /// The same numbers, of which the compiler believes that they are needed here and now. It gathers what a long piece of
    /// straight code loads at its beginning, more than there are registers for: memory is then asked in bursts, and what came is
    /// put aside.
    #[inline(always)]
    fn settled(self, x: Self::F32) -> Self::F32 {
        compiler_fence(SeqCst);
        x
    }
    fn splat(self, x: f32) -> Self::F32;
    fn load(self, x: &[f32; LANES]) -> Self::F32;
    fn store(self, x: Self::F32, to: &mut [f32; LANES]);
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// `a * b + c`, rounded once.
    fn fma(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32;

    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Lane by lane `a` where it is larger than `b`, else `b`.
    fn max(self, a: Self::F32, b: Self::F32) -> Self::F32;

    fn bits(self, x: Self::F32) -> Self::Pairs;
    fn with_bits(self, x: Self::Pairs) -> Self::F32;
    fn and(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn or(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// The larger of each two lanes, as unsigned integers; likewise for the other operations on lanes of bits.
    fn max_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn min_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn add_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn sub_bits(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn shift_left(self, x: Self::Pairs, by: u32) -> Self::Pairs;
    fn shift_right(self, x: Self::Pairs, by: u32) -> Self::Pairs;

    fn load_pairs(self, x: &[u32; LANES]) -> Self::Pairs;
    /// Up to 32 values as pairs, zero beyond the last.
    #[inline(always)]
    fn load_values(self, values: &[bf16]) -> Self::Pairs {
        let mut pairs = [0; LANES];
        for (to, values) in pairs.iter_mut().zip(values.chunks(2)) {
            *to = pair(values);
        }
        self.load_pairs(&pairs)
    }
    /// Up to sixteen values, each in the low half of a lane, zero beyond the last.
    #[inline(always)]
    fn load_words(self, values: &[bf16]) -> Self::Pairs {
        let mut lanes = [0; LANES];
        lanes.iter_mut().zip(values).for_each(|(lane, x)| *lane = u32::from(x.to_bits()));
        self.load_pairs(&lanes)
    }
    /// Sixteen values as `f32`.
    #[inline(always)]
    fn floats_of(self, values: &[bf16; LANES]) -> Self::F32 {
        let mut floats = [0.0; LANES];
        widen(values, &mut floats);
        self.load(&floats)
    }
    fn store_pairs(self, x: Self::Pairs, to: &mut [u32; LANES]);
    fn splat_pairs(self, x: u32) -> Self::Pairs;
    /// `sum` with the product of the high elements added, then that of the low ones, each rounded once. Neither
    /// operands nor results may be subnormal: some machines count those as zero.
    fn dot(self, x: Self::Pairs, w: Self::Pairs, sum: Self::F32) -> Self::F32;
    /// Whether products of eight rows take less by two [`fma`](Self::fma) of elements taken apart beforehand than by
    /// [`dot`](Self::dot). Not where registers hold the sums of fewer.
    #[inline(always)]
    fn takes_pairs_apart(self) -> bool {
        false
    }
    /// The values of a quad of a packed step ([`codes::pack_step`]): two pairs along k of sixteen outputs.
    fn decode<const BITS: usize>(self, table: &CodeTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2];
    /// Whether [`floats_of_codes`](Self::floats_of_codes) of a format takes less than any other way to its values.
    fn takes_codes_for_floats(self, _: ElementFormat) -> bool {
        false
    }
    /// The values of a quad of a packed step of codes of 6 or 8 bits, a sign and a magnitude with so many fraction bits, times a
    /// power of two ([`codes::float_of_code`]): of each of its two pairs the odd elements, then the even ones.
    #[inline(always)]
    fn floats_of_codes<const BITS: usize>(
        self,
        fraction_bits: u32,
        step: StepCodes<'_>,
        quad: usize,
    ) -> [[Self::F32; 2]; 2] {
        // Loops rather than closures: of calls to these rustc 1.95 made a frame for AVX-512 that was not aligned.
        let mut values = [[0.0; LANES]; 4];
        for (k, values) in values.iter_mut().enumerate() {
            for (output, value) in values.iter_mut().enumerate() {
                let code = codes::code::<BITS>(step, quad, codes::position(BITS as u32, output, k));
                *value = codes::float_of_code::<BITS>(fraction_bits, code);
            }
        }
        let [a, b, c, d] = &values;
        [[self.load(b), self.load(a)], [self.load(d), self.load(c)]]
    }
    /// Packs sixteen pairs of codes, each pair in the low bits of a lane and nothing above, least significant bits first,
    /// into `4 · BITS` bytes.
    #[inline(always)]
    fn pack_pairs<const BITS: usize>(self, pairs: Self::Pairs, to: &mut [u8]) {
        let mut lanes = [0; LANES];
        self.store_pairs(pairs, &mut lanes);
        codes::pack_pairs::<BITS>(&lanes, to);
    }
    /// Asks the memory for the bytes [`AHEAD`] of here. A hint: it neither faults nor changes anything.
    #[inline(always)]
    fn prefetch<T>(self, here: &T) {
        self.prefetch_ahead(here, AHEAD);
    }
    /// The same so many bytes ahead.
    fn prefetch_ahead<T>(self, _here: &T, _ahead: [usize; 2]) {}
    /// Asks the memory for this line, likewise.
    fn fetch<T>(self, _at: &T) {}
    /// The even elements and the odd ones.
    #[inline(always)]
    fn floats(self, pairs: Self::Pairs) -> [Self::F32; 2] {
        let odd = self.and(pairs, self.splat_pairs(0xFFFF_0000));
        [self.with_bits(self.shift_left(pairs, 16)), self.with_bits(odd)]
    }
    /// The largest lane.
    #[inline(always)]
    fn largest(self, x: Self::Pairs) -> u32 {
        let mut lanes = [0; LANES];
        self.store_pairs(x, &mut lanes);
        lanes.into_iter().fold(0, u32::max)
    }
    /// Whether any lane is larger.
    #[inline(always)]
    fn exceeds(self, x: Self::Pairs, limit: u32) -> bool {
        self.largest(x) > limit
    }
    /// Joins the lanes of each of sixteen rows, lane `i` with `i + 8`, then with `i + 4`, `i + 2`, `i + 1`; what becomes of row
    /// `r` is lane `r` of the answer.
    #[inline(always)]
    fn across_rows(
        self,
        rows: impl Fn(usize) -> Self::Pairs,
        join: impl Fn(Self::Pairs, Self::Pairs) -> Self::Pairs,
    ) -> Self::Pairs {
        let (mut lanes, mut columns) = ([0; LANES], [[0; LANES]; LANES]);
        for r in 0..LANES {
            self.store_pairs(rows(r), &mut lanes);
            for (column, lane) in columns.iter_mut().zip(lanes) {
                column[r] = lane;
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                let joined = join(self.load_pairs(&columns[i]), self.load_pairs(&columns[i + half]));
                self.store_pairs(joined, &mut columns[i]);
            }
        }
        self.load_pairs(&columns[0])
    }
    /// The same of numbers.
    #[inline(always)]
    fn floats_across_rows(
        self,
        rows: &[[f32; LANES]; LANES],
        join: impl Fn(Self::F32, Self::F32) -> Self::F32,
    ) -> Self::F32 {
        self.with_bits(self.across_rows(
            #[inline(always)]
            |r| self.bits(self.load(&rows[r])),
            #[inline(always)]
            |a, b| self.bits(join(self.with_bits(a), self.with_bits(b))),
        ))
    }
    /// The largest magnitude of each of sixteen rows of bf16, as the bits of an `f32`: as integers, magnitudes are ordered, with
    /// NaN above infinity above the rest.
    #[inline(always)]
    fn largest_magnitudes(self, rows: impl Fn(usize) -> Self::Pairs) -> Self::Pairs {
        self.across_rows(
            #[inline(always)]
            |r| {
                let ([even, odd], magnitude) = (self.floats(rows(r)), self.splat_pairs(0x7FFF_FFFF));
                self.max_bits(self.and(self.bits(even), magnitude), self.and(self.bits(odd), magnitude))
            },
            #[inline(always)]
            |a, b| self.max_bits(a, b),
        )
    }
    /// All lanes or-ed together.
    #[inline(always)]
    fn bit_or(self, x: Self::Pairs) -> u32 {
        let mut lanes = [0; LANES];
        self.store_pairs(x, &mut lanes);
        lanes.into_iter().fold(0, |all, lane| all | lane)
    }
    /// The sum of all lanes, in any order.
    #[inline(always)]
    fn total(self, x: Self::F32) -> f32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        lanes.into_iter().sum()
    }
    /// A bit for every number that is above the limit, or NaN.
    #[inline(always)]
    fn above(self, x: &[f32; LANES], limit: f32) -> u16 {
        x.iter().enumerate().fold(0, |bits, (lane, &x)| bits | u16::from(x > limit || x.is_nan()) << lane)
    }
    /// The nearest bf16 values, ties to even.
    #[inline(always)]
    fn round(self, x: Self::F32, to: &mut [bf16; LANES]) {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        to.iter_mut().zip(lanes).for_each(|(to, x)| *to = round(x));
    }
    /// The same as `f32`; a NaN stays one if it comes of bf16, its low bits being zero.
    #[inline(always)]
    fn nearest(self, x: Self::F32) -> Self::F32 {
        let bits = self.bits(x);
        let even = self.and(self.shift_right(bits, 16), self.splat_pairs(1));
        let nearest = self.add_bits(self.add_bits(bits, self.splat_pairs(0x7FFF)), even);
        self.with_bits(self.and(nearest, self.splat_pairs(0xFFFF_0000)))
    }
    /// Likewise, but that subnormal ones may become zero.
    #[inline(always)]
    fn rounded(self, x: Self::F32) -> Self::F32 {
        self.nearest(x)
    }
    /// Likewise of two vectors.
    #[inline(always)]
    fn both_rounded(self, [a, b]: [Self::F32; 2]) -> [Self::F32; 2] {
        [self.rounded(a), self.rounded(b)]
    }
    /// The same numbers, subnormal ones as zero.
    #[inline(always)]
    fn flushed(self, x: Self::F32) -> Self::F32 {
        let bits = self.bits(x);
        let exponent = self.and(bits, self.splat_pairs(0x7F80_0000));
        let normal = self.sub_bits(self.splat_pairs(0), self.min_bits(exponent, self.splat_pairs(1)));
        self.with_bits(self.and(bits, normal))
    }
    /// The nearest bf16 to numbers that are not negative, subnormal ones as zero.
    #[inline(always)]
    fn nearest_normal(self, [a, b]: [Self::F32; 2]) -> [Self::F32; 2] {
        [self.flushed(self.nearest(a)), self.flushed(self.nearest(b))]
    }
    /// `a * b`, or zero where `a` is less than `least`: some machines take a hundred times as long where a factor or the product is
    /// subnormal, if only in one lane.
    #[inline(always)]
    fn mul_from(self, _least: Self::F32, a: Self::F32, b: Self::F32) -> Self::F32 {
        self.mul(a, b)
    }
    /// [`fma`](Self::fma) of two numbers that are bf16, in several instructions where one would take longer if the sum was subnormal
    /// or became so.
    #[inline(always)]
    fn fma_near_zero(self, a: Self::F32, b: Self::F32, c: Self::F32) -> Self::F32 {
        self.fma(a, b, c)
    }
    /// The nearest bf16 to numbers that are not negative, first sixteen and then as many more, as pairs; subnormal ones as zero
    /// if they are to be flushed.
    #[inline(always)]
    fn round_pairs<const FLUSH: bool>(self, first: Self::F32, second: Self::F32) -> Self::Pairs {
        let mut values = [0.0; 2 * LANES];
        if let [low, high] = values.as_chunks_mut().0 {
            self.store(first, low);
            self.store(second, high);
        }
        for x in &mut values {
            let nearest = rounded(*x);
            *x = if FLUSH && nearest < f32::MIN_POSITIVE { 0.0 } else { nearest };
        }
        self.load_pairs(&pairs_of_floats(&values))
    }
    /// The same where only zeros and numbers far above subnormal ones count: what the others become is tiny, or zero.
    #[inline(always)]
    fn round_normal_pairs(self, first: Self::F32, second: Self::F32) -> Self::Pairs {
        self.join(self.nearest(first), self.nearest(second))
    }
    /// Values that are bf16, first sixteen and then as many more, as pairs.
    #[inline(always)]
    fn join(self, first: Self::F32, second: Self::F32) -> Self::Pairs {
        let mut values = [0.0; 2 * LANES];
        if let [low, high] = values.as_chunks_mut().0 {
            self.store(first, low);
            self.store(second, high);
        }
        self.load_pairs(&pairs_of_floats(&values))
    }
    /// [`math::exp_of_negative`].
    #[inline(always)]
    fn exp_of_negative(self, x: Self::F32) -> Self::F32 {
        let mut lanes = [0.0; LANES];
        self.store(x, &mut lanes);
        for x in &mut lanes {
            *x = math::exp_of_negative(*x);
        }
        self.load(&lanes)
    }
    /// The same in place of numbers not below [`LEAST_EXPONENT`].
    #[inline(always)]
    fn exponentials(self, x: &mut [f32; LANES]) {
        self.store(self.exp_of_negative(self.load(x)), x);
    }
    /// Whether a vector of look-ups takes much less time than as many of them one by one.
    #[inline(always)]
    fn gathers(self) -> bool {
        false
    }
    /// What a table has for bf16 numbers, by their bits, as `f32`.
    #[inline(always)]
    fn look_up(self, table: &[bf16; (1 << 16) + 1], x: &[bf16; LANES]) -> Self::F32 {
        let mut found = [0.0; LANES];
        for (found, x) in found.iter_mut().zip(x) {
            *found = float(table[usize::from(x.to_bits())]);
        }
        self.load(&found)
    }
    /// The exponentials of bf16 numbers over the largest ones, as products of two.
    #[inline(always)]
    fn exponentials_over(self, largest: &OverLargest, x: &[f32; LANES]) -> Self::F32 {
        let mut exponentials = [0.0; LANES];
        for (exponential, (&x, by)) in exponentials.iter_mut().zip(x.iter().zip(largest.by)) {
            *exponential = (largest.table.of(x) * by) as f32;
        }
        self.load(&exponentials)
    }
    /// The powers of two that scales stand for.
    fn powers(self, scales: &BlockScales) -> Self::F32;
    /// The same of scales that are neither the smallest nor NaN.
    #[inline(always)]
    fn normal_powers(self, scales: &BlockScales) -> Self::F32 {
        self.powers(scales)
    }

    /// Runs `f` compiled for this instruction set: what is inlined into it may use (and be vectorized with) all of it. It is
    /// not inlined itself: one within another keeps functions small, as the time to compile one grows with its square.
    fn vectorize<R>(self, f: impl FnOnce() -> R) -> R;
}

/// An instruction set with sums of products of integers.
pub(crate) trait IntegerProducts: Simd {
    /// Sixteen `i32` lanes.
    type I32: Copy;
    /// Sums of products of bytes in as few bits as will do: as many as [`SHORT`](Self::SHORT) says.
    type Short: Copy;
    /// The largest magnitude that a [`Short`](Self::Short) holds.
    const SHORT: i32;
    /// What [`bytes`](Self::bytes) of codes of 4 bits have been added.
    const BIAS_OF_4_BITS: i32 = BYTE_BIAS;
    /// Whether [`dot_bytes`](Self::dot_bytes) takes no more instructions than half as many
    /// [`dot_integers`](Self::dot_integers), so that it is worth more than decoding every code once.
    const DOTS_BYTES: bool;

    fn start(self, x: i32) -> Self::I32;
    /// What the bytes of codes of so many bits have been added to be unsigned.
    #[inline(always)]
    fn byte_bias(self, bits: usize) -> i32 {
        if bits == 4 { Self::BIAS_OF_4_BITS } else { BYTE_BIAS }
    }
    /// What sums of products with such bytes start with, given that for those [`BYTE_BIAS`] too large.
    #[inline(always)]
    fn start_beside(self, start: i32, bits: usize) -> Self::I32 {
        let bias = self.byte_bias(bits);
        // It is a multiple of that: a shift will do.
        self.start(if bias == BYTE_BIAS { start } else { (start >> BYTE_BIAS.ilog2()) * bias })
    }
    /// The bytes of a quad of a packed step: four elements along k, in their [order](codes::ORDER), plus their
    /// [bias](Self::byte_bias), in each of sixteen lanes, the outputs.
    fn bytes<const BITS: usize>(self, table: &ByteTable, step: StepCodes<'_>, quad: usize) -> Self::Pairs;
    /// `sum` and the four products of `x`, signed bytes, with each lane of bytes. No two of these make more than
    /// [`SHORT`](Self::SHORT).
    fn dot_bytes(self, x: u32, w: Self::Pairs, sum: Self::I32) -> Self::I32;
    /// What sums of bytes in a few bits begin with, of which [`long`](Self::long) makes the sum: nothing, or the sum so far.
    fn short(self, sum: Self::I32) -> Self::Short;
    /// [`dot_bytes`](Self::dot_bytes), of bytes whose sums fit.
    fn dot_bytes_short(self, x: u32, w: Self::Pairs, sum: Self::Short) -> Self::Short;
    /// The sum that [`short`](Self::short) was given and what was added since.
    fn long(self, short: Self::Short, sum: Self::I32) -> Self::I32;
    /// The integers of a quad of a packed step, of which [`decode`](Simd::decode) gives the values.
    fn integers<const BITS: usize>(self, table: &IntegerTable, step: StepCodes<'_>, quad: usize) -> [Self::Pairs; 2];
    /// `sum` and the two products of `x`, signed integers of 16 bits, with each lane.
    fn dot_integers(self, x: u32, w: Self::Pairs, sum: Self::I32) -> Self::I32;
    fn float(self, x: Self::I32) -> Self::F32;
    /// [`settled`](Simd::settled).
    #[inline(always)]
    fn settled_short(self, x: Self::Short) -> Self::Short {
        x
    }
    /// [`settled`](Simd::settled).
    #[inline(always)]
    fn settled_integers(self, x: Self::I32) -> Self::I32 {
        compiler_fence(SeqCst);
        x
    }
}

/// An instruction set whose pairs are also 32 lanes of 16 bits, each with a shift of its own.
pub(crate) trait Words: Simd {
    fn splat_words(self, x: u16) -> Self::Pairs;
    /// The difference, 0 where it would be negative.
    fn sub_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// The sum, the largest word where it would be more.
    fn add_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    fn min_words(self, a: Self::Pairs, b: Self::Pairs) -> Self::Pairs;
    /// Shifts below 16.
    fn shift_words_left(self, x: Self::Pairs, by: Self::Pairs) -> Self::Pairs;
    fn shift_words_right(self, x: Self::Pairs, by: Self::Pairs) -> Self::Pairs;
    /// The two's complement of the words whose `sign` has its top bit set, the others as they are.
    fn negate_words(self, x: Self::Pairs, sign: Self::Pairs) -> Self::Pairs;
    /// Packs the codes of four blocks of 32, a word each, at their width of 4, 6 or 8 bits.
    fn pack_blocks<const BITS: usize>(self, codes: [Self::Pairs; 4], to: &mut [u8]);
    /// Words that are signed bytes, as such, fours in their [order](codes::ORDER), and their sum.
    fn bytes_of_words(self, x: Self::Pairs) -> ([u32; codes::QUADS], i32);
}

#[cfg(test)]
mod tests;
