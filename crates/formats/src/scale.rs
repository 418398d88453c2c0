//! The shared scale of a block, and the rules that choose it.

use crate::block::{dequantize_block, encode_scaled};
use crate::element::{E4M3, ElementFormat, INT8, Ties, exp2};
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
    /// ⌊log2(amax / max)⌋: mistral.rs. Clips every block whose largest value is not max·2^e.
    Rfloor,
    /// log2(amax / max) rounded to the nearest integer: MLX. Clips up to a factor of √2.
    Rnearest,
    /// Of the scales of `Floor` and the next larger one, that with the smaller squared error; ties to `Floor`.
    Mse,
    /// The rule with the best signal-to-noise ratio that needs no more than a block's largest value, by format: see
    /// [`for_format`](Self::for_format).
    Auto,
}

impl ScaleRule {
    /// Every rule.
    pub const ALL: [ScaleRule; 8] =
        [Self::Floor, Self::Ceil, Self::Rceil, Self::Even, Self::Rfloor, Self::Rnearest, Self::Mse, Self::Auto];

    /// Which of [`ALL`](Self::ALL) it is.
    #[inline]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The name recipes use.
    pub fn name(self) -> &'static str {
        match self {
            ScaleRule::Floor => "floor",
            ScaleRule::Ceil => "ceil",
            ScaleRule::Rceil => "rceil",
            ScaleRule::Even => "even",
            ScaleRule::Rfloor => "rfloor",
            ScaleRule::Rnearest => "rnearest",
            ScaleRule::Mse => "mse",
            ScaleRule::Auto => "auto",
        }
    }

    /// The rule itself; what `Auto` means for a format. docs/formats.md has the measurement behind it, which
    /// `crates/microscale/tests/scale_rules.rs` repeats.
    pub fn for_format(self, format: ElementFormat) -> ScaleRule {
        match self {
            ScaleRule::Auto if format == E4M3 => ScaleRule::Rceil,
            ScaleRule::Auto if format == INT8 => ScaleRule::Floor,
            ScaleRule::Auto => ScaleRule::Even,
            rule => rule,
        }
    }

    /// The rule of this name, in any case.
    pub fn from_name(name: &str) -> Option<ScaleRule> {
        Self::ALL.into_iter().find(|r| r.name().eq_ignore_ascii_case(name))
    }

    /// The scale of `block` in `format`; NaN if any value is infinite or NaN.
    pub fn scale(self, block: &[f32], format: ElementFormat) -> E8M0 {
        self.scale_for(block, format, Ties::Even)
    }

    /// The scale of a block whose elements will be rounded as `ties` says, which `Mse` depends on.
    pub(crate) fn scale_for(self, block: &[f32], format: ElementFormat, ties: Ties) -> E8M0 {
        if block.iter().any(|x| !x.is_finite()) {
            return E8M0::NAN;
        }
        let amax = block.iter().fold(0f32, |m, x| m.max(x.abs()));
        match self.for_format(format) {
            ScaleRule::Mse => least_squares(block, amax, format, ties),
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
        let largest = split(format.max()).1;
        let over = match self.for_format(format) {
            ScaleRule::Floor | ScaleRule::Mse | ScaleRule::Auto => return floor,
            ScaleRule::Ceil => i32::from(significand > 1 << 23),
            ScaleRule::Rceil => i32::from(significand > largest),
            ScaleRule::Rfloor => -i32::from(significand < largest),
            ScaleRule::Rnearest => {
                // The logarithm is nearer to the next integer from a quotient of √2 on; no quotient is √2 itself.
                let [x, y] = [significand, largest].map(|s| u64::from(s) * u64::from(s));
                i32::from(x > 2 * y) - i32::from(2 * x < y)
            }
            ScaleRule::Even => {
                let dropped = 23 - format.mantissa_bits();
                let kept = significand >> dropped;
                let (rest, half) = (significand & ((1 << dropped) - 1), 1 << (dropped - 1));
                let rounded = kept + u32::from(rest > half || (rest == half && kept & 1 == 1));
                i32::from(rounded >> (format.mantissa_bits() + 1) == 1)
            }
        };
        E8M0::from_exponent(exponent - format.emax() + over)
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
fn least_squares(block: &[f32], amax: f32, format: ElementFormat, ties: Ties) -> E8M0 {
    let floor = ScaleRule::Floor.scale_of_max(amax, format);
    let next = E8M0(floor.0.saturating_add(1).min(254));
    let mut codes = vec![0; block.len()];
    let mut values = vec![0.0; block.len()];
    let mut error = |scale: E8M0| {
        encode_scaled(block, scale, format, ties, &mut codes);
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
    fn rules_know_their_places() {
        assert_eq!(ScaleRule::ALL.map(ScaleRule::index), [0, 1, 2, 3, 4, 5, 6, 7]);
    }

    #[test]
    fn rules_at_the_edges_of_a_binade() {
        let next_up = |x: f32| f32::from_bits(x.to_bits() + 1);
        // amax, then the exponents under the rules up to rnearest for E2M1 (max 6 = 1.5·2^2, one mantissa bit).
        for (amax, expected) in [
            (4.0, [0, 0, 0, 0, -1, -1]),
            (next_up(4.0), [0, 1, 0, 0, -1, -1]),
            (4.242_640_5, [0, 1, 0, 0, -1, -1]), // 6/√2 = 4.24264069
            (4.242_641, [0, 1, 0, 0, -1, 0]),
            (6.0, [0, 1, 0, 0, 0, 0]),
            (next_up(6.0), [0, 1, 1, 0, 0, 0]),
            (7.0, [0, 1, 1, 1, 0, 0]), // halfway between 6 and 8: the tie goes to the even mantissa, which is 8's
            (6.9999995, [0, 1, 1, 0, 0, 0]),
        ] {
            for (rule, e) in ScaleRule::ALL.into_iter().zip(expected) {
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
