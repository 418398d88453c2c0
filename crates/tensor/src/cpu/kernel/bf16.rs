//! bf16 to f32 and back, without branches that would keep a loop from being vectorized.

use half::bf16;

/// The value.
#[inline(always)]
pub(in crate::cpu) fn float(x: bf16) -> f32 {
    f32::from_bits(u32::from(x.to_bits()) << 16)
}

/// The nearest bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(in crate::cpu) fn round(x: f32) -> bf16 {
    bf16::from_bits((rounded(x).to_bits() >> 16) as u16)
}

/// The nearest bf16 as an f32.
#[inline(always)]
pub(in crate::cpu) fn rounded(x: f32) -> f32 {
    let bits = x.to_bits();
    let nearest = bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) & 0xFFFF_0000;
    let quiet_nan = (bits & 0xFFFF_0000) | 0x40_0000;
    f32::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { quiet_nan } else { nearest })
}

/// A row of values.
#[inline(always)]
pub(in crate::cpu) fn floats(from: &[bf16], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = float(*x));
}

/// One or two values as a pair, the first in the low half.
#[inline(always)]
pub(in crate::cpu) fn pair(values: &[bf16]) -> u32 {
    let bits = |i: usize| values.get(i).map_or(0, |x| u32::from(x.to_bits()));
    bits(0) | bits(1) << 16
}

/// Copies the first values of 32, as many as there is room for. They are not worth a call, which a loop over them would become.
#[inline(always)]
pub(super) fn copy(from: &[bf16; 32], to: &mut [bf16]) {
    let (fours, rest) = to.as_chunks_mut::<4>();
    let whole = fours.len();
    for (i, from) in from.as_chunks::<4>().0.iter().enumerate() {
        if let Some(to) = fours.get_mut(i) {
            *to = *from;
        } else if i == whole {
            for (j, &from) in from[..3].iter().enumerate() {
                if let Some(to) = rest.get_mut(j) {
                    *to = from;
                }
            }
        }
    }
}
