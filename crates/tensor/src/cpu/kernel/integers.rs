//! The elements of a step as whole numbers of the largest power of two that divides them all: sums of their products are
//! exact in any order as long as norms are moderate ([`limit`](super::extent::limit)).

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use microscale_formats::ElementFormat;

use super::extent::{ROUND_UP, ratio};
use super::sides::{PANEL, StepBytes, StepIntegers, TILE};
use crate::cpu::simd::codes::{BYTE_BIAS, ORDER, QUADS};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{IntegerProducts, LANES, Simd, Words};

/// Adding it leaves a whole number below 2^22 in the low bits, in two's complement.
const SHIFT: f32 = 3.0 * (1 << 22) as f32;
const LOW: u32 = (1 << 22) - 1;

/// Whether all elements of a format are, in its smallest magnitude, integers that can be taken apart here.
pub(super) fn are_moderate(element: ElementFormat) -> bool {
    ratio(element) < (1 << 22) as f32
}

/// A step of elements of a format that is [moderate](are_moderate).
pub(super) struct Integers<S: Simd> {
    /// In units of the format's smallest magnitude.
    even: S::F32,
    odd: S::F32,
    /// Of all of them, a power of two.
    divisor: f32,
}

impl<S: Simd> Integers<S> {
    /// Of elements that are multiples of `1 / units`.
    #[inline(always)]
    pub(super) fn new(simd: S, elements: S::Pairs, units: f32) -> Self {
        let units = simd.splat(units);
        let [even, odd] = simd.floats(elements);
        let (even, odd) = (simd.mul(even, units), simd.mul(odd, units));
        let all = simd.bit_or(simd.or(low_bits(simd, even), low_bits(simd, odd))) & LOW;
        Integers { even, odd, divisor: (all & all.wrapping_neg()).max(1) as f32 }
    }

    /// Their Euclidean norm over the divisor, or a little more.
    #[inline(always)]
    fn norm(&self, simd: S) -> f32 {
        let squares = simd.total(simd.fma(self.even, self.even, simd.mul(self.odd, self.odd)));
        squares.sqrt() * ROUND_UP / self.divisor
    }

    /// In signed integers of 16 bits, two to a pair.
    #[inline(always)]
    fn pairs(&self, simd: S) -> [u32; LANES] {
        let scale = simd.splat(1.0 / self.divisor);
        let even = simd.and(low_bits(simd, simd.mul(self.even, scale)), simd.splat_pairs(0xFFFF));
        let odd = simd.shift_left(low_bits(simd, simd.mul(self.odd, scale)), 16);
        let mut pairs = [0; LANES];
        simd.store_pairs(simd.or(even, odd), &mut pairs);
        pairs
    }

    /// All of it, for a few rows, where the format's smallest magnitude is worth `unit`.
    #[inline(always)]
    pub(super) fn step(&self, simd: S, unit: f32) -> StepIntegers {
        let pairs = self.pairs(simd);
        let (halves, starts) = halves(simd, simd.load_pairs(&pairs));
        StepIntegers { pairs, halves, starts, unit: unit * self.divisor, norm: self.norm(simd) }
    }
}

/// Room for what norms are made of, the lanes of sixteen steps: what is there of steps that are not is of no use.
#[derive(Default)]
pub(in crate::cpu) struct Norms {
    bits: [[u32; LANES]; TILE],
    squares: [[f32; LANES]; TILE],
}

impl Norms {
    /// Of each of up to sixteen steps, whose elements are multiples of `units`, the norm that [`Integers::norm`] finds. What joins the
    /// lanes of one waits for itself, of sixteen side by side it does not.
    #[inline(always)]
    pub(super) fn of<S: Simd>(&mut self, simd: S, steps: &[Lanes], units: &[f32; TILE]) -> [f32; TILE] {
        for (r, elements) in steps.iter().enumerate() {
            let shift = simd.splat(SHIFT * units[r]);
            let [even, odd] = simd.floats(simd.load_pairs(&elements.0));
            let low_bits = simd.or(simd.bits(simd.add(even, shift)), simd.bits(simd.add(odd, shift)));
            simd.store_pairs(low_bits, &mut self.bits[r]);
            simd.store(simd.fma(even, even, simd.mul(odd, odd)), &mut self.squares[r]);
        }
        let all = simd.across_rows(
            #[inline(always)]
            |r| simd.load_pairs(&self.bits[r]),
            #[inline(always)]
            |a, b| simd.or(a, b),
        );
        let all = simd.and(all, simd.splat_pairs(LOW));
        let lowest = simd.max_bits(simd.and(all, simd.sub_bits(simd.splat_pairs(0), all)), simd.splat_pairs(1));
        // Of a whole number below 2^23 these are the bits of it and 2^23.
        let both = simd.with_bits(simd.or(lowest, simd.splat_pairs(0x4B00_0000)));
        let squares = simd.floats_across_rows(
            &self.squares,
            #[inline(always)]
            |a, b| simd.add(a, b),
        );
        let (mut norms, mut divisors) = ([0.0; TILE], [0.0; TILE]);
        simd.store(squares, &mut norms);
        simd.store(simd.sub(both, simd.splat((1 << 23) as f32)), &mut divisors);
        for ((norm, divisor), unit) in norms.iter_mut().zip(divisors).zip(units) {
            *norm = norm.sqrt() * ROUND_UP / (divisor * unit);
        }
        norms
    }
}

/// [`StepIntegers::halves`] and [`StepIntegers::starts`] of signed words.
#[inline(always)]
fn halves<S: Simd>(simd: S, words: S::Pairs) -> ([[u32; QUADS]; 2], [i32; 2]) {
    let (even, odd) = (simd.and(words, simd.splat_pairs(0xFFFF)), simd.shift_right(words, 16));
    let (lower, lower_sum) = low_bytes(simd, [even, odd]);
    // What is above the lower byte, which stands for 256 less where its top bit is set.
    let half = simd.splat_pairs(0x80);
    let even = simd.shift_right(simd.add_bits(even, half), 8);
    let odd = simd.shift_right(simd.add_bits(odd, half), 8);
    let (upper, upper_sum) = low_bytes(simd, [even, odd]);
    ([lower, upper], [-BYTE_BIAS * lower_sum, -BYTE_BIAS * upper_sum])
}

/// The lowest bytes of even and odd elements, signed, by fours in their [`ORDER`], and their sum.
#[inline(always)]
fn low_bytes<S: Simd>(simd: S, [even, odd]: [S::Pairs; 2]) -> ([u32; QUADS], i32) {
    let byte = simd.splat_pairs(0xFF);
    let both = simd.or(simd.and(even, byte), simd.shift_left(simd.and(odd, byte), 16));
    let (mut pairs, mut quads) = ([0; LANES], [0; QUADS]);
    simd.store_pairs(both, &mut pairs);
    const { assert!(matches!(ORDER, [0, 2, 1, 3])) };
    for (quad, [first, second]) in quads.iter_mut().zip(pairs.as_chunks().0) {
        *quad = first | second << 8;
    }
    // Signed bytes are 128 less than what they are with their top bit flipped.
    let flipped = simd.and(simd.add_bits(both, simd.splat_pairs(0x0080_0080)), simd.splat_pairs(0x00FF_00FF));
    simd.store_pairs(flipped, &mut pairs);
    let sum: u32 = pairs.iter().sum();
    (quads, (sum & 0xFFFF) as i32 + (sum >> 16) as i32 - 128 * 2 * LANES as i32)
}

#[inline(always)]
fn low_bits<S: Simd>(simd: S, x: S::F32) -> S::Pairs {
    simd.bits(simd.add(x, simd.splat(SHIFT)))
}

/// Rows whose sums of integers with a panel fit the registers of a machine that has few of them.
pub(super) const FEWER: usize = 4;

/// Adds the exact sums of some rows by `P` panels to their totals, of panels from `panel` on. Those of row r are in units of
/// `unit(r)`, and of their panel's.
#[inline(always)]
pub(super) fn add_exact<S: IntegerProducts, const R: usize, const P: usize>(
    simd: S,
    sums: [[S::I32; P]; R],
    (unit, units): (impl Fn(usize) -> f32, [&[f32; PANEL]; P]),
    (totals, panel): (&mut [[[f32; PANEL]; 2]], usize),
) {
    for p in 0..P {
        let units = simd.load(units[p]);
        for r in 0..R {
            let unit = simd.mul(units, simd.splat(unit(r)));
            let to = &mut totals[r][panel + p];
            let total = simd.fma(simd.float(sums[r][p]), unit, simd.load(to));
            simd.store(total, to);
        }
    }
}

/// Elements that are multiples of `unit`, each below 128 of it, as bytes; such a number is `worth` so much after scaling.
#[inline(always)]
pub(super) fn step_bytes<S: Simd>(simd: S, elements: &Lanes, unit: f32, worth: f32) -> StepBytes {
    // What a scale of NaN leaves of the elements does not matter.
    let bytes_and_sum = match simd.words() {
        Some(words) => words.bytes_of_words(signed_words(words, elements, unit)),
        None => bytes_of_floats(simd, simd.load_pairs(&elements.0), 1.0 / unit),
    };
    StepBytes::new(bytes_and_sum, worth)
}

/// The bytes and their sum.
#[inline(always)]
fn bytes_of_floats<S: Simd>(simd: S, elements: S::Pairs, units: f32) -> ([u32; QUADS], i32) {
    let [even, odd] = simd.floats(elements);
    let units = simd.splat(units);
    low_bytes(simd, [low_bits(simd, simd.mul(even, units)), low_bits(simd, simd.mul(odd, units))])
}

/// Elements that are multiples of `unit`, each below 2^15 of it, as integers, two to a pair as their bf16 values are.
#[inline(always)]
pub(super) fn step_words<S: Simd>(simd: S, elements: &Lanes, unit: f32) -> Lanes {
    let mut lanes = Lanes::ZERO;
    match simd.words() {
        Some(words) => words.store_pairs(signed_words(words, elements, unit), &mut lanes.0),
        None => {
            let units = simd.splat(1.0 / unit);
            let [even, odd] = simd.floats(simd.load_pairs(&elements.0));
            let (even, odd) = (low_bits(simd, simd.mul(even, units)), low_bits(simd, simd.mul(odd, units)));
            simd.store_pairs(simd.or(simd.and(even, simd.splat_pairs(0xFFFF)), simd.shift_left(odd, 16)), &mut lanes.0);
        }
    }
    lanes
}

/// The same, in the lanes of 16 bits that they become. The unit and its multiples are normal numbers.
#[inline(always)]
fn signed_words<S: Words>(simd: S, elements: &Lanes, unit: f32) -> S::Pairs {
    let pairs = simd.load_pairs(&elements.0);
    let magnitudes = simd.and(pairs, simd.splat_pairs(0x7FFF_7FFF));
    let exponents = simd.shift_words_right(magnitudes, simd.splat_words(7));
    let significands = simd.or(simd.and(magnitudes, simd.splat_pairs(0x007F_007F)), simd.splat_pairs(0x0080_0080));
    // A significand is 128 times its power of two. Shifted by the exponent of any unit that is far from the smallest, zero's
    // is zero.
    let at = simd.splat_words((unit.to_bits() >> 23) as u16 + 7);
    let left = simd.shift_words_left(significands, simd.sub_words(exponents, at));
    simd.negate_words(simd.shift_words_right(left, simd.sub_words(at, exponents)), pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::simd::{Isa, dispatch};

    #[test]
    fn halves_make_up_the_words() {
        let words: Vec<i16> = (0..2000i32)
            .map(|i| (i * 7919 % 65_025 - 32_512) as i16)
            .chain([0, -1, 127, 128, -128, -129, 32_512, -32_512])
            .collect();
        for isa in Isa::available() {
            for (i, words) in words.windows(2 * LANES).enumerate() {
                let pairs: [u32; LANES] = std::array::from_fn(|p| {
                    u32::from(words[2 * p].cast_unsigned()) | u32::from(words[2 * p + 1].cast_unsigned()) << 16
                });
                let (quads, starts) = dispatch!(isa, simd => halves(simd, simd.load_pairs(&pairs)));
                let bytes = quads.map(|quads| quads.map(|quad| quad.to_le_bytes().map(|b| i32::from(b.cast_signed()))));
                for (k, &word) in words.iter().enumerate() {
                    let at = ORDER.iter().position(|&element| element == k % 4).unwrap();
                    assert_eq!(bytes[0][k / 4][at] + 256 * bytes[1][k / 4][at], i32::from(word), "{isa}, {i}, {k}");
                }
                let sums = bytes.map(|bytes| bytes.as_flattened().iter().sum::<i32>());
                assert_eq!(starts, sums.map(|sum| -BYTE_BIAS * sum), "{isa}, {i}");
            }
        }
    }
}
