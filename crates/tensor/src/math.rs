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
    let (r, power) = reduced(x.clamp(-200.0, 200.0));
    const INVERSE_FACTORIALS: [f64; 12] = inverse_factorials();
    let mut tail = INVERSE_FACTORIALS[11];
    let mut i = 11;
    while i > 0 {
        i -= 1;
        tail = tail.mul_add(r, INVERSE_FACTORIALS[i]);
    }
    (r * r).mul_add(tail, r).mul_add(power, power)
}

/// [`exp`], rounded to `f32`, of an `f32` that is not positive. NaN stays NaN.
///
/// The same for every such number, in less time: a polynomial of degree 10 is enough, if its coefficients are those that
/// leave the least error, and its parts need not wait for each other.
#[inline(always)]
pub fn exp_of_negative(x: f32) -> f32 {
    // (e^r − 1 − r) / r² on |r| ≤ ln 2 / 2, by Lawson's algorithm; of e^r no more than 2^-51.6 is missing.
    const C: [f64; 9] = [
        0.4999999999999832,
        0.16666666666611332,
        0.04166666666814244,
        0.008333333370983768,
        0.0013888888515095554,
        0.00019841185065762383,
        2.4801932415646997e-05,
        2.7635068926803215e-06,
        2.747671449899278e-07,
    ];
    let (r, power) = reduced(f64::from(if x < -200.0 { -200.0 } else { x }));
    let r2 = r * r;
    let r4 = r2 * r2;
    let low = C[3].mul_add(r, C[2]).mul_add(r2, C[1].mul_add(r, C[0]));
    let high = C[7].mul_add(r, C[6]).mul_add(r2, C[5].mul_add(r, C[4]));
    let tail = C[8].mul_add(r4, high).mul_add(r4, low);
    r2.mul_add(tail, r).mul_add(power, power) as f32
}

/// ln 2 in two parts, the first with 33 trailing zero bits, so that its product with an exponent is exact.
const LN2_HIGH: f64 = f64::from_bits(0x3FE6_2E42_FEE0_0000);
const LN2_LOW: f64 = f64::from_bits(0x3DEA_39EF_3579_3C76);
/// 1.5·2^52. Adding it rounds to an integer, which then stands in the low bits.
pub(crate) const SHIFT: f64 = 6755399441055744.0;

/// r and 2^n, where x = n·ln 2 + r and |r| ≤ ln 2 / 2.
#[inline(always)]
fn reduced(x: f64) -> (f64, f64) {
    let shifted = x.mul_add(LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    (r, f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52))
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

    /// Every so-manyth `f32` from −0 to −110, where zero is all that is left; there are 1.1 thousand millions.
    fn exp_of_negative_is_exp(every: usize) {
        for bits in (0..=110f32.to_bits()).step_by(every) {
            let x = -f32::from_bits(bits);
            assert_eq!(exp_of_negative(x).to_bits(), (exp(f64::from(x)) as f32).to_bits(), "{x:e}");
        }
    }

    #[test]
    fn the_short_exp_is_the_long_one() {
        exp_of_negative_is_exp(601);
        for x in [0.0, -110.0, -200.0, -1e30, f32::NEG_INFINITY, f32::MIN] {
            assert_eq!(exp_of_negative(x), exp(f64::from(x)) as f32, "{x:e}");
        }
        assert!(exp_of_negative(f32::NAN).is_nan());
    }

    #[test]
    #[ignore = "takes more than a minute; for whoever changes a coefficient"]
    fn the_short_exp_is_the_long_one_of_every_number() {
        exp_of_negative_is_exp(1);
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
