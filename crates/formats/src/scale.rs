//! The shared scale of a block, and the rules that choose it.

use crate::block::{dequantize_block, encode_scaled};
use crate::element::{ElementFormat, exp2};
use alloc::vec;

/// A shared scale: the power of two 2^(byte − 127); 0xFF is NaN. There is no zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct E8M0(pub u8);

impl E8M0 {
    /// The scale of a block that holds an infinity or a NaN.
    pub const NAN: E8M0 = E8M0(0xFF);

    /// The scale 2^`exponent`, clamped to what the format holds.
    pub fn from_exponent(exponent: i32) -> E8M0 {
        E8M0(exponent.saturating_add(127).clamp(0, 254) as u8)
    }

    /// The exponent, −127 to 127; `None` for NaN.
    pub fn exponent(self) -> Option<i32> {
        (self != Self::NAN).then(|| i32::from(self.0) - 127)
    }

    /// The value, exact (2^−127 is a subnormal `f32`).
    pub fn value(self) -> f32 {
        self.exponent().map_or(f32::NAN, |e| exp2(e) as f32)
    }
}

/// How a block's scale follows from its values.
///
/// Everything is computed on the bits: a floating-point logarithm is off by one just below powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ScaleRule {
    /// ⌊log2 amax⌋ − emax: OCP's own, TorchMX, microxcaling, torchao FLOOR. Clips values above max·scale.
    #[default]
    Floor,
    /// ⌈log2 amax⌉ − emax: torchao CEIL. Never clips.
    Ceil,
    /// ⌈log2(amax / max)⌉: torchao RCEIL, cuBLAS, ModelOpt. The smallest scale that does not clip.
    Rceil,
    /// ⌊log2 of amax rounded to the element's mantissa⌋ − emax: AMD Quark, torchao EVEN.
    Even,
    /// Of the scales of `Floor` and the next larger one, that with the smaller squared error; ties to `Floor`.
    Mse,
}

impl ScaleRule {
    /// Every rule.
    pub const ALL: [ScaleRule; 5] = [Self::Floor, Self::Ceil, Self::Rceil, Self::Even, Self::Mse];

    /// The name recipes use.
    pub fn name(self) -> &'static str {
        match self {
            ScaleRule::Floor => "floor",
            ScaleRule::Ceil => "ceil",
            ScaleRule::Rceil => "rceil",
            ScaleRule::Even => "even",
            ScaleRule::Mse => "mse",
        }
    }

    /// The rule of this name, in any case.
    pub fn from_name(name: &str) -> Option<ScaleRule> {
        Self::ALL.into_iter().find(|r| r.name().eq_ignore_ascii_case(name))
    }

    /// The scale of `block` in `format`; NaN if any value is infinite or NaN.
    pub fn scale(self, block: &[f32], format: ElementFormat) -> E8M0 {
        if block.iter().any(|x| !x.is_finite()) {
            return E8M0::NAN;
        }
        let amax = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        match self {
            ScaleRule::Mse => least_squares(block, amax, format),
            rule => rule.scale_of_max(amax, format),
        }
    }

    /// The scale for a finite largest magnitude. `Mse`, which needs the whole block, answers its first candidate.
    pub fn scale_of_max(self, amax: f32, format: ElementFormat) -> E8M0 {
        let floor = E8M0(((amax.to_bits() >> 23) as i32 - format.emax()).clamp(0, 254) as u8);
        if amax == 0.0 {
            return E8M0(0);
        }
        let (exponent, significand) = split(amax);
        let over = match self {
            ScaleRule::Floor | ScaleRule::Mse => return floor,
            ScaleRule::Ceil => significand > 1 << 23,
            ScaleRule::Rceil => significand > split(format.max()).1,
            ScaleRule::Even => {
                let dropped = 23 - format.mantissa_bits();
                let kept = significand >> dropped;
                let (rest, half) = (significand & ((1 << dropped) - 1), 1 << (dropped - 1));
                let rounded = kept + u32::from(rest > half || (rest == half && kept & 1 == 1));
                rounded >> (format.mantissa_bits() + 1) == 1
            }
        };
        E8M0::from_exponent(exponent - format.emax() + i32::from(over))
    }
}

/// A positive finite number as (e, s): x = s·2^(e − 23) with 2^23 ≤ s < 2^24, subnormals included.
fn split(x: f32) -> (i32, u32) {
    let (field, fraction) = ((x.to_bits() >> 23) as i32, x.to_bits() & 0x7F_FFFF);
    if field > 0 {
        return (field - 127, fraction | 1 << 23);
    }
    let shift = fraction.leading_zeros() - 8;
    (-126 - shift as i32, fraction << shift)
}

/// [`ScaleRule::Mse`]: the squared errors are summed in f64, in element order.
fn least_squares(block: &[f32], amax: f32, format: ElementFormat) -> E8M0 {
    let floor = ScaleRule::Floor.scale_of_max(amax, format);
    let next = E8M0(floor.0.saturating_add(1).min(254));
    let mut codes = vec![0; block.len()];
    let mut values = vec![0.0; block.len()];
    let mut error = |scale: E8M0| {
        encode_scaled(block, scale, format, &mut codes);
        dequantize_block(&codes, scale, format, &mut values);
        block.iter().zip(&values).fold(0f64, |sum, (&x, &y)| {
            let d = f64::from(x) - f64::from(y);
            sum + d * d
        })
    };
    if error(next) < error(floor) { next } else { floor }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::quantize_block;
    use crate::element::{E2M1, E4M3, INT8};

    #[test]
    fn rules_at_the_edges_of_a_binade() {
        let next_up = |x: f32| f32::from_bits(x.to_bits() + 1);
        // amax, then the exponents under floor, ceil, rceil, even for E2M1 (max 6 = 1.5·2^2, one mantissa bit).
        for (amax, expected) in [
            (4.0, [0, 0, 0, 0]),
            (next_up(4.0), [0, 1, 0, 0]),
            (6.0, [0, 1, 0, 0]),
            (next_up(6.0), [0, 1, 1, 0]),
            (7.0, [0, 1, 1, 1]), // halfway between 6 and 8: the tie goes to the even mantissa, which is 8's
            (6.9999995, [0, 1, 1, 0]),
        ] {
            for (rule, e) in
                [ScaleRule::Floor, ScaleRule::Ceil, ScaleRule::Rceil, ScaleRule::Even].into_iter().zip(expected)
            {
                assert_eq!(rule.scale_of_max(amax, E2M1).exponent(), Some(e), "{rule:?} {amax}");
            }
        }
    }

    /// A floating-point log2 of this amax says one too few; the bits do not.
    #[test]
    fn rceil_just_above_the_maximum() {
        let x = f32::from_bits((448.0 * 2f32.powi(60)).to_bits() + 1);
        assert_eq!(ScaleRule::Rceil.scale_of_max(x, E4M3).exponent(), Some(61));
    }

    #[test]
    fn zeros_subnormals_and_specials() {
        for rule in ScaleRule::ALL {
            assert_eq!(rule.scale(&[0.0, -0.0], E4M3), E8M0(0), "{rule:?}");
            assert_eq!(rule.scale(&[1e-40], E4M3), E8M0(0), "{rule:?}");
            assert_eq!(rule.scale(&[1.0, f32::INFINITY], E4M3), E8M0::NAN, "{rule:?}");
            assert_eq!(rule.scale(&[f32::NAN], E4M3), E8M0::NAN, "{rule:?}");
        }
        // The largest subnormal is above 127/64·2^-127, so rceil needs 2^-126.
        assert_eq!(ScaleRule::Rceil.scale_of_max(f32::from_bits(0x7F_FFFF), INT8), E8M0(1));
        assert_eq!((E8M0(0).value(), E8M0(254).value()), (2f32.powi(-127), 2f32.powi(127)));
        assert!(E8M0::NAN.value().is_nan());
    }

    #[test]
    fn mse_takes_the_better_of_two() {
        let mut codes = [0; 2];
        // 7.9 clips to 6 under floor, is 8 under the next scale; 0.5 is then lost, which costs less.
        assert_eq!(quantize_block(&[7.9, 0.5], E2M1, ScaleRule::Mse, &mut codes), E8M0(128));
        assert_eq!(quantize_block(&[6.0, 0.5], E2M1, ScaleRule::Mse, &mut codes), E8M0(127));
    }
}
