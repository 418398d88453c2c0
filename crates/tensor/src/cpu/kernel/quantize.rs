//! Quantizing rows to element values and scales, without a detour over codes.
//!
//! Equal in value to [`microscale_formats::quantize_block`]; the tests compare them.

use microscale_formats::{BLOCK, E8M0, ScaleRule};

use super::product::unit;
use crate::BlockFormat;
use crate::cpu::simd::LANES;

/// What rounding to a format takes, in the form the loop wants it.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Quantizer {
    format: BlockFormat,
    /// Exponent field of the smallest normal number, in place.
    min_exponent: u32,
    /// Factor from the power of two of a value to the number whose last bit is worth one step.
    magic: f32,
    max: f32,
    /// The smallest magnitudes that make one.
    units: f32,
}

impl Quantizer {
    pub(in crate::cpu) fn new(format: BlockFormat) -> Quantizer {
        let element = format.element;
        Quantizer {
            format,
            min_exponent: ((1 - element.bias() + 127) as u32) << 23,
            magic: f32::from_bits((23 - element.mantissa_bits() + 127) << 23),
            max: element.max(),
            units: 1.0 / unit(element),
        }
    }

    /// Replaces a row by its element values and writes, per block, the scale and the mass ([`XTile::mass`]).
    ///
    /// A block of zeros gets the scale 1 instead of the format's smallest: its products are zero all the same, and
    /// the smallest scale would make every product with it take the slow path. A block with an infinity or a NaN
    /// gets zeros and the scale NaN.
    ///
    /// [`XTile::mass`]: super::product::XTile::mass
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, row: &mut [f32], blocks: &mut [[f32; 2]]) {
        if self.format.block_size == BLOCK {
            // The usual size in loops of a fixed length.
            let (whole, last) = row.as_chunks_mut::<BLOCK>();
            let mut blocks = blocks.iter_mut();
            for (block, to) in whole.iter_mut().zip(blocks.by_ref()) {
                let scale = self.block(block);
                *to = [scale, self.mass(block)];
            }
            if let Some(to) = blocks.next() {
                let scale = self.block(last);
                *to = [scale, self.mass(last)];
            }
        } else {
            for (block, to) in row.chunks_mut(self.format.block_size).zip(blocks) {
                let scale = self.block(block);
                *to = [scale, self.mass(block)];
            }
        }
    }

    /// The sum of magnitudes over the largest power of two that divides them all; infinite if it may not fit 32 bits.
    #[inline(always)]
    fn mass(&self, values: &[f32]) -> f32 {
        if self.units * self.max * BLOCK as f32 > (1 << 30) as f32 || values.len() > BLOCK {
            return f32::INFINITY;
        }
        let (mut sum, mut bits) = (0i32, 0i32);
        for x in values {
            let magnitude = (x * self.units).abs() as i32;
            sum += magnitude;
            bits |= magnitude;
        }
        (sum >> bits.trailing_zeros().min(31)) as f32
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
                let scale = match self.format.scale_rule {
                    ScaleRule::Mse => {
                        let column: Vec<f32> = block.iter().map(|row| row[lane]).collect();
                        ScaleRule::Mse.scale(&column, self.format.element)
                    }
                    rule => rule.scale_of_max(f32::from_bits(amax), self.format.element),
                };
                (scales[lane], inverses[lane]) = (scale.value(), inverse(scale));
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
        // As integers, magnitudes are ordered with NaN above infinity above the rest.
        let amax = block.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7FFF_FFFF));
        if amax >= f32::INFINITY.to_bits() {
            block.fill(0.0);
            return f32::NAN;
        }
        if amax == 0 {
            block.fill(0.0);
            return 1.0;
        }
        let scale = match self.format.scale_rule {
            ScaleRule::Mse => ScaleRule::Mse.scale(block, self.format.element),
            rule => rule.scale_of_max(f32::from_bits(amax), self.format.element),
        };
        let inverse = inverse(scale);
        for x in block.iter_mut() {
            *x = self.element(*x * inverse);
        }
        scale.value()
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
                    let (mut values, mut scales) = (block, [[0.0; 2]]);
                    quantizer.row(&mut values, &mut scales);
                    let [power, mass] = scales[0];
                    for (i, (&value, &code)) in values.iter().zip(&codes).enumerate() {
                        assert_eq!(value, element.decode(code), "{format:?} {:?} of {block:?}", block[i]);
                    }
                    let zero = block.iter().all(|&x| x == 0.0);
                    assert!(
                        power.to_bits() == scale.value().to_bits()
                            || (scale.value().is_nan() && power.is_nan())
                            || zero
                    );
                    let unit = values
                        .iter()
                        .map(|x| f64::from(unit(element)) * lowest_bit(x / unit(element)))
                        .fold(f64::INFINITY, f64::min);
                    let exact = values.iter().map(|x| f64::from(x.abs())).sum::<f64>() / unit;
                    assert!(mass.is_infinite() || zero || f64::from(mass) >= exact, "{mass} of {values:?}");
                }
            }
        }
    }
}
