//! A block of values ⇄ (shared scale, codes): the reference that every fast path equals.

use crate::bf16::round_to_bf16;
use crate::element::{ElementFormat, Rounding, Ties, exp2};
use crate::scale::{E8M0, ScaleRule};

/// Quantizes one block: writes a code per value and returns the shared scale.
///
/// A block that holds an infinity or a NaN gets the scale NaN and codes 0. Signed zeros keep their sign.
/// Blocks may have any length; the formats' own is [`BLOCK`](crate::BLOCK).
///
/// # Panics
/// If `codes` and `block` differ in length.
pub fn quantize_block(block: &[f32], format: ElementFormat, rule: ScaleRule, codes: &mut [u8]) -> E8M0 {
    quantize_block_with(block, format, rule, Ties::Even, codes)
}

/// [`quantize_block`] with other ties, as some tools round. Only stored weights are ever made so.
///
/// # Panics
/// If `codes` and `block` differ in length.
pub fn quantize_block_with(
    block: &[f32],
    format: ElementFormat,
    rule: ScaleRule,
    ties: Ties,
    codes: &mut [u8],
) -> E8M0 {
    let scale = rule.scale_for(block, format, ties);
    encode_scaled(block, scale, format, ties, codes);
    scale
}

/// Codes of `block` under a given scale.
pub(crate) fn encode_scaled(block: &[f32], scale: E8M0, format: ElementFormat, ties: Ties, codes: &mut [u8]) {
    assert_eq!(block.len(), codes.len(), "one code per value");
    let Some(exponent) = scale.exponent() else { return codes.fill(0) };
    for (code, &x) in codes.iter_mut().zip(block) {
        *code = format.encode_with(f64::from(x) * exp2(-exponent), &mut Rounding::Nearest(ties)); // exact in f64
    }
}

/// Values of one block: element · scale, rounded to bf16.
///
/// The product is exact in `f32`; the rounding acts only below bf16's subnormals, and turns 2^128 into infinity.
///
/// # Panics
/// If `codes` and `values` differ in length.
pub fn dequantize_block(codes: &[u8], scale: E8M0, format: ElementFormat, values: &mut [f32]) {
    assert_eq!(codes.len(), values.len(), "one value per code");
    let scale = scale.exponent().map_or(f64::NAN, exp2);
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = round_to_bf16((f64::from(format.decode(code)) * scale) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{E4M3, E5M2, INT8};

    #[test]
    fn quantizing_what_was_dequantized_changes_nothing() {
        let mut state = 1u64;
        for format in ElementFormat::ALL {
            // Not ceil (scales shrink when amax is rounded down) nor even (it may clip what it left unclipped).
            for rule in [ScaleRule::Floor, ScaleRule::Rceil, ScaleRule::Mse] {
                let block: [f32; 32] = core::array::from_fn(|i| {
                    state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    ((state >> 33) as f32 / 2f32.powi(31) - 0.5) * 2f32.powi(i as i32 % 7)
                });
                let (mut codes, mut values, mut again) = ([0; 32], [0.0; 32], [0.0; 32]);
                let scale = quantize_block(&block, format, rule, &mut codes);
                dequantize_block(&codes, scale, format, &mut values);
                let scale = quantize_block(&values, format, rule, &mut codes);
                dequantize_block(&codes, scale, format, &mut again);
                assert_eq!(values, again, "{format} {rule:?}");
            }
        }
    }

    #[test]
    fn a_poisoned_block_is_all_nan() {
        let (mut codes, mut values) = ([9; 3], [0.0; 3]);
        let scale = quantize_block(&[1.0, f32::NEG_INFINITY, 2.0], E4M3, ScaleRule::Floor, &mut codes);
        dequantize_block(&codes, scale, E4M3, &mut values);
        assert_eq!((scale, codes), (E8M0::NAN, [0; 3]));
        assert!(values.iter().all(|v| v.is_nan()));
    }

    #[test]
    fn the_ends_of_the_range() {
        let (mut codes, mut values) = ([0; 2], [0.0; 2]);
        let scale = quantize_block(&[f32::MAX, 1.0], INT8, ScaleRule::Floor, &mut codes);
        dequantize_block(&codes, scale, INT8, &mut values);
        assert_eq!((scale.0, values), (254, [1.984375 * 2f32.powi(127), 0.0]));
        let scale = quantize_block(&[1e-45, 0.0], E5M2, ScaleRule::Floor, &mut codes);
        assert_eq!((scale.0, codes), (0, [0, 0]), "far below 2^-127 · 2^-16");
    }
}
