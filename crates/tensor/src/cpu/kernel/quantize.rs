//! Quantizing rows: to packed codes and scales, or to element values and scales without a detour over codes.
//!
//! Equal to [`microscale_formats::quantize_block`]; the tests compare them. A block of 32 is held as sixteen pairs, the
//! even elements in one vector and the odd ones in another.

mod steps;
#[cfg(test)]
mod tests;
mod words;

use std::sync::LazyLock;

use microscale_formats::{BLOCK, E8M0, ElementFormat, INT8, ScaleRule};

use super::extent::unit;
use super::integers::{Norms, are_moderate};
use super::sides::TILE;
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{Isa, LANES, Simd, dispatch, words};
use crate::{BlockFormat, Real};
use steps::{inverses_of, powers_of};

/// Bits of an `f32`: all but the sign, the exponent, the sign.
const MAGNITUDE: u32 = 0x7FFF_FFFF;
const EXPONENT: u32 = 0x7F80_0000;
/// The odd element of a pair.
const HIGH: u32 = 0xFFFF_0000;

/// What rounding to a format takes, in the form the loop wants it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quantizer {
    pub(in crate::cpu) format: BlockFormat,
    /// The smallest magnitude of the elements, of which all others are multiples.
    pub(in crate::cpu) unit: f32,
    /// What a number's exponent field is less its scale's byte, for powers of two.
    emax: i32,
    /// Exponent field of the smallest normal number, in place.
    min_exponent: u32,
    /// Factor from the power of two of a value to the number whose last bit is worth one step.
    magic: f32,
    pub(in crate::cpu) max: f32,
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
/// long as to quantize many blocks.
static KNOWN: LazyLock<Vec<Quantizer>> = LazyLock::new(|| {
    let formats = ElementFormat::ALL.into_iter().flat_map(|element| ScaleRule::ALL.map(|rule| (element, rule)));
    formats
        .map(|(element, scale_rule)| Quantizer::make(BlockFormat { element, block_size: BLOCK, scale_rule }))
        .collect()
});

impl Quantizer {
    pub(crate) fn new(format: BlockFormat) -> Quantizer {
        let known = KNOWN.get(format.element.index() * ScaleRule::ALL.len() + format.scale_rule.index());
        let known = known.copied().unwrap_or_else(|| Quantizer::make(format));
        Quantizer { format: BlockFormat { block_size: format.block_size, ..known.format }, ..known }
    }

    fn make(format: BlockFormat) -> Quantizer {
        let element = format.element;
        let format = BlockFormat { scale_rule: format.scale_rule.for_format(element), ..format };
        Quantizer {
            format,
            unit: unit(element),
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

    /// [`columns`](Self::columns) of pairs of bf16, each down a lane.
    #[inline(always)]
    pub(in crate::cpu) fn columns_of_pairs<S: Simd>(&self, simd: S, block: &mut [Lanes]) -> [f32; LANES] {
        let magnitude = simd.splat_pairs(MAGNITUDE & HIGH);
        let mut largest = simd.splat_pairs(0);
        for pairs in block.iter() {
            let pairs = simd.load_pairs(&pairs.0);
            let even = simd.and(simd.shift_left(pairs, 16), magnitude);
            largest = simd.max_bits(largest, simd.max_bits(even, simd.and(pairs, magnitude)));
        }
        let Some(bytes) = self.regular_scales(simd, largest) else {
            return simd.vectorize(
                #[inline(always)]
                || self.columns_of_any_pairs(simd, block),
            );
        };
        let inverses = inverses_of(simd, bytes);
        for pairs in block {
            let [even, odd] = simd.floats(simd.load_pairs(&pairs.0));
            let values = [self.values(simd, even, inverses), self.values(simd, odd, inverses)];
            simd.store_pairs(joined(simd, values), &mut pairs.0);
        }
        let mut scales = [0.0; LANES];
        simd.store(powers_of(simd, bytes), &mut scales);
        scales
    }

    /// The same where a column needs care.
    #[inline(always)]
    fn columns_of_any_pairs<S: Simd>(&self, simd: S, block: &mut [Lanes]) -> [f32; LANES] {
        let mut rows = vec![[0f32; LANES]; 2 * block.len()];
        for (pairs, to) in block.iter().zip(rows.as_chunks_mut::<2>().0) {
            let [even, odd] = simd.floats(simd.load_pairs(&pairs.0));
            simd.store(even, &mut to[0]);
            simd.store(odd, &mut to[1]);
        }
        let scales = self.columns(simd, &mut rows);
        for (pairs, [even, odd]) in block.iter_mut().zip(rows.as_chunks().0) {
            simd.store_pairs(joined(simd, [simd.load(even), simd.load(odd)]), &mut pairs.0);
        }
        scales
    }

    /// [`block`](Self::block) for sixteen blocks side by side, each down a column.
    #[inline(always)]
    pub(in crate::cpu) fn columns<S: Simd>(&self, simd: S, block: &mut [[f32; LANES]]) -> [f32; LANES] {
        let magnitude = simd.splat_pairs(MAGNITUDE);
        let mut amax = simd.splat_pairs(0);
        for row in block.iter() {
            amax = simd.max_bits(amax, simd.and(simd.bits(simd.load(row)), magnitude));
        }
        let mut scales = [1f32; LANES];
        let inverses = if let Some(bytes) = self.regular_scales(simd, amax) {
            simd.store(powers_of(simd, bytes), &mut scales);
            inverses_of(simd, bytes)
        } else {
            let (mut largest, mut inverses) = ([0; LANES], [0f32; LANES]);
            simd.store_pairs(amax, &mut largest);
            for (lane, amax) in largest.into_iter().enumerate() {
                if amax >= EXPONENT {
                    scales[lane] = f32::NAN;
                    block.iter_mut().for_each(|row| row[lane] = 0.0);
                } else if amax != 0 {
                    let scale = self.scale(amax, || block.iter().map(|row| row[lane]).collect());
                    (scales[lane], inverses[lane]) = (power(scale), inverse(scale));
                }
            }
            simd.load(&inverses)
        };
        for row in block {
            simd.store(self.values(simd, simd.load(row), inverses), row);
        }
        scales
    }

    /// The element values nearest to x · inverse, ties to even, saturated. The product is below 2^(emax + 2), as a
    /// block's scale sees to.
    #[inline(always)]
    fn values<S: Simd>(&self, simd: S, x: S::F32, inverse: S::F32) -> S::F32 {
        let bits = simd.bits(simd.mul(x, inverse));
        let magnitude = self.magnitudes(simd, simd.with_bits(simd.and(bits, simd.splat_pairs(MAGNITUDE))));
        simd.with_bits(simd.or(simd.bits(magnitude), simd.and(bits, simd.splat_pairs(!MAGNITUDE))))
    }

    /// The same of magnitudes that are scaled.
    #[inline(always)]
    fn magnitudes<S: Simd>(&self, simd: S, x: S::F32) -> S::F32 {
        self.nearest(simd, x, [self.min_exponent, self.max.to_bits()])
    }

    /// Magnitudes that are bf16 to the nearest multiples of a step, ties to even, at most the largest number: a step is the last bit that
    /// numbers of their power of two have, or the smallest normal number has. Both numbers are given as bits, and may be scaled.
    ///
    /// A multiple of that power of two, whose last bit is worth one step, is added and taken away again. It is the number itself
    /// that is multiplied: its lower bits are even multiples of what the last bit of the sum is worth, so that they change neither
    /// rounding nor ties, and the sum is no power of two larger, as a number of 24 bits could make it.
    #[inline(always)]
    fn nearest<S: Simd>(&self, simd: S, x: S::F32, [lowest, largest]: [u32; 2]) -> S::F32 {
        let normal = simd.with_bits(simd.max_bits(simd.bits(x), simd.splat_pairs(lowest)));
        let sum = simd.fma(normal, simd.splat(self.magic), x);
        let nearest = simd.fma(normal, simd.splat(-self.magic), sum);
        simd.with_bits(simd.min_bits(simd.bits(nearest), simd.splat_pairs(largest)))
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

    /// Of each of up to sixteen rows the Euclidean norm of its elements over the largest power of two that divides them all
    /// ([`XTile::norms`]), or a little more; infinite where the numbers are too far apart for the way it is computed. Elements of
    /// row r are multiples of `units[r]`; of units and elements whose squares leave the range of f32 it is not defined.
    ///
    /// [`XTile::norms`]: super::sides::XTile::norms
    #[inline(always)]
    pub(in crate::cpu) fn norms<S: Simd>(
        &self,
        simd: S,
        rows: &[Lanes],
        units: &[f32; TILE],
        room: &mut Norms,
    ) -> [f32; TILE] {
        if are_moderate(self.format.element) { room.of(simd, rows, units) } else { [f32::INFINITY; TILE] }
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
pub(super) fn joined<S: Simd>(simd: S, [even, odd]: [S::F32; 2]) -> S::Pairs {
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
