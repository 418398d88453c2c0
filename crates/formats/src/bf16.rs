//! bfloat16, as a rounding of `f32`.

/// Rounds to the nearest bfloat16 value, ties to even; overflow goes to infinity, NaN to the quiet NaN.
pub fn round_to_bf16(x: f32) -> f32 {
    if x.is_nan() {
        return f32::NAN;
    }
    let bits = x.to_bits();
    let half_less_one_or_half = 0x7FFF + ((bits >> 16) & 1);
    f32::from_bits(bits.wrapping_add(half_less_one_or_half) & 0xFFFF_0000)
}

#[cfg(test)]
mod tests {
    use super::round_to_bf16;

    #[test]
    fn rounds_ties_to_even_and_keeps_specials() {
        for (bits, rounded) in [
            (0x3F80_8000, 0x3F80_0000),
            (0x3F81_8000, 0x3F82_0000),
            (0x3F80_8001, 0x3F81_0000),
            (0x7F7F_FFFF, 0x7F80_0000),
            (0x0000_8001, 0x0001_0000),
            (0x8000_0000, 0x8000_0000),
        ] {
            assert_eq!(round_to_bf16(f32::from_bits(bits)).to_bits(), rounded, "{bits:08x}");
        }
        assert!(round_to_bf16(f32::from_bits(0x7F80_0001)).is_nan(), "a NaN must not turn into an infinity");
    }
}
