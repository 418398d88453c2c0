//! Plain values as blocks of ggml's type Q8_0, by ggml's own rule: the scale is a block's largest magnitude by 127.

use half::f16;
use microscale_formats::BLOCK;
use microscale_model::Dtype;
use microscale_model::transfer::RowTransform;

use crate::repack::{Q8_0_BLOCK, parameter};

/// Rows of values, rounded to bf16 and quantized, and within groups in another order.
#[derive(Debug)]
pub(super) struct Quants {
    /// Type of the source's values.
    pub(super) from: Dtype,
    /// Values of a row, a multiple of 32.
    pub(super) columns: usize,
    /// Of each row of a group, which row of the source's group it is.
    pub(super) order: Vec<usize>,
}

impl RowTransform for Quants {
    fn apply(&self, groups: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), String> {
        let width = self.from.bitsize() / 8;
        let row_bytes = Q8_0_BLOCK * (self.columns / BLOCK);
        let rows = (0..groups).flat_map(|group| self.order.iter().map(move |source| group * self.order.len() + source));
        for (read, written) in rows.zip(outputs[0].chunks_exact_mut(row_bytes)) {
            let row = &inputs[0][read * self.columns * width..][..self.columns * width];
            for (bytes, block) in row.chunks_exact(BLOCK * width).zip(written.chunks_exact_mut(Q8_0_BLOCK)) {
                let mut values = [0f32; BLOCK];
                for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(width)) {
                    *value = parameter(self.from, bytes)?;
                }
                encode(&values, block)?;
            }
        }
        Ok(())
    }
}

/// One block: `quantize_row_q8_0_ref` of ggml-quants.c. The integers are of the scale before it is rounded to f16.
fn encode(values: &[f32; BLOCK], block: &mut [u8]) -> Result<(), String> {
    let largest = values.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let half = f16::from_f32(scale);
    if !half.is_finite() {
        return Err(format!("has values up to {largest:e}, more than a Q8_0 block holds; write it as bf16"));
    }
    block[..2].copy_from_slice(&half.to_le_bytes());
    // A scale so small that its inverse is none is 0 in f16.
    let inverse = if half == f16::ZERO && !(1.0 / scale).is_finite() { 0.0 } else { 1.0 / scale };
    for (code, x) in block[2..].iter_mut().zip(values) {
        *code = (x * inverse).round() as i8 as u8; // round: halves away from zero
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// tests/goldens/q8_0.py wrote them with the library `gguf`.
    #[test]
    fn blocks_are_those_of_gguf() {
        let golden = include_str!("../../tests/goldens/q8_0.txt");
        let bytes = |digits: &str| -> Vec<u8> {
            (0..digits.len() / 2).map(|i| u8::from_str_radix(&digits[2 * i..2 * i + 2], 16).unwrap()).collect()
        };
        for line in golden.lines() {
            let (values, expected) = line.split_once(' ').unwrap();
            let quants = Quants { from: Dtype::BF16, columns: BLOCK, order: vec![0] };
            let mut block = [0; Q8_0_BLOCK];
            quants.apply(1, &[&bytes(values)], &mut [&mut block]).unwrap();
            assert_eq!(block[..], bytes(expected), "{line}");
        }
        assert_eq!(golden.lines().count(), 12);
    }

    #[test]
    fn rows_in_another_order() {
        let rows: Vec<Vec<u8>> = (0..8u8).map(|row| [row, 0x3F].repeat(2 * BLOCK)).collect();
        let quants = |order, groups, from: &[u8]| {
            let mut blocks = vec![0; from.len() / (2 * BLOCK) * Q8_0_BLOCK];
            Quants { from: Dtype::BF16, columns: 2 * BLOCK, order }.apply(groups, &[from], &mut [&mut blocks]).unwrap();
            blocks
        };
        let turned = [0, 2, 1, 3, 4, 6, 5, 7].map(|row: usize| rows[row].clone()).concat();
        assert_eq!(quants(vec![0, 2, 1, 3], 2, &rows.concat()), quants(vec![0], 8, &turned));
    }

    #[test]
    fn values_that_are_too_large_or_not_finite() {
        assert!(encode(&[1e7; BLOCK], &mut [0; 34]).unwrap_err().contains("1e7"));
        let quants = Quants { from: Dtype::F32, columns: BLOCK, order: vec![0] };
        let error = quants.apply(1, &[&f32::NAN.to_le_bytes().repeat(32)], &mut [&mut [0; 34]]).unwrap_err();
        assert!(error.contains("not finite"), "{error}");
    }
}
