//! Softmax's exponentials where they are looked up: of bf16 numbers there are few.

use std::sync::LazyLock;

use super::{LANES, LEAST_EXPONENT};
use crate::math;

/// e^x of every bf16 number x, by its bits, for e^(x − y) as the product of e^x and e^−y where y is the largest of such x.
///
/// What softmax asks for is the exponential of the difference in f32, rounded to f32. That is this product rounded to f32
/// wherever both numbers are 0 or not below [`LEAST`] in magnitude: their difference is exact then, and its exponential further
/// from the middle between two f32 than the product is from it. Elsewhere the product is not in 0..=1: infinity stands for the
/// exponentials of smaller numbers, and of those above [`LARGEST`].
pub(crate) struct ExponentialTable(Box<[f64; 1 << 16]>);

/// With a difference of less than 128, multiples of 2^-7 of this have 24 bits.
const LEAST: f32 = 1.0 / 1024.0;
/// Times the exponential of [`LEAST_EXPONENT`], of which there is none less but zero, that of this becomes zero in f32.
const LARGEST: f32 = 90.0;

impl ExponentialTable {
    pub(crate) fn get() -> &'static ExponentialTable {
        static TABLE: LazyLock<ExponentialTable> = LazyLock::new(|| {
            let mut table = vec![0.0; 1 << 16];
            for (bits, exponential) in (0..1 << 16).zip(&mut table) {
                *exponential = entry(f32::from_bits(bits << 16));
            }
            ExponentialTable(table.try_into().expect("one of every number"))
        });
        &TABLE
    }

    /// Of a bf16 number.
    #[inline(always)]
    pub(super) fn of(&self, x: f32) -> f64 {
        self.0[(x.to_bits() >> 16) as usize]
    }

    /// What makes of it the exponentials of numbers over the largest ones, lane by lane.
    #[inline(always)]
    pub(crate) fn over(&'static self, largest: &[f32; LANES]) -> OverLargest {
        let mut by = [0.0; LANES];
        for (by, &largest) in by.iter_mut().zip(largest) {
            *by = self.of(-largest);
        }
        OverLargest { table: self, by }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn entries(&self) -> &[f64; 1 << 16] {
        &self.0
    }
}

/// The table, and the exponentials of the largest numbers negated.
pub(crate) struct OverLargest {
    pub(super) table: &'static ExponentialTable,
    pub(super) by: [f64; LANES],
}

fn entry(x: f32) -> f64 {
    if x.is_nan() {
        f64::NAN
    } else if x > LARGEST || x != 0.0 && x.abs() < LEAST {
        f64::INFINITY
    } else if x < LEAST_EXPONENT {
        0.0
    } else {
        math::exp(f64::from(x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three roundings to f64 leave the product within 2^-50.6 of the exponential, and `math::exp` is within 2^-52 of it: of every
    /// difference that is exact both round to the same f32.
    #[test]
    fn no_exponential_of_an_exact_difference_is_near_the_middle() {
        let unit = LEAST / 128.0;
        for n in 0..=(110.0 / unit) as u32 {
            let x = -(n as f32 * unit);
            let y = math::exp(f64::from(x));
            let margin = y * 0.5f64.powi(50);
            let [below, above] = [y - margin, y + margin].map(|y| (y as f32).to_bits());
            assert_eq!(below, above, "{x:e}");
        }
    }

    /// Every kind of number over every kind of largest one.
    #[test]
    fn products_are_the_exponentials_of_differences_or_none() {
        let table = ExponentialTable::get();
        let every = |step: usize| (0..1u32 << 16).step_by(step).map(|bits| f32::from_bits(bits << 16));
        let mut looked_up = 0;
        for largest in every(37).chain([0.0, f32::INFINITY, f32::NEG_INFINITY, 90.0, -90.0]) {
            let by = table.over(&[largest; LANES]).by[0];
            for x in every(41).chain([largest, 0.0, f32::NEG_INFINITY]).filter(|&x| x <= largest || x.is_nan()) {
                let (product, expected) = ((table.of(x) * by) as f32, math::exp_of_negative(x - largest));
                if (0.0..=1.0).contains(&product) {
                    assert_eq!(product.to_bits(), expected.to_bits(), "{x:e} over {largest:e}");
                    looked_up += 1;
                }
            }
        }
        assert!(looked_up > 200_000, "{looked_up}");
    }
}
