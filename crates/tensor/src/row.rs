//! Rows one at a time, between buffers of the caller: for files that are too large to be held as tensors.

use microscale_formats::{E8M0, Ties, pack, quantize_block_with, round_to_bf16, unpack};

use crate::cpu::{Isa, Quantizer};
use crate::{BlockFormat, Error};

/// Quantizes rows of one length, in blocks along the row.
pub struct RowQuantizer {
    isa: Isa,
    quantizer: Quantizer,
    format: BlockFormat,
    ties: Ties,
    values: Vec<f32>,
    scales: Vec<E8M0>,
}

impl RowQuantizer {
    /// For rows of `length` values. Ties other than to even take the slow path of the definition.
    ///
    /// # Errors
    /// A block size of 0.
    pub fn new(length: usize, format: BlockFormat, ties: Ties) -> Result<RowQuantizer, Error> {
        if format.block_size == 0 {
            return Err(Error::BlockSize);
        }
        let blocks = length.div_ceil(format.block_size);
        Ok(RowQuantizer {
            isa: Isa::best(),
            quantizer: Quantizer::new(format),
            format,
            ties,
            values: vec![0.0; length],
            scales: vec![E8M0(0); blocks],
        })
    }

    /// The row to fill before [`encode`](Self::encode).
    pub fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// Writes the packed codes of the row and the byte of each block's scale, as [`MxTensor`](crate::MxTensor) has
    /// them.
    ///
    /// # Panics
    /// If `codes` or `scales` are not as long as the row takes.
    pub fn encode(&mut self, codes: &mut [u8], scales: &mut [u8]) {
        assert_eq!(scales.len(), self.scales.len(), "one scale per block");
        if self.ties == Ties::Even {
            self.quantizer.encode_row(self.isa, &self.values, codes, &mut self.scales);
        } else {
            self.encode_slowly(codes);
        }
        scales.iter_mut().zip(&self.scales).for_each(|(to, scale)| *to = scale.0);
    }

    fn encode_slowly(&mut self, codes: &mut [u8]) {
        let BlockFormat { element, block_size, scale_rule } = self.format;
        let mut unpacked = vec![0; self.values.len()];
        let blocks = self.values.chunks(block_size).zip(unpacked.chunks_mut(block_size));
        for ((block, codes), scale) in blocks.zip(&mut self.scales) {
            *scale = quantize_block_with(block, element, scale_rule, self.ties, codes);
        }
        codes.copy_from_slice(&pack(&unpacked, element.bits()));
    }
}

/// Turns rows of codes and scales back into values, as [`dequantize_block`](microscale_formats::dequantize_block) does.
pub struct RowDequantizer {
    format: BlockFormat,
    /// Value of every code.
    table: [f64; 256],
    codes: Vec<u8>,
    values: Vec<f32>,
}

impl RowDequantizer {
    /// For rows of `length` values.
    ///
    /// # Errors
    /// A block size of 0.
    pub fn new(length: usize, format: BlockFormat) -> Result<RowDequantizer, Error> {
        if format.block_size == 0 {
            return Err(Error::BlockSize);
        }
        let table = std::array::from_fn(|code| f64::from(format.element.decode(code as u8)));
        Ok(RowDequantizer { format, table, codes: vec![0; length], values: vec![0.0; length] })
    }

    /// The values of a row of packed codes: element · scale, rounded to bf16.
    ///
    /// # Panics
    /// If `codes` or `scales` are shorter than the row takes.
    pub fn decode(&mut self, codes: &[u8], scales: &[u8]) -> &[f32] {
        unpack(codes, self.format.element.bits(), &mut self.codes);
        self.decode_unpacked(scales)
    }

    /// The same for one code per byte.
    ///
    /// # Panics
    /// If there are not as many codes as the row has values, or too few scales.
    pub fn decode_bytes(&mut self, codes: &[u8], scales: &[u8]) -> &[f32] {
        self.codes.copy_from_slice(codes);
        self.decode_unpacked(scales)
    }

    fn decode_unpacked(&mut self, scales: &[u8]) -> &[f32] {
        let size = self.format.block_size;
        assert!(scales.len() >= self.codes.len().div_ceil(size), "one scale per block");
        for ((values, codes), &scale) in self.values.chunks_mut(size).zip(self.codes.chunks(size)).zip(scales) {
            let scale = f64::from(E8M0(scale).value());
            for (value, &code) in values.iter_mut().zip(codes) {
                *value = round_to_bf16((self.table[usize::from(code)] * scale) as f32);
            }
        }
        &self.values
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MxTensor;
    use microscale_formats::{ElementFormat, ScaleRule, unpack};

    #[test]
    fn rows_are_those_of_the_tensor() {
        let mut state = 3u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            f32::from_bits((state >> 32) as u32 & 0xBFFF_FFFF) // finite, of any magnitude below 2
        };
        for element in ElementFormat::ALL {
            for (length, block_size) in [(75, 32), (64, 32), (7, 3), (1, 1)] {
                let format = BlockFormat { element, block_size, scale_rule: ScaleRule::Even };
                let mut values: Vec<f32> = (0..3 * length).map(|_| next()).collect();
                values[2] = if length == 75 { f32::NAN } else { values[2] };
                let tensor = MxTensor::quantize(&values, &[3, length], 1, format).unwrap();
                let expected = tensor.dequantize();
                let mut quantizer = RowQuantizer::new(length, format, Ties::Even).unwrap();
                let mut dequantizer = RowDequantizer::new(length, format).unwrap();
                let (mut codes, mut scales) =
                    (vec![0; tensor.packed_codes().len() / 3], vec![0; tensor.scales().len() / 3]);
                for row in 0..3 {
                    quantizer.values().copy_from_slice(&values[row * length..][..length]);
                    quantizer.encode(&mut codes, &mut scales);
                    assert_eq!(codes, tensor.packed_codes()[row * codes.len()..][..codes.len()]);
                    assert!(scales.iter().zip(&tensor.scales()[row * scales.len()..]).all(|(a, b)| *a == b.0));
                    let mut bytes = vec![0; length];
                    unpack(&codes, element.bits(), &mut bytes);
                    let expected: Vec<u32> = expected[row * length..][..length].iter().map(|x| x.to_bits()).collect();
                    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(dequantizer.decode(&codes, &scales)), expected, "{format:?}");
                    assert_eq!(bits(dequantizer.decode_bytes(&bytes, &scales)), expected, "{format:?}");
                }
            }
        }
        let none = BlockFormat { block_size: 0, ..ElementFormat::ALL[0].into() };
        assert!(RowQuantizer::new(3, none, Ties::Even).is_err() && RowDequantizer::new(3, none).is_err());
    }
}
