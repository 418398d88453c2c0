//! Quantizing rows: to packed codes and scales, or to element values and scales without a detour over codes.
//!
//! Equal to [`microscale_formats::quantize_block`]; the tests compare them. A block of 32 is held as sixteen pairs, the
//! even elements in one vector and the odd ones in another.

mod steps;
mod words;

use std::sync::LazyLock;

use microscale_formats::{BLOCK, E8M0, ElementFormat, INT8, ScaleRule};

use super::integers::{Integers, are_moderate};
use crate::cpu::simd::{Isa, LANES, Simd, dispatch, words};
use crate::{BlockFormat, Real};

/// Bits of an `f32`: all but the sign, the exponent, the sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
const EXPONENT: u32 = 0x7F80_0000;
/// The odd element of a pair.
const HIGH: u32 = 0xFFFF_0000;

/// What rounding to a format takes, in the form the loop wants it.
#[derive(Clone, Copy)]
pub(crate) struct Quantizer {
    format: BlockFormat,
    /// What a number's exponent field is less its scale's byte, for powers of two.
    emax: i32,
    /// Exponent field of the smallest normal number, in place.
    min_exponent: u32,
    /// Factor from the power of two of a value to the number whose last bit is worth one step.
    magic: f32,
    max: f32,
    /// The code of the largest magnitude.
    max_code: u32,
    /// Bits of a code's fraction.
    mantissa: u16,
    /// Whether codes are two's complement. Asked of the format, names would be compared for every vector.
    twos_complement: bool,
    /// What the exponent field of the smallest normal number is more than its block's scale, before scaling.
    lowest: i32,
    /// What to add to the bits of a normal number so that its exponent field, less emax, is the scale's byte.
    bump: u32,
}

/// Quantizers of every element format under every rule, `[format][rule]` as these count themselves. To make one takes as
/// long as to quantize many blocks, and there is one for every tile.
static KNOWN: LazyLock<Vec<Quantizer>> = LazyLock::new(|| {
    let formats = ElementFormat::ALL.into_iter().flat_map(|element| ScaleRule::ALL.map(|rule| (element, rule)));
    formats
        .map(|(element, scale_rule)| Quantizer::make(BlockFormat { element, block_size: BLOCK, scale_rule }))
        .collect()
});

impl Quantizer {
    pub(crate) fn new(format: BlockFormat) -> Quantizer {
        let element = ElementFormat::ALL.iter().position(|&element| element == format.element);
        let rule = ScaleRule::ALL.iter().position(|&rule| rule == format.scale_rule);
        let known = element.zip(rule).and_then(|(element, rule)| KNOWN.get(element * ScaleRule::ALL.len() + rule));
        let known = known.copied().unwrap_or_else(|| Quantizer::make(format));
        Quantizer { format: BlockFormat { block_size: format.block_size, ..known.format }, ..known }
    }

    fn make(format: BlockFormat) -> Quantizer {
        let element = format.element;
        let format = BlockFormat { scale_rule: format.scale_rule.for_format(element), ..format };
        Quantizer {
            format,
            emax: 127 - i32::from(format.scale_rule.scale_of_max(1.0, element).0),
            min_exponent: ((1 - element.bias() + 127) as u32) << 23,
            magic: f32::from_bits((23 - element.mantissa_bits() + 127) << 23),
            max: element.max(),
            max_code: u32::from(element.encode(f64::from(element.max()))),
            mantissa: element.mantissa_bits() as u16,
            twos_complement: element == INT8,
            lowest: 1 - element.bias(),
            bump: bump(format),
        }
    }

    /// Writes the packed codes of a row and one scale per block.
    pub(crate) fn encode_row<T: Real>(&self, isa: Isa, row: &[T], codes: &mut [u8], scales: &mut [E8M0]) {
        match self.format.element.bits() {
            4 => self.encode_row_of::<T, 4>(isa, row, codes, scales),
            6 => self.encode_row_of::<T, 6>(isa, row, codes, scales),
            _ => self.encode_row_of::<T, 8>(isa, row, codes, scales),
        }
    }

    fn encode_row_of<T: Real, const BITS: usize>(&self, isa: Isa, row: &[T], codes: &mut [u8], scales: &mut [E8M0]) {
        let whole = if self.format.block_size == BLOCK { row.len() / BLOCK } else { 0 };
        let (blocks, rest) = row.split_at(whole * BLOCK);
        let blocks = blocks.as_chunks().0;
        let (codes, rest_codes) = codes.split_at_mut(whole * BLOCK * BITS / 8);
        let (scales, rest_scales) = scales.split_at_mut(whole);
        match words(isa) {
            Some(simd) => simd.vectorize(
                #[inline(always)]
                || self.encode_words::<_, T, BITS>(simd, blocks, codes, scales),
            ),
            None => dispatch!(isa, simd => self.encode::<_, T, BITS>(simd, blocks, codes, scales)),
        }
        if !rest.is_empty() {
            dispatch!(isa, simd => self.encode_any(simd, rest, rest_codes, rest_scales));
        }
    }

    /// Blocks of 32.
    #[inline(always)]
    fn encode<S: Simd, T: Real, const BITS: usize>(
        &self,
        simd: S,
        row: &[[T; BLOCK]],
        codes: &mut [u8],
        scales: &mut [E8M0],
    ) {
        let blocks = row.iter().zip(codes.chunks_exact_mut(BLOCK * BITS / 8));
        for ((block, to), scale) in blocks.zip(scales) {
            simd.prefetch(block);
            *scale = self.encode_block::<_, T, BITS>(simd, block, to);
        }
    }

    /// Writes the packed codes of a block of 32 and answers with its scale.
    #[inline(always)]
    fn encode_block<S: Simd, T: Real, const BITS: usize>(&self, simd: S, block: &[T; BLOCK], to: &mut [u8]) -> E8M0 {
        let halves = T::halves(block);
        let [even, odd] = [simd.load(&halves[0]), simd.load(&halves[1])];
        let largest = largest(simd, even, odd);
        let scale = self.scale_or_nan(
            largest,
            #[inline(always)]
            || interleave(&halves),
        );
        let inverse = simd.splat(if scale == E8M0::NAN { 0.0 } else { inverse(scale) });
        let odd = simd.shift_left(self.codes(simd, odd, inverse), BITS as u32);
        let pairs = simd.or(self.codes(simd, even, inverse), odd);
        simd.pack_pairs::<BITS>(if largest >= EXPONENT { simd.splat_pairs(0) } else { pairs }, to);
        scale
    }

    /// Blocks of any size.
    #[inline(always)]
    fn encode_any<S: Simd, T: Real>(&self, simd: S, row: &[T], codes: &mut [u8], scales: &mut [E8M0]) {
        let mut unpacked = vec![0; row.len()];
        let blocks = row.chunks(self.format.block_size).zip(unpacked.chunks_mut(self.format.block_size));
        for ((block, codes), scale) in blocks.zip(scales) {
            let block: Vec<f32> = block.iter().map(|x| x.to_f32()).collect();
            let amax = block.iter().fold(0, |max, x| max.max(x.to_bits() & MAGNITUDE));
            *scale = self.scale_or_nan(amax, || block.clone());
            if *scale == E8M0::NAN {
                continue;
            }
            for (block, codes) in block.chunks(LANES).zip(codes.chunks_mut(LANES)) {
                let (mut x, mut lanes) = ([0.0; LANES], [0; LANES]);
                x[..block.len()].copy_from_slice(block);
                simd.store_pairs(self.codes(simd, simd.load(&x), simd.splat(inverse(*scale))), &mut lanes);
                codes.iter_mut().zip(lanes).for_each(|(code, lane)| *code = lane as u8);
            }
        }
        codes.copy_from_slice(&microscale_formats::pack(&unpacked, self.format.element.bits()));
    }

    /// The element values of a block of up to 32 bf16, with the scale.
    ///
    /// A block of zeros gets the scale 1 instead of the format's smallest: its products are zero all the same, and
    /// the smallest scale would make every product with it take the slow path. A block with an infinity or a NaN
    /// gets zeros and the scale NaN.
    #[inline(always)]
    pub(in crate::cpu) fn pairs<S: Simd>(&self, simd: S, pairs: S::Pairs) -> (S::Pairs, f32) {
        let [even, odd] = simd.floats(pairs);
        let amax = largest(simd, even, odd);
        if amax == 0 || amax >= EXPONENT {
            return (simd.splat_pairs(0), if amax == 0 { 1.0 } else { f32::NAN });
        }
        let scale = self.scale(
            amax,
            #[inline(always)]
            || {
                let mut halves = [[0.0; LANES]; 2];
                simd.store(even, &mut halves[0]);
                simd.store(odd, &mut halves[1]);
                interleave(&halves)
            },
        );
        let inverse = simd.splat(inverse(scale));
        let halves = [self.values(simd, even, inverse), self.values(simd, odd, inverse)];
        (joined(simd, halves), power(scale))
    }

    /// The same for a block of any size, in place.
    #[inline(always)]
    pub(in crate::cpu) fn block<S: Simd>(&self, simd: S, block: &mut [f32]) -> f32 {
        let amax = block.iter().fold(0, |max, x| max.max(x.to_bits() & MAGNITUDE));
        if amax == 0 || amax >= EXPONENT {
            block.fill(0.0);
            return if amax == 0 { 1.0 } else { f32::NAN };
        }
        let scale = self.scale(amax, || block.to_vec());
        for block in block.chunks_mut(LANES) {
            let mut x = [0.0; LANES];
            x[..block.len()].copy_from_slice(block);
            let values = self.values(simd, simd.load(&x), simd.splat(inverse(scale)));
            simd.store(values, &mut x);
            block.copy_from_slice(&x[..block.len()]);
        }
        power(scale)
    }

    /// [`block`](Self::block) for sixteen blocks side by side, each down a column.
    #[inline(always)]
    pub(in crate::cpu) fn columns<S: Simd>(&self, simd: S, block: &mut [[f32; LANES]]) -> [f32; LANES] {
        let magnitude = simd.splat_pairs(MAGNITUDE);
        let mut amax = simd.splat_pairs(0);
        for row in block.iter() {
            amax = simd.max_bits(amax, simd.and(simd.bits(simd.load(row)), magnitude));
        }
        let mut largest = [0; LANES];
        simd.store_pairs(amax, &mut largest);
        let (mut scales, mut inverses) = ([1f32; LANES], [0f32; LANES]);
        let regular = self.regular_scales(largest);
        if let Some(bytes) = regular {
            scales = bytes.map(|byte| f32::from_bits(byte << 23));
            inverses = bytes.map(|byte| f32::from_bits((254 - byte) << 23));
        }
        for (lane, amax) in largest.into_iter().enumerate().filter(|_| regular.is_none()) {
            if amax >= EXPONENT {
                scales[lane] = f32::NAN;
                block.iter_mut().for_each(|row| row[lane] = 0.0);
            } else if amax != 0 {
                let scale = self.scale(amax, || block.iter().map(|row| row[lane]).collect());
                (scales[lane], inverses[lane]) = (power(scale), inverse(scale));
            }
        }
        let inverses = simd.load(&inverses);
        for row in block {
            simd.store(self.values(simd, simd.load(row), inverses), row);
        }
        scales
    }

    /// The element values nearest to x · inverse, ties to even, saturated. The product is below 2^(emax + 2), as a
    /// block's scale sees to.
    #[inline(always)]
    fn values<S: Simd>(&self, simd: S, x: S::F32, inverse: S::F32) -> S::F32 {
        let Steps { bits, sum, shift, .. } = self.steps(simd, x, inverse);
        let magnitude = simd.min_bits(simd.bits(simd.sub(sum, shift)), simd.splat_pairs(self.max.to_bits()));
        simd.with_bits(simd.or(magnitude, simd.and(bits, simd.splat_pairs(!MAGNITUDE))))
    }

    /// Their codes.
    #[inline(always)]
    fn codes<S: Simd>(&self, simd: S, x: S::F32, inverse: S::F32) -> S::Pairs {
        let Steps { bits, sum, shift, power } = self.steps(simd, x, inverse);
        let element = self.format.element;
        // The steps of this power that make the magnitude; a carry into the next power fits by itself.
        let steps = simd.sub_bits(simd.bits(sum), simd.bits(shift));
        let powers = simd.sub_bits(power, simd.splat_pairs(self.min_exponent));
        let magnitude = simd.add_bits(simd.shift_right(powers, 23 - element.mantissa_bits()), steps);
        let magnitude = simd.min_bits(magnitude, simd.splat_pairs(self.max_code));
        let negative = simd.shift_right(bits, 31);
        if self.twos_complement {
            // m − 2m where the mask is all ones.
            let mask = simd.sub_bits(simd.splat_pairs(0), negative);
            let code = simd.sub_bits(magnitude, simd.shift_left(simd.and(magnitude, mask), 1));
            return simd.and(code, simd.splat_pairs(0xFF));
        }
        simd.or(magnitude, simd.shift_left(negative, element.bits() - 1))
    }

    /// Rounds x · inverse to whole steps: adding a number whose last bit is worth one step does that.
    #[inline(always)]
    fn steps<S: Simd>(&self, simd: S, x: S::F32, inverse: S::F32) -> Steps<S> {
        let bits = simd.bits(simd.mul(x, inverse));
        let exponent = simd.and(bits, simd.splat_pairs(EXPONENT));
        let power = simd.max_bits(exponent, simd.splat_pairs(self.min_exponent));
        let shift = simd.mul(simd.with_bits(power), simd.splat(self.magic));
        let magnitude = simd.with_bits(simd.and(bits, simd.splat_pairs(MAGNITUDE)));
        Steps { bits, sum: simd.add(magnitude, shift), shift, power }
    }

    /// The Euclidean norm of elements over the largest power of two that divides them all ([`XTile::norms`]), or a little
    /// more; infinite where the numbers are too far apart for the way it is computed. Elements are multiples of `1 / units`.
    ///
    /// [`XTile::norms`]: super::sides::XTile::norms
    #[inline(always)]
    pub(in crate::cpu) fn norm<S: Simd>(&self, simd: S, elements: S::Pairs, units: f32) -> f32 {
        if !are_moderate(self.format.element) {
            return f32::INFINITY;
        }
        Integers::new(simd, elements, units).norm(simd)
    }

    /// The scale of a block with this largest magnitude, as bits; of a finite one that is not zero unless the caller
    /// wants the smallest scale for it.
    #[inline(always)]
    fn scale(&self, amax: u32, block: impl FnOnce() -> Vec<f32>) -> E8M0 {
        if self.format.scale_rule == ScaleRule::Mse || amax < f32::MIN_POSITIVE.to_bits() {
            return self.scale_by_rule(amax, &block());
        }
        E8M0((((amax + self.bump) >> 23) as i32 - self.emax).clamp(0, 254) as u8)
    }

    /// The same, or NaN where the magnitude is none.
    #[inline(always)]
    fn scale_or_nan(&self, amax: u32, block: impl FnOnce() -> Vec<f32>) -> E8M0 {
        if amax >= EXPONENT { E8M0::NAN } else { self.scale(amax, block) }
    }

    #[cold]
    fn scale_by_rule(&self, amax: u32, block: &[f32]) -> E8M0 {
        match self.format.scale_rule {
            ScaleRule::Mse => ScaleRule::Mse.scale(block, self.format.element),
            rule => rule.scale_of_max(f32::from_bits(amax), self.format.element),
        }
    }
}

/// Numbers on the way to whole steps of their power of two.
struct Steps<S: Simd> {
    /// The scaled numbers.
    bits: S::Pairs,
    /// Their magnitudes, and `shift` added.
    sum: S::F32,
    shift: S::F32,
    /// Their powers of two, at least that of the smallest normal number.
    power: S::Pairs,
}

/// The largest magnitude, as bits: as integers, magnitudes are ordered with NaN above infinity above the rest.
#[inline(always)]
fn largest<S: Simd>(simd: S, even: S::F32, odd: S::F32) -> u32 {
    let magnitude = simd.splat_pairs(MAGNITUDE);
    simd.largest(simd.max_bits(simd.and(simd.bits(even), magnitude), simd.and(simd.bits(odd), magnitude)))
}

/// Values that are bf16, the even and the odd ones, as pairs.
#[inline(always)]
fn joined<S: Simd>(simd: S, [even, odd]: [S::F32; 2]) -> S::Pairs {
    let high = simd.and(simd.bits(odd), simd.splat_pairs(HIGH));
    simd.or(simd.shift_right(simd.bits(even), 16), high)
}

/// Even and odd elements in their order.
fn interleave(halves: &[[f32; LANES]; 2]) -> Vec<f32> {
    halves[0].iter().zip(&halves[1]).flat_map(|(&even, &odd)| [even, odd]).collect()
}

/// [`Quantizer::bump`]: how far a number just above 1 is from the first whose scale is one more, asked of the rule itself.
fn bump(format: BlockFormat) -> u32 {
    let byte = |fraction: u32| format.scale_rule.scale_of_max(f32::from_bits(0x3F80_0000 | fraction), format.element).0;
    if format.scale_rule == ScaleRule::Mse || byte(0x7F_FFFF) == byte(0) {
        return 0;
    }
    // The first fraction with the greater scale lies in low + 1 ..= high.
    let (mut low, mut high) = (0u32, 0x7F_FFFF);
    while high - low > 1 {
        let middle = low.midpoint(high);
        *if byte(middle) == byte(0) { &mut low } else { &mut high } = middle;
    }
    (1 << 23) - high
}

/// The scale's value.
#[inline(always)]
fn power(scale: E8M0) -> f32 {
    if scale.0 == 0 { f32::from_bits(1 << 22) } else { f32::from_bits(u32::from(scale.0) << 23) }
}

/// 2^-(byte − 127); for byte 254 that is the subnormal 2^-127.
#[inline(always)]
fn inverse(scale: E8M0) -> f32 {
    if scale.0 == 254 { f32::from_bits(1 << 22) } else { f32::from_bits((254 - u32::from(scale.0)) << 23) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernel::extent::unit;
    use crate::cpu::kernel::operand::pairs_of_floats;
    use crate::cpu::kernel::sides::{StepBytes, TILE};
    use crate::cpu::simd;
    use crate::cpu::simd::codes::{BYTE_BIAS, is_small_integer};
    use crate::cpu::simd::tiles::Lanes;
    use microscale_formats::quantize_block;

    /// The lowest bit of an integer, as a number.
    fn lowest_bit(x: f32) -> f64 {
        let x = x.abs() as u64;
        if x == 0 { f64::INFINITY } else { (x & x.wrapping_neg()) as f64 }
    }

    /// Every format and rule, on wild bit patterns: equal to the reference in every value and scale.
    #[test]
    fn equals_the_reference() {
        let mut state = 9u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        for element in ElementFormat::ALL {
            for scale_rule in ScaleRule::ALL {
                let format = BlockFormat { element, block_size: 32, scale_rule };
                let quantizer = Quantizer::new(format);
                for round in 0..400 {
                    let center = next() % 250;
                    let mut block: [f32; 32] = std::array::from_fn(|_| {
                        let exponent = if round % 4 == 0 { next() % 255 } else { (center + next() % 12).min(254) };
                        let fraction = if round % 2 == 0 { next() & 0x7F_FFFF } else { next() & 0x78_0000 };
                        f32::from_bits((next() & 0x8000_0000) | exponent << 23 | fraction)
                    });
                    if round % 50 == 7 {
                        block = [0.0; 32];
                    }
                    if round % 50 == 8 {
                        block[5] = f32::NAN;
                    }
                    let mut codes = [0; 32];
                    let scale = quantize_block(&block, element, scale_rule, &mut codes);
                    let mut packed = vec![0; 32 * element.bits() as usize / 8];
                    let mut found = [E8M0(9)];
                    for isa in Isa::available() {
                        quantizer.encode_row(isa, &block, &mut packed, &mut found);
                        assert_eq!(found[0], scale, "{format:?} {isa} of {block:?}");
                        assert_eq!(
                            packed,
                            microscale_formats::pack(&codes, element.bits()),
                            "{format:?} {isa} of {block:?}"
                        );
                    }
                    // The way to values starts from bf16, and codes of those are found in another way.
                    let mut values = block.map(microscale_formats::round_to_bf16);
                    let scale = quantize_block(&values, element, scale_rule, &mut codes);
                    let halves = values.map(half::bf16::from_f32);
                    let expected = microscale_formats::pack(&codes, element.bits());
                    for isa in Isa::available() {
                        quantizer.encode_row(isa, &halves, &mut packed, &mut found);
                        assert_eq!((found[0], &packed), (scale, &expected), "{format:?} {isa} of {values:?}");
                    }
                    let block = std::slice::from_ref(&halves);
                    let to = (&mut packed[..], &mut found[..]);
                    match element.bits() {
                        4 => quantizer.encode_words::<_, _, 4>(simd::scalar(), block, to.0, to.1),
                        6 => quantizer.encode_words::<_, _, 6>(simd::scalar(), block, to.0, to.1),
                        _ => quantizer.encode_words::<_, _, 8>(simd::scalar(), block, to.0, to.1),
                    }
                    assert_eq!((found[0], &packed), (scale, &expected), "{format:?} of {values:?}");
                    let lanes: [u32; LANES] =
                        std::array::from_fn(|i| values[2 * i].to_bits() >> 16 | values[2 * i + 1].to_bits() & HIGH);
                    let mut again = values;
                    let (power, norm) = dispatch!(Isa::best(), simd => {
                        let (pairs, scale) = quantizer.pairs(simd, simd.load_pairs(&lanes));
                        let mut lanes = [0; LANES];
                        simd.store_pairs(pairs, &mut lanes);
                        for (i, lane) in lanes.into_iter().enumerate() {
                            (values[2 * i], values[2 * i + 1]) =
                                (f32::from_bits(lane << 16), f32::from_bits(lane & HIGH));
                        }
                        let power = quantizer.block(simd, &mut again);
                        assert_eq!(again.map(f32::to_bits), values.map(f32::to_bits));
                        assert!(power == scale || power.is_nan());
                        (power, quantizer.norm(simd, pairs, 1.0 / unit(element)))
                    });
                    for (i, (&value, &code)) in values.iter().zip(&codes).enumerate() {
                        assert_eq!(value, element.decode(code), "{format:?} {:?} of {block:?}", block[i]);
                    }
                    let zero = values.iter().all(|&x| x == 0.0);
                    assert!(
                        power.to_bits() == scale.value().to_bits()
                            || (scale.value().is_nan() && power.is_nan())
                            || zero
                    );
                    let lowest = |x: f32| f64::from(unit(element)) * lowest_bit(x / unit(element));
                    let divisor = values.iter().map(|&x| lowest(x)).fold(f64::INFINITY, f64::min);
                    let exact = values.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt() / divisor;
                    assert!(
                        norm.is_infinite() || zero || (f64::from(norm) / exact - 1.0).abs() < 1e-4,
                        "{norm}, {exact}"
                    );
                    assert!(zero || f64::from(norm) >= exact, "{norm} of {values:?}");
                }
            }
        }
    }

    /// Steps of some rows: equal to the reference in every format and rule, on every instruction set, and where a block among
    /// them is not like the others.
    #[test]
    fn steps_equal_the_reference() {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 32) as u32
        };
        let (mut side_by_side, mut in_bytes) = (0, 0);
        for (element, scale_rule) in
            ElementFormat::ALL.into_iter().flat_map(|e| ScaleRule::ALL.into_iter().map(move |rule| (e, rule)))
        {
            let format = BlockFormat { element, block_size: BLOCK, scale_rule };
            let quantizer = Quantizer::new(format);
            for round in 0..150 {
                let rows = 1 + next() as usize % TILE;
                let mut blocks = vec![[0f32; BLOCK]; rows];
                for block in &mut blocks {
                    let center = if round % 8 == 0 { 1 + next() % 240 } else { 100 + next() % 40 };
                    let spread = 1 + next() % 20;
                    *block = std::array::from_fn(|_| {
                        let exponent = (center + next() % spread).min(254);
                        f32::from_bits((next() & 0x8000_0000) | exponent << 23 | (next() & 0x7F_0000))
                    });
                }
                let special = next() as usize % rows;
                match round % 10 {
                    1 => blocks[special] = [0.0; BLOCK],
                    2 => blocks[special][next() as usize % BLOCK] = [f32::NAN, f32::INFINITY][round / 10 % 2],
                    3 => blocks[special] = blocks[special].map(|x| f32::from_bits(x.to_bits() & 0x807F_0000)),
                    4 => blocks[special][7] = f32::from_bits(254 << 23 | 0x7F_0000),
                    5 => blocks[special][..30].fill(-0.0),
                    _ => {}
                }
                let expected: Vec<([f32; BLOCK], E8M0)> = blocks
                    .iter()
                    .map(|block| {
                        let mut codes = [0; BLOCK];
                        let scale = quantize_block(block, element, scale_rule, &mut codes);
                        (codes.map(|code| element.decode(code)), scale)
                    })
                    .collect();
                let raw: Vec<Lanes> = blocks
                    .iter()
                    .map(|b| Lanes(std::array::from_fn(|i| b[2 * i].to_bits() >> 16 | b[2 * i + 1].to_bits() & HIGH)))
                    .collect();
                let moderate = expected.iter().all(|(_, scale)| (80..=170).contains(&scale.0));
                let check = |lanes: &[Lanes], powers: [f32; TILE], scaled: bool, by: &str| {
                    for ((lanes, power), (values, scale)) in lanes.iter().zip(powers).zip(&expected) {
                        let zero = values.iter().all(|&x| x == 0.0);
                        let same = power.to_bits() == scale.value().to_bits();
                        assert!(
                            same || power.is_nan() && *scale == E8M0::NAN || zero,
                            "{format:?} {by}: {power}, {scale:?}"
                        );
                        for (i, value) in values.iter().enumerate() {
                            let found =
                                f32::from_bits(if i % 2 == 0 { lanes.0[i / 2] << 16 } else { lanes.0[i / 2] & HIGH });
                            let value = if *scale == E8M0::NAN { 0.0 } else { *value };
                            let expected = if scaled { value * scale.value() } else { value };
                            assert_eq!(found, expected, "{format:?} {by}, {scaled}, {blocks:?}");
                        }
                    }
                    assert!(powers[rows..].iter().all(|&power| power == 1.0));
                };
                for scaled in [false, true] {
                    if scaled && !moderate {
                        continue;
                    }
                    for isa in Isa::available() {
                        let mut lanes = raw.clone();
                        let powers = dispatch!(isa, simd => quantizer.step(simd, &mut lanes, scaled));
                        check(&lanes, powers, scaled, isa.name());
                    }
                    let mut lanes = raw.clone();
                    if let Some(powers) = quantizer.step_in_words(simd::scalar(), &mut lanes, scaled) {
                        check(&lanes, powers, scaled, "words");
                        side_by_side += 1;
                    }
                }
                if !moderate || !is_small_integer(element) {
                    continue;
                }
                let mut check_bytes = |bytes: [StepBytes; TILE], powers: Option<[f32; TILE]>, by: &str| {
                    let Some(powers) = powers else { return };
                    let lanes: Vec<Lanes> = bytes.map(|bytes| Lanes(pairs_of_floats(&bytes.values()))).into();
                    check(&lanes[..rows], powers, true, by);
                    for (r, bytes) in bytes.iter().enumerate() {
                        let sum: i32 =
                            bytes.quads.iter().flat_map(|q| q.to_le_bytes()).map(|b| i32::from(b as i8)).sum();
                        assert_eq!(bytes.start, -BYTE_BIAS * sum, "{format:?} {by}, row {r}");
                    }
                    in_bytes += 1;
                };
                for isa in Isa::available() {
                    let mut bytes = [StepBytes::default(); TILE];
                    let powers = dispatch!(isa, simd => {
                        simd.words().and_then(|words| quantizer.step_in_bytes(words, &raw, &mut bytes))
                    });
                    check_bytes(bytes, powers, isa.name());
                }
                let mut bytes = [StepBytes::default(); TILE];
                let powers = quantizer.step_in_bytes(simd::scalar(), &raw, &mut bytes);
                check_bytes(bytes, powers, "scalar words");
            }
        }
        assert!(side_by_side > 5000, "{side_by_side} of the steps were regular");
        assert!(in_bytes > 1000, "{in_bytes} of them were bytes");
    }
}
