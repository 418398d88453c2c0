//! Rows of codes and scales from one packing into another, bit for bit.

use microscale_formats::{BLOCK, E2M1, E8M0, ElementFormat, INT8, packed_len, unpack};
use microscale_model::Dtype;
use microscale_model::transfer::RowTransform;

/// Bytes of a block of ggml's type MXFP4: the scale, then 16 bytes of codes.
const MXFP4_BLOCK: usize = 17;
/// Bytes of a block of ggml's type Q8_0: a scale in f16, then 32 integers.
pub(crate) const Q8_0_BLOCK: usize = 34;
/// The exponent of a Q8_0 scale is that of an E8M0 byte less this: 127, and 6 for the binary point of INT8.
const Q8_0_BIAS: i32 = 133;

/// How the codes and scales of a row lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    /// Codes as one little-endian stream of bits, scales in a tensor of their own.
    Stream,
    /// A byte per code, scales in a tensor of their own.
    Bytes,
    /// ggml's blocks, each with its scale: MXFP4 of E2M1, Q8_0 of INT8.
    Blocks,
}

impl Packing {
    /// Bytes that the codes of a row take, with the scales where these lie among them.
    pub(crate) fn row_bytes(self, element: ElementFormat, columns: usize) -> usize {
        match self {
            Packing::Stream => packed_len(columns, element.bits()),
            Packing::Bytes => columns,
            Packing::Blocks if element == INT8 => columns / BLOCK * Q8_0_BLOCK,
            Packing::Blocks => columns / BLOCK * MXFP4_BLOCK,
        }
    }
}

/// Moves rows from one packing into another, and within groups into another order.
#[derive(Debug)]
pub(crate) struct Repack {
    pub(crate) element: ElementFormat,
    /// Values of a row.
    pub(crate) columns: usize,
    /// Values that share a scale.
    pub(crate) block_size: usize,
    pub(crate) from: Packing,
    pub(crate) to: Packing,
    /// Of each row of a group, which row of the source's group it is. What a job calls a row is such a group.
    pub(crate) order: Vec<usize>,
    /// Whether the target has a scale that is NaN.
    pub(crate) nan_scales: bool,
}

impl RowTransform for Repack {
    fn apply(&self, groups: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), String> {
        let (from, to) = (self.widths(self.from), self.widths(self.to));
        let (mut codes, mut scales) = (vec![0; self.widths(Packing::Stream)[0]], vec![0; self.blocks()]);
        for group in 0..groups {
            for (row, source) in self.order.iter().enumerate() {
                let [read, written] = [source, &row].map(|row| group * self.order.len() + row);
                let input = |part: usize| &inputs[part][read * from[part]..][..from[part]];
                match self.from {
                    Packing::Blocks => self.split(input(0), &mut codes, &mut scales)?,
                    packing => {
                        self.narrow(packing, input(0), &mut codes)?;
                        scales.copy_from_slice(input(1));
                    }
                }
                if !self.nan_scales && scales.contains(&E8M0::NAN.0) {
                    return Err("has blocks whose scale is NaN (255), which the target has not".to_owned());
                }
                let (first, rest) = outputs.split_at_mut(1);
                let first = &mut first[0][written * to[0]..][..to[0]];
                match self.to {
                    Packing::Blocks => self.join(&codes, &scales, first)?,
                    packing => {
                        match packing {
                            Packing::Bytes => unpack(&codes, self.element.bits(), first),
                            _ => first.copy_from_slice(&codes),
                        }
                        rest[0][written * to[1]..][..to[1]].copy_from_slice(&scales);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Repack {
    /// Scales of a row.
    fn blocks(&self) -> usize {
        self.columns.div_ceil(self.block_size)
    }

    /// Bytes of a row in each of the tensors of a packing.
    fn widths(&self, packing: Packing) -> [usize; 2] {
        let scales = if packing == Packing::Blocks { 0 } else { self.blocks() };
        [packing.row_bytes(self.element, self.columns), scales]
    }

    /// Codes at their true width.
    fn narrow(&self, packing: Packing, from: &[u8], codes: &mut [u8]) -> Result<(), String> {
        if packing == Packing::Stream {
            codes.copy_from_slice(from);
            return Ok(());
        }
        let bits = self.element.bits();
        if let Some(code) = from.iter().find(|&&code| u16::from(code) >> bits != 0) {
            return Err(format!("holds the byte {code:#04x}, which is no code of {bits} bits"));
        }
        codes.copy_from_slice(&microscale_formats::pack(from, bits));
        Ok(())
    }

    /// ggml's blocks of a row as a stream of codes, and scales.
    fn split(&self, blocks: &[u8], codes: &mut [u8], scales: &mut [u8]) -> Result<(), String> {
        if self.element == E2M1 {
            let blocks = blocks.chunks_exact(MXFP4_BLOCK).zip(codes.chunks_exact_mut(BLOCK / 2)).zip(scales);
            for ((block, codes), scale) in blocks {
                *scale = block[0];
                merge_halves(&block[1..], codes);
            }
            return Ok(());
        }
        let blocks = blocks.chunks_exact(Q8_0_BLOCK).zip(codes.chunks_exact_mut(BLOCK)).zip(scales);
        for ((block, codes), scale) in blocks {
            let half = u16::from_le_bytes([block[0], block[1]]);
            *scale = exponent_of_half(half)
                .map(|exponent| (exponent + Q8_0_BIAS) as u8)
                .ok_or_else(|| format!("has the Q8_0 scale {half:#06x}, which is no power of two"))?;
            codes.copy_from_slice(&block[2..]);
        }
        Ok(())
    }

    /// Codes and scales of a row as ggml's blocks.
    fn join(&self, codes: &[u8], scales: &[u8], blocks: &mut [u8]) -> Result<(), String> {
        if self.element == E2M1 {
            let codes = codes.chunks_exact(BLOCK / 2);
            for ((block, codes), scale) in blocks.chunks_exact_mut(MXFP4_BLOCK).zip(codes).zip(scales) {
                block[0] = *scale;
                split_halves(codes, &mut block[1..]);
            }
            return Ok(());
        }
        let codes = codes.chunks_exact(BLOCK);
        for ((block, codes), &scale) in blocks.chunks_exact_mut(Q8_0_BLOCK).zip(codes).zip(scales) {
            let exponent = i32::from(scale) - Q8_0_BIAS;
            let half = half_of_exponent(exponent)
                .ok_or_else(|| format!("has the scale {scale}, as Q8_0 2^{exponent}, which f16 does not hold"))?;
            block[..2].copy_from_slice(&half.to_le_bytes());
            block[2..].copy_from_slice(codes);
        }
        Ok(())
    }
}

/// 32 codes of 4 bits, two neighbours in a byte, to ggml's order: byte j has code j low and code j + 16 high.
fn split_halves(codes: &[u8], halves: &mut [u8]) {
    let code = |i: usize| codes[i / 2] >> (i % 2 * 4) & 0xF;
    halves.iter_mut().enumerate().for_each(|(j, byte)| *byte = code(j) | code(j + BLOCK / 2) << 4);
}

/// Inverse of [`split_halves`].
fn merge_halves(halves: &[u8], codes: &mut [u8]) {
    let code = |i: usize| halves[i % (BLOCK / 2)] >> (i / (BLOCK / 2) * 4) & 0xF;
    codes.iter_mut().enumerate().for_each(|(i, byte)| *byte = code(2 * i) | code(2 * i + 1) << 4);
}

/// 2^exponent in f16, if f16 has it.
fn half_of_exponent(exponent: i32) -> Option<u16> {
    match exponent {
        -14..=15 => Some(((exponent + 15) as u16) << 10),
        -24..=-15 => Some(1 << (exponent + 24)),
        _ => None,
    }
}

/// The exponent of a power of two in f16.
fn exponent_of_half(half: u16) -> Option<i32> {
    let (exponent, mantissa) = (half >> 10, half & 0x3FF);
    match (exponent, mantissa) {
        (1..=30, 0) => Some(i32::from(exponent) - 15),
        (0, 1..) if mantissa.is_power_of_two() => Some(mantissa.trailing_zeros() as i32 - 24),
        _ => None,
    }
}

/// Plain values, rounded to bf16 and then held in another type, and within groups of rows in another order.
#[derive(Debug)]
pub(crate) struct Cast {
    /// Bytes of a value of the source: 2 or 4, and whether 2 mean f16.
    pub(crate) from: Dtype,
    pub(crate) to: Dtype,
    /// Values of a row.
    pub(crate) columns: usize,
    /// As in [`Repack`].
    pub(crate) order: Vec<usize>,
}

impl RowTransform for Cast {
    fn apply(&self, groups: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), String> {
        let [from, to] = [self.from, self.to].map(|dtype| self.columns * dtype.bitsize() / 8);
        for group in 0..groups {
            for (row, source) in self.order.iter().enumerate() {
                let [read, written] = [source, &row].map(|row| group * self.order.len() + row);
                let row = &inputs[0][read * from..][..from];
                self.cast(row, &mut outputs[0][written * to..][..to])?;
            }
        }
        Ok(())
    }
}

impl Cast {
    fn cast(&self, from: &[u8], to: &mut [u8]) -> Result<(), String> {
        if self.from == self.to {
            to.copy_from_slice(from);
            return Ok(());
        }
        let widths = [self.from, self.to].map(|dtype| dtype.bitsize() / 8);
        for (from, to) in from.chunks_exact(widths[0]).zip(to.chunks_exact_mut(widths[1])) {
            let rounded = parameter(self.from, from)?;
            match self.to {
                Dtype::F32 => to.copy_from_slice(&rounded.to_le_bytes()),
                _ => to.copy_from_slice(&((rounded.to_bits() >> 16) as u16).to_le_bytes()),
            }
        }
        Ok(())
    }
}

/// A value of a model, rounded to bf16.
pub(crate) fn parameter(from: Dtype, bytes: &[u8]) -> Result<f32, String> {
    let value = match (from, bytes) {
        (Dtype::F32, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        (Dtype::BF16, &[a, b]) => f32::from_bits(u32::from(u16::from_le_bytes([a, b])) << 16),
        (_, &[a, b]) => half::f16::from_le_bytes([a, b]).to_f32(),
        _ => return Err(format!("is stored as {from}, which is no float here")),
    };
    let rounded = microscale_formats::round_to_bf16(value);
    if !rounded.is_finite() {
        return Err("has values that are not finite as bf16; the file is damaged or the model diverged".into());
    }
    Ok(rounded)
}

/// Bytes that follow from nothing in the source.
#[derive(Debug)]
pub(crate) struct Constant(pub(crate) Vec<u8>);

impl RowTransform for Constant {
    fn apply(&self, _rows: usize, _inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), String> {
        outputs[0].copy_from_slice(&self.0);
        Ok(())
    }
}

/// llama.cpp turns pairs of neighbours where transformers turns the first half of a head with the second: of each row
/// of a head there, which row here it is. Inverse of the order the other way.
pub(crate) fn rope_order(head_dim: usize, to_neighbours: bool) -> Vec<usize> {
    let half = head_dim / 2;
    let there = |row: usize| row / 2 + row % 2 * half;
    let here = |row: usize| row % half * 2 + row / half;
    (0..head_dim).map(|row| if to_neighbours { there(row) } else { here(row) }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_formats::E3M2;

    #[test]
    fn halves_of_a_block() {
        let codes: Vec<u8> = (0..16).map(|i| ((2 * i) % 16) | (((2 * i + 1) % 16) << 4)).collect();
        let (mut halves, mut again) = ([0; 16], [0; 16]);
        split_halves(&codes, &mut halves);
        assert_eq!(halves[..3], [0x00, 0x11, 0x22]); // codes 0 and 16, 1 and 17, 2 and 18
        merge_halves(&halves, &mut again);
        assert_eq!(again, codes[..]);
    }

    #[test]
    fn powers_of_two_in_f16() {
        for exponent in -40..40 {
            let half = half_of_exponent(exponent);
            assert_eq!(half.is_some(), (-24..=15).contains(&exponent));
            if let Some(half) = half {
                assert_eq!(half::f16::from_bits(half).to_f32(), 2f32.powi(exponent));
                assert_eq!(exponent_of_half(half), Some(exponent));
            }
        }
        assert!([0, 0x7C00, 0x7E00, 0x8001, 0xBC00, 0x3C01, 3].map(exponent_of_half).iter().all(Option::is_none));
    }

    #[test]
    fn every_packing_and_order_comes_back() {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let cases = [
            (E2M1, Packing::Blocks, vec![0]),
            (E2M1, Packing::Blocks, rope_order(8, true)),
            (INT8, Packing::Blocks, rope_order(4, true)),
            (E3M2, Packing::Bytes, vec![0]),
            (E2M1, Packing::Stream, rope_order(6, true)),
        ];
        for (element, packing, order) in cases {
            let columns = 96;
            let group = order.len();
            let back = (0..group).map(|row| order.iter().position(|&to| to == row).unwrap()).collect();
            let repack =
                |from, to, order| Repack { element, columns, block_size: BLOCK, from, to, order, nan_scales: false };
            let there = repack(Packing::Stream, packing, order);
            let here = repack(packing, Packing::Stream, back);
            let codes: Vec<u8> = (0..2 * group * packed_len(columns, element.bits())).map(|_| next()).collect();
            let scales: Vec<u8> = (0..2 * group * 3).map(|_| 110 + next() % 30).collect();
            let bytes = packing.row_bytes(element, columns);
            let (mut packed, mut beside) = (vec![0; 2 * group * bytes], vec![0; scales.len()]);
            there.apply(2, &[&codes, &scales], &mut [&mut packed, &mut beside]).unwrap();
            let (mut codes_again, mut scales_again) = (vec![0; codes.len()], vec![0; scales.len()]);
            here.apply(2, &[&packed, &beside], &mut [&mut codes_again, &mut scales_again]).unwrap();
            assert_eq!((codes_again, scales_again), (codes.clone(), scales.clone()), "{packing:?}");
            let nan = [scales, vec![]].concat().iter().map(|_| 255).collect::<Vec<_>>();
            assert!(there.apply(1, &[&codes, &nan], &mut [&mut packed, &mut beside]).is_err());
        }
        assert_eq!(rope_order(6, true), [0, 3, 1, 4, 2, 5]);
        assert_eq!(rope_order(6, false), [0, 2, 4, 1, 3, 5]);
    }
}
