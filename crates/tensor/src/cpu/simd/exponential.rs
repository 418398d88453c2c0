//! The exponential of softmax in AVX-512's registers, which hold a table of sixteen powers; and gathered from the large table.

#![allow(unsafe_code, reason = "vector intrinsics")]

use std::arch::x86_64::*;
use std::f64::consts::LOG2_E;

use super::avx512::{narrowed, widened};
use super::{LANES, LEAST_EXPONENT, OverLargest};
use crate::math::SHIFT;

/// Parts of a power of two that the table tells apart.
const PARTS: usize = 16;

/// The bits of 2^(j / 16), less j · 2^48: to these n · 2^48 is added, where n sixteenths are the whole exponent. Of n the low
/// four bits are j, and the others go where an `f64` has its exponent.
///
/// See [`COEFFICIENTS`] for why the last digits are not those of the powers.
const POWERS: [u64; PARTS] = {
    const ROOTS: [f64; PARTS] = [
        1.0,
        1.0442737824274075,
        1.090507732665251,
        1.1387886347566922,
        1.1892071150027141,
        1.2418578120734765,
        1.2968395546510145,
        1.3542555469368847,
        1.4142135623730865,
        1.4768261459394905,
        1.5422108254079314,
        1.6104903319492447,
        1.6817928305074195,
        1.756252160373289,
        1.8340080864093373,
        1.9152065613971472,
    ];
    let mut powers = [0; PARTS];
    let mut j = 0;
    while j < PARTS {
        powers[j] = ROOTS[j].to_bits() - ((j as u64) << 48);
        j += 1;
    }
    powers
};

/// Those of a polynomial of degree 4 for (2^(f / 16) − 1) / f on |f| ≤ 1 / 2, the constant last: of the power no more than
/// 2^-46 is missing.
///
/// That is enough for the nearest `f32` of all numbers but 330, whose exponentials lie next to the middle between two. The
/// coefficients, and the table within 2^-47, are a solution of the linear program that asks for these to lie on their right
/// side.
const COEFFICIENTS: [f64; 5] = [1.2712692265756933e-09, 1.4676346738642766e-07, 1.3550807940112158e-05, 0.0009383847927019062, 0.04332169878498559];

/// [`exp_of_negative`](crate::math::exp_of_negative), the same for every number.
///
/// # Safety
/// The CPU has AVX-512 F and DQ.
#[inline(always)]
pub(super) unsafe fn exp_of_negative(x: __m512) -> __m512 {
    // SAFETY: the caller's.
    unsafe {
        // Of two numbers of which one is NaN the machine takes the second.
        let ([first, second], powers) = (widened(_mm512_max_ps(_mm512_set1_ps(LEAST_EXPONENT), x)), powers());
        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(exp(first, powers)), exp(second, powers))
    }
}

/// The same in place, of numbers not below [`LEAST_EXPONENT`]: the machine widens halves of a vector on their way from memory, but
/// not those in a register.
///
/// # Safety
/// As above.
#[inline(always)]
pub(super) unsafe fn exponentials(x: &mut [f32; LANES]) {
    // SAFETY: the caller's; eight numbers each are loaded and stored.
    unsafe {
        let powers = powers();
        for half in x.as_chunks_mut::<{ LANES / 2 }>().0 {
            _mm256_storeu_ps(half.as_mut_ptr(), exp(_mm512_cvtps_pd(_mm256_loadu_ps(half.as_ptr())), powers));
        }
    }
}

/// The table in registers.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn powers() -> [__m512d; 2] {
    // SAFETY: the caller's; eight powers each are loaded of sixteen.
    unsafe { [_mm512_loadu_pd(POWERS.as_ptr().cast()), _mm512_loadu_pd(POWERS.as_ptr().add(8).cast())] }
}

/// x = (n + f) · ln 2 / 16, and e^x = 2^(n / 16) · (1 + f · …).
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn exp(x: __m512d, [low, high]: [__m512d; 2]) -> __m256 {
    // SAFETY: the caller's.
    unsafe {
        let sixteenths_of_one = _mm512_set1_pd(LOG2_E * PARTS as f64);
        let shifted = _mm512_fmadd_pd(x, sixteenths_of_one, _mm512_set1_pd(SHIFT));
        let n = _mm512_sub_pd(shifted, _mm512_set1_pd(SHIFT));
        let f = _mm512_fmsub_pd(x, sixteenths_of_one, n);
        let sixteenths = _mm512_castpd_si512(shifted);
        let root = _mm512_castpd_si512(_mm512_permutex2var_pd(low, sixteenths, high));
        let power = _mm512_castsi512_pd(_mm512_add_epi64(root, _mm512_slli_epi64::<48>(sixteenths)));
        let [c4, c3, c2, c1, c0] = COEFFICIENTS;
        let tail = _mm512_fmadd_pd(_mm512_set1_pd(c4), f, _mm512_set1_pd(c3));
        let tail = _mm512_fmadd_pd(tail, f, _mm512_set1_pd(c2));
        let tail = _mm512_fmadd_pd(tail, f, _mm512_set1_pd(c1));
        let tail = _mm512_fmadd_pd(tail, f, _mm512_set1_pd(c0));
        _mm512_cvtpd_ps(_mm512_fmadd_pd(_mm512_mul_pd(power, f), tail, power))
    }
}

/// Exponentials of bf16 numbers over the largest ones, from the table.
///
/// # Safety
/// As above.
#[inline(always)]
pub(super) unsafe fn looked_up(OverLargest { table, by }: &OverLargest, x: &[f32; LANES]) -> __m512 {
    let entries = table.entries().as_ptr();
    // SAFETY: the caller's; sixteen numbers each are loaded, and there is an entry for all of 16 bits.
    unsafe {
        let numbers = _mm512_srli_epi32::<16>(_mm512_loadu_si512(x.as_ptr().cast()));
        let first = _mm512_i32gather_pd::<8>(_mm512_castsi512_si256(numbers), entries);
        let second = _mm512_i32gather_pd::<8>(_mm512_extracti32x8_epi32::<1>(numbers), entries);
        let by = [_mm512_loadu_pd(by.as_ptr()), _mm512_loadu_pd(by.as_ptr().add(LANES / 2))];
        narrowed([_mm512_mul_pd(first, by[0]), _mm512_mul_pd(second, by[1])])
    }
}

#[cfg(test)]
mod tests {
    use crate::cpu::simd::avx512::Avx512;
    use crate::cpu::simd::{LANES, LEAST_EXPONENT, Simd};
    use crate::math;

    /// Every so-manyth vector of numbers from −0 on, past where zero is all that is left, and what lies beyond.
    fn is_that_of_math(every: usize) {
        let Some(simd) = Avx512::detect() else { return };
        let agrees = |numbers: [f32; LANES]| {
            let mut found = [0.0; LANES];
            // Of this only what is not below the least.
            let mut in_place = numbers.map(|x| if x < LEAST_EXPONENT { LEAST_EXPONENT } else { x });
            simd.vectorize(|| {
                simd.store(simd.exp_of_negative(simd.load(&numbers)), &mut found);
                simd.exponentials(&mut in_place);
            });
            for (x, found) in numbers.into_iter().zip(found).chain(numbers.into_iter().zip(in_place)) {
                let expected = math::exp_of_negative(x);
                assert!(found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan(), "{x:e}: {found:e}");
            }
        };
        for bits in (0..110f32.to_bits()).step_by(LANES * every) {
            agrees(std::array::from_fn(|i| -f32::from_bits(bits + i as u32)));
        }
        let beyond = [-110.0, -200.0, -1e30, f32::NEG_INFINITY, f32::MIN, f32::NAN, -f32::NAN, 0.0];
        agrees(std::array::from_fn(|i| beyond[i % 8]));
    }

    #[test]
    fn the_table_gives_the_same_exponentials() {
        is_that_of_math(61);
    }

    #[test]
    #[ignore = "takes long without optimisation; for whoever changes a number here"]
    fn the_table_gives_the_same_exponentials_of_every_number() {
        is_that_of_math(1);
    }
}
