//! Quantizing rows to element values and scales, without a detour over codes.
//!
//! Equal in value to [`microscale_formats::quantize_block`]; the tests compare them.

use microscale_formats::{ElementFormat, ScaleRule};

use crate::BlockFormat;

/// What rounding to a format takes, in the form the loop wants it.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Quantizer {
    format: BlockFormat,
    /// Exponent field of the smallest normal number, in place.
    min_exponent: u32,
    /// Factor from the power of two of a value to the number whose last bit is worth one step.
    magic: f32,
    max: f32,
}

impl Quantizer {
    pub(in crate::cpu) fn new(format: BlockFormat) -> Quantizer {
        let element = format.element;
        Quantizer {
            format,
            min_exponent: ((1 - element.bias() + 127) as u32) << 23,
            magic: f32::from_bits((23 - element.mantissa_bits() + 127) << 23),
            max: element.max(),
        }
    }

    pub(in crate::cpu) fn block_size(&self) -> usize {
        self.format.block_size
    }

    /// Replaces a row by its element values and writes one scale per block.
    ///
    /// A block of zeros gets the scale 1 instead of the format's smallest: its products are zero all the same, and
    /// the smallest scale would make every product with it take the slow path. A block with an infinity or a NaN
    /// gets zeros and the scale NaN.
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, row: &mut [f32], scales: &mut [f32]) {
        for (block, scale) in row.chunks_mut(self.format.block_size).zip(scales) {
            *scale = self.block(block);
        }
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
        // 2^-(byte - 127); for byte 254 that is the subnormal 2^-127.
        let inverse =
            if scale.0 == 254 { f32::from_bits(1 << 22) } else { f32::from_bits((254 - u32::from(scale.0)) << 23) };
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

/// Element values of every code of a format, for decoding by look-up.
pub(in crate::cpu) fn decode_table(element: ElementFormat) -> [f32; 256] {
    std::array::from_fn(|code| element.decode(code as u8))
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_formats::quantize_block;

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
                    let (mut values, mut scales) = (block, [0.0]);
                    quantizer.row(&mut values, &mut scales);
                    for (i, (&value, &code)) in values.iter().zip(&codes).enumerate() {
                        assert_eq!(value, element.decode(code), "{format:?} {:?} of {block:?}", block[i]);
                    }
                    let zero = block.iter().all(|&x| x == 0.0);
                    assert!(
                        scales[0].to_bits() == scale.value().to_bits()
                            || (scale.value().is_nan() && scales[0].is_nan())
                            || zero
                    );
                }
            }
        }
    }
}
