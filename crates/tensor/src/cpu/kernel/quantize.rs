//! Quantizing rows: to packed codes and scales, or to element values and scales without a detour over codes.
//!
//! Equal to [`microscale_formats::quantize_block`]; the tests compare them.

use microscale_formats::{BLOCK, E8M0, ScaleRule};

use super::product::unit;
use crate::BlockFormat;
use crate::cpu::simd::{Isa, LANES, dispatch};

/// What rounding to a format takes, in the form the loop wants it.
#[derive(Clone, Copy)]
pub(crate) struct Quantizer {
    format: BlockFormat,
    /// Exponent field of the smallest normal number, in place.
    min_exponent: u32,
    /// Factor from the power of two of a value to the number whose last bit is worth one step.
    magic: f32,
    max: f32,
    /// The code of the largest magnitude.
    max_code: u32,
    /// The smallest magnitudes that make one.
    units: f32,
    /// What to add to the bits of a normal number so that its exponent field, less emax, is the scale's byte.
    bump: u32,
}

impl Quantizer {
    pub(crate) fn new(format: BlockFormat) -> Quantizer {
        let element = format.element;
        Quantizer {
            format,
            min_exponent: ((1 - element.bias() + 127) as u32) << 23,
            magic: f32::from_bits((23 - element.mantissa_bits() + 127) << 23),
            max: element.max(),
            max_code: u32::from(element.encode(f64::from(element.max()))),
            units: 1.0 / unit(element),
            bump: bump(format),
        }
    }

    /// Writes the packed codes of a row and one scale per block; the row's values are lost.
    pub(crate) fn encode_row(&self, isa: Isa, row: &mut [f32], codes: &mut [u8], scales: &mut [E8M0]) {
        dispatch!(isa, simd => {
            let _ = simd;
            match self.format.element.bits() {
                4 => self.encode::<4>(row, codes, scales),
                6 => self.encode::<6>(row, codes, scales),
                _ => self.encode::<8>(row, codes, scales),
            }
        });
    }

    #[inline(always)]
    fn encode<const BITS: usize>(&self, row: &mut [f32], codes: &mut [u8], scales: &mut [E8M0]) {
        if self.format.block_size != BLOCK {
            return self.encode_any(row, codes, scales);
        }
        // The usual size in loops of a fixed length.
        let whole = row.len() / BLOCK;
        let (blocks, last) = row.as_chunks_mut::<BLOCK>();
        let (packed, packed_last) = codes.split_at_mut(whole * BLOCK * BITS / 8);
        let (block_scales, last_scale) = scales.split_at_mut(whole);
        for ((block, to), scale) in blocks.iter_mut().zip(packed.chunks_exact_mut(BLOCK * BITS / 8)).zip(block_scales) {
            let mut block_codes = [0; BLOCK];
            *scale = self.block_codes(block, &mut block_codes);
            pack_block::<BITS>(&block_codes, to);
        }
        if !last.is_empty() {
            self.encode_any(last, packed_last, last_scale);
        }
    }

    /// Blocks of any size.
    fn encode_any(&self, row: &mut [f32], codes: &mut [u8], scales: &mut [E8M0]) {
        let mut unpacked = vec![0; row.len()];
        let blocks = row.chunks_mut(self.format.block_size).zip(unpacked.chunks_mut(self.format.block_size));
        for ((block, codes), scale) in blocks.zip(scales) {
            *scale = self.block_codes(block, codes);
        }
        codes.copy_from_slice(&microscale_formats::pack(&unpacked, self.format.element.bits()));
    }

    /// Codes and scale of one block.
    #[inline(always)]
    fn block_codes(&self, block: &[f32], codes: &mut [u8]) -> E8M0 {
        let amax = amax(block);
        if amax >= f32::INFINITY.to_bits() {
            codes.fill(0);
            return E8M0::NAN;
        }
        let scale = self.scale(amax, block);
        let inverse = inverse(scale);
        let element = self.format.element;
        let (m, sign_bit) = (element.mantissa_bits(), 1 << (element.bits() - 1));
        let integer = element == microscale_formats::INT8;
        for (code, x) in codes.iter_mut().zip(block) {
            let y = x * inverse;
            let a = y.abs();
            let power = (a.to_bits() & 0x7F80_0000).max(self.min_exponent);
            let shift = f32::from_bits(power) * self.magic;
            // The steps of this power that make the magnitude; a carry into the next power fits by itself.
            let steps = (a + shift).to_bits().wrapping_sub(shift.to_bits());
            let magnitude = (((power - self.min_exponent) >> (23 - m)) + steps).min(self.max_code);
            let negative = y.to_bits() >> 31;
            *code = if integer {
                (magnitude ^ negative.wrapping_neg()).wrapping_add(negative)
            } else {
                magnitude | negative * sign_bit
            } as u8;
        }
        scale
    }

    /// The scale of a block with this largest magnitude (as bits, finite).
    #[inline(always)]
    fn scale(&self, amax: u32, block: &[f32]) -> E8M0 {
        if self.format.scale_rule == ScaleRule::Mse || amax < f32::MIN_POSITIVE.to_bits() {
            return self.scale_by_rule(amax, block);
        }
        E8M0((((amax + self.bump) >> 23) as i32 - self.format.element.emax()).clamp(0, 254) as u8)
    }

    #[cold]
    fn scale_by_rule(&self, amax: u32, block: &[f32]) -> E8M0 {
        match self.format.scale_rule {
            ScaleRule::Mse => ScaleRule::Mse.scale(block, self.format.element),
            rule => rule.scale_of_max(f32::from_bits(amax), self.format.element),
        }
    }

    /// Replaces a row by its element values and writes, per block, the scale and the mass ([`XTile::mass`]).
    ///
    /// A block of zeros gets the scale 1 instead of the format's smallest: its products are zero all the same, and
    /// the smallest scale would make every product with it take the slow path. A block with an infinity or a NaN
    /// gets zeros and the scale NaN.
    ///
    /// [`XTile::norms`]: super::product::XTile::norms
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, row: &mut [f32], blocks: &mut [[f32; 2]]) {
        if self.format.block_size == BLOCK {
            // The usual size in loops of a fixed length.
            let (whole, last) = row.as_chunks_mut::<BLOCK>();
            let mut blocks = blocks.iter_mut();
            for (block, to) in whole.iter_mut().zip(blocks.by_ref()) {
                let scale = self.block(block);
                *to = [scale, self.norm(block)];
            }
            if let Some(to) = blocks.next() {
                let scale = self.block(last);
                *to = [scale, self.norm(last)];
            }
        } else {
            for (block, to) in row.chunks_mut(self.format.block_size).zip(blocks) {
                let scale = self.block(block);
                *to = [scale, self.norm(block)];
            }
        }
    }

    /// The Euclidean norm of elements over the largest power of two that divides them all, or a little more; infinite
    /// where the numbers are too far apart for the way it is computed.
    #[inline(always)]
    fn norm(&self, values: &[f32]) -> f32 {
        if self.units * self.max >= (1 << 23) as f32 || values.len() > BLOCK {
            return f32::INFINITY;
        }
        // Adding it leaves an integer below 2^23 in the low bits.
        const SHIFT: f32 = (1 << 23) as f32;
        let mut bits = [0u32; LANES];
        let mut squares = [0f32; LANES];
        for values in values.chunks(LANES) {
            for ((square, bits), x) in squares.iter_mut().zip(&mut bits).zip(values) {
                let x = x * self.units;
                *bits |= (x.abs() + SHIFT).to_bits() & 0x7F_FFFF;
                *square = x.mul_add(x, *square);
            }
        }
        let bits = bits.iter().fold(0, |all, bits| all | bits);
        let divisor = (bits & bits.wrapping_neg()).max(1);
        squares.iter().sum::<f32>().sqrt() * ROUND_UP / divisor as f32
    }

    /// [`row`](Self::row) for sixteen blocks side by side, each down a column of `block`.
    #[inline(always)]
    pub(in crate::cpu) fn columns(&self, block: &mut [[f32; LANES]]) -> [f32; LANES] {
        let mut amax = [0u32; LANES];
        for row in block.iter() {
            amax.iter_mut().zip(row).for_each(|(max, x)| *max = (*max).max(x.to_bits() & 0x7FFF_FFFF));
        }
        let mut scales = [1f32; LANES];
        let mut inverses = [0f32; LANES];
        for (lane, &amax) in amax.iter().enumerate() {
            if amax >= f32::INFINITY.to_bits() {
                scales[lane] = f32::NAN;
            } else if amax != 0 {
                let mse = self.format.scale_rule == ScaleRule::Mse;
                let column: Vec<f32> = if mse { block.iter().map(|row| row[lane]).collect() } else { Vec::new() };
                let scale = self.scale(amax, &column);
                (scales[lane], inverses[lane]) = (power(scale), inverse(scale));
            }
        }
        for row in block {
            for ((x, &inverse), scale) in row.iter_mut().zip(&inverses).zip(&scales) {
                *x = if scale.is_nan() { 0.0 } else { self.element(*x * inverse) };
            }
        }
        scales
    }

    #[inline(always)]
    fn block(&self, block: &mut [f32]) -> f32 {
        let amax = amax(block);
        if amax >= f32::INFINITY.to_bits() {
            block.fill(0.0);
            return f32::NAN;
        }
        if amax == 0 {
            block.fill(0.0);
            return 1.0;
        }
        let scale = self.scale(amax, block);
        let inverse = inverse(scale);
        for x in block.iter_mut() {
            *x = self.element(*x * inverse);
        }
        power(scale)
    }

    /// The element nearest to `y`, ties to even, saturated. `y` is below 2^(emax + 2), as a block's scale sees to.
    #[inline(always)]
    fn element(&self, y: f32) -> f32 {
        let a = y.abs();
        // Adding and taking away a number whose last bit is worth one step rounds to a multiple of the step.
        let power = f32::from_bits((a.to_bits() & 0x7F80_0000).max(self.min_exponent));
        let shift = power * self.magic;
        let rounded = (a + shift) - shift;
        rounded.min(self.max).copysign(y)
    }
}

/// More than what rounding can take from a norm.
pub(super) const ROUND_UP: f32 = 1.0 + 1e-5;

/// The largest magnitude, as bits: as integers, magnitudes are ordered with NaN above infinity above the rest.
#[inline(always)]
fn amax(block: &[f32]) -> u32 {
    block.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF))
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

/// Packs the codes of a block, least significant bits first.
#[inline(always)]
fn pack_block<const BITS: usize>(codes: &[u8; BLOCK], to: &mut [u8]) {
    match BITS {
        4 => {
            for (to, [low, high]) in to.iter_mut().zip(codes.as_chunks::<2>().0) {
                *to = low | high << 4;
            }
        }
        6 => {
            for (to, codes) in to.chunks_exact_mut(6).zip(codes.as_chunks::<8>().0) {
                let x = u64::from_le_bytes(*codes);
                // Pairs to 12 bits, those to 24, those to 48.
                let x = x & 0x003F_003F_003F_003F | x >> 2 & 0x0FC0_0FC0_0FC0_0FC0;
                let x = x & 0x0000_0FFF_0000_0FFF | x >> 4 & 0x00FF_F000_00FF_F000;
                let x = x & 0x00FF_FFFF | x >> 8 & 0xFFFF_FF00_0000;
                to.copy_from_slice(&x.to_le_bytes()[..6]);
            }
        }
        _ => to.copy_from_slice(codes),
    }
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
    use microscale_formats::{ElementFormat, quantize_block};

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
                        quantizer.encode_row(isa, &mut block.clone(), &mut packed, &mut found);
                        assert_eq!(found[0], scale, "{format:?} {isa} of {block:?}");
                        assert_eq!(
                            packed,
                            microscale_formats::pack(&codes, element.bits()),
                            "{format:?} {isa} of {block:?}"
                        );
                    }
                    let (mut values, mut scales) = (block, [[0.0; 2]]);
                    quantizer.row(&mut values, &mut scales);
                    let [power, norm] = scales[0];
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
}
