//! The few transcendental functions, one implementation for every path and platform.
//!
//! Rust's own go to the platform's C library, whose last bits differ from machine to machine.

use std::f64::consts::LOG2_E;

/// e^x in f64, within one unit in the last place for |x| ≤ 200; beyond, the result of ±200 (whose rounding to `f32`
/// is infinity or zero). NaN stays NaN.
///
/// Free of branches, so that loops over it vectorize: x = n·ln 2 + r, |r| ≤ ln 2 / 2, and e^r by its Taylor series.
#[inline(always)]
pub fn exp(x: f64) -> f64 {
    // ln 2 in two parts, the first with 33 trailing zero bits, so that n·LN2_HIGH is exact.
    const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
    const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
    // Adding it rounds to an integer, which then stands in the low bits.
    const SHIFT: f64 = 6755399441055744.0; // 1.5·2^52
    let x = x.clamp(-200.0, 200.0);
    let shifted = x.mul_add(LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    const INVERSE_FACTORIALS: [f64; 12] = inverse_factorials();
    let mut tail = INVERSE_FACTORIALS[11];
    let mut i = 11;
    while i > 0 {
        i -= 1;
        tail = tail.mul_add(r, INVERSE_FACTORIALS[i]);
    }
    let power = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    (r * r).mul_add(tail, r).mul_add(power, power)
}

/// 1/2!, 1/3!, … 1/13!.
const fn inverse_factorials() -> [f64; 12] {
    let mut table = [0.0; 12];
    let mut factorial = 1.0;
    let mut i = 0;
    while i < 12 {
        factorial *= (i + 2) as f64;
        table[i] = 1.0 / factorial;
        i += 1;
    }
    table
}

/// Natural logarithm in f64.
pub fn ln(x: f64) -> f64 {
    libm::log(x)
}

/// x^y in f64.
pub fn pow(x: f64, y: f64) -> f64 {
    libm::pow(x, y)
}

/// Sine and cosine of an `f32` angle in radians, rounded to `f32` through f64.
pub fn sin_cos(angle: f32) -> (f32, f32) {
    let (sin, cos) = libm::sincos(f64::from(angle));
    (sin as f32, cos as f32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against an independent implementation, over the range that matters to softmax and beyond.
    #[test]
    fn exp_agrees_with_libm() {
        let (mut worst, mut unequal) = (0u64, 0);
        for i in -2_000_000..2_000_000i64 {
            let x = i as f64 * 5.2e-5 + 1e-7;
            let (ours, theirs) = (exp(x), libm::exp(x));
            worst = worst.max(ours.to_bits().abs_diff(theirs.to_bits()));
            unequal += u32::from((ours as f32).to_bits() != (theirs as f32).to_bits());
        }
        assert!(worst <= 2, "{worst} units in the last place apart");
        assert_eq!(unequal, 0, "of 4,000,000 rounded to f32");
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1e30) as f32, 0.0);
        assert_eq!(exp(f64::NEG_INFINITY) as f32, 0.0);
        assert_eq!(exp(f64::INFINITY) as f32, f32::INFINITY);
        assert!(exp(f64::NAN).is_nan());
    }
}
