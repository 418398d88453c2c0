//! Weights laid out for the product: groups of 32 outputs, side by side along k, packed at their true width.

use half::bf16;
use microscale_formats::{E8M0, pack};
use rayon::prelude::*;

use super::operand::flush_subnormals;
use super::product::{GROUP, ScaleRange, Scales, Side};
use super::quantize::decode_table;
use crate::{Matrix, MxTensor, WeightMatrix};

/// A weight `[outputs, k]`, outputs padded with zeros to a whole number of groups.
pub struct Panels {
    pub(in crate::cpu) outputs: usize,
    pub(in crate::cpu) k: usize,
    pub(in crate::cpu) range: ScaleRange,
    storage: Storage,
}

enum Storage {
    /// `[group][k][output]`.
    Plain(Vec<[bf16; GROUP]>),
    /// Codes `[group][k][output]` as one bit stream, scales `[group][block][output]`.
    Packed { bits: u32, block_size: usize, table: Box<[f32; 256]>, codes: Vec<u8>, scales: Vec<[E8M0; GROUP]> },
}

impl Panels {
    pub(in crate::cpu) fn new(weight: WeightMatrix) -> Panels {
        match weight {
            WeightMatrix::Bf16(matrix) => Self::plain(&matrix),
            WeightMatrix::Mx(tensor) => Self::packed(&tensor),
        }
    }

    fn plain(matrix: &Matrix) -> Panels {
        let (outputs, k) = (matrix.rows(), matrix.columns());
        let mut panels = vec![[bf16::ZERO; GROUP]; outputs.div_ceil(GROUP) * k];
        panels.par_chunks_mut(k).enumerate().for_each(|(group, panel)| {
            for lane in 0..GROUP.min(outputs - group * GROUP) {
                panel.iter_mut().zip(matrix.row(group * GROUP + lane)).for_each(|(p, &x)| p[lane] = x);
            }
        });
        Panels { outputs, k, range: ScaleRange::PLAIN, storage: Storage::Plain(panels) }
    }

    fn packed(tensor: &MxTensor) -> Panels {
        let (outputs, k) = (tensor.shape()[0], tensor.shape()[1]);
        let (element, block_size) = (tensor.format().element, tensor.format().block_size);
        let (bits, blocks) = (element.bits(), k.div_ceil(block_size));
        let groups = outputs.div_ceil(GROUP);
        let one = E8M0::from_exponent(0);
        let mut scales = vec![[one; GROUP]; groups * blocks];
        let mut codes = vec![0u8; groups * k * GROUP * bits as usize / 8];
        codes.par_chunks_mut(k * GROUP * bits as usize / 8).zip(scales.par_chunks_mut(blocks)).enumerate().for_each(
            |(group, (codes, scales))| {
                let mut panel = vec![[0u8; GROUP]; k];
                for lane in 0..GROUP.min(outputs - group * GROUP) {
                    let row = tensor.row_codes(group * GROUP + lane);
                    panel.iter_mut().zip(&row).for_each(|(p, &c)| p[lane] = c);
                    let row_scales = tensor.row_scales(group * GROUP + lane);
                    for ((to, &scale), block) in scales.iter_mut().zip(row_scales).zip(row.chunks(block_size)) {
                        // A block of zeros takes the scale 1, as in the operand: see there.
                        let zero = scale != E8M0::NAN && block.iter().all(|&c| element.decode(c) == 0.0);
                        to[lane] = if zero { one } else { scale };
                    }
                }
                codes.copy_from_slice(&pack(panel.as_flattened(), bits));
            },
        );
        let range = ScaleRange::of(scales.iter().flatten().map(|s| s.value()));
        let table = Box::new(decode_table(element));
        Panels { outputs, k, range, storage: Storage::Packed { bits, block_size, table, codes, scales } }
    }

    pub(in crate::cpu) fn groups(&self) -> usize {
        self.outputs.div_ceil(GROUP)
    }

    pub(in crate::cpu) fn block_size(&self) -> Option<usize> {
        match &self.storage {
            Storage::Plain(_) => None,
            Storage::Packed { block_size, .. } => Some(*block_size),
        }
    }

    /// Decodes one group; `flush` sets the subnormals of a plain weight to zero.
    #[inline(always)]
    pub(in crate::cpu) fn decode<'a>(&self, group: usize, flush: bool, scratch: &'a mut Scratch) -> Side<'a, GROUP> {
        scratch.values.resize(self.k, [0.0; GROUP]);
        let values = &mut scratch.values[..self.k];
        match &self.storage {
            Storage::Plain(panels) => {
                let from = panels[group * self.k..][..self.k].as_flattened();
                for (to, x) in values.as_flattened_mut().iter_mut().zip(from) {
                    *to = f32::from_bits(u32::from(x.to_bits()) << 16);
                }
                if flush {
                    flush_subnormals(values.as_flattened_mut());
                }
                Side { values, scales: None }
            }
            Storage::Packed { bits, block_size, table, codes, scales } => {
                let width = self.k * GROUP * *bits as usize / 8;
                let from = &codes[group * width..][..width];
                match bits {
                    4 => decode4(table, from, values),
                    6 => decode6(table, from, values),
                    _ => decode8(table, from, values),
                }
                let blocks = self.k.div_ceil(*block_size);
                scratch.powers.clear();
                scratch.powers.extend(scales[group * blocks..][..blocks].iter().map(|s| s.map(E8M0::value)));
                Side { values, scales: Some(Scales { block_size: *block_size, powers: &scratch.powers }) }
            }
        }
    }
}

/// Room for one decoded group.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    values: Vec<[f32; GROUP]>,
    powers: Vec<[f32; GROUP]>,
}

#[inline(always)]
fn decode4(table: &[f32; 256], codes: &[u8], values: &mut [[f32; GROUP]]) {
    let (pairs, _) = values.as_flattened_mut().as_chunks_mut::<2>();
    for (to, &byte) in pairs.iter_mut().zip(codes) {
        *to = [table[usize::from(byte & 15)], table[usize::from(byte >> 4)]];
    }
}

#[inline(always)]
fn decode6(table: &[f32; 256], codes: &[u8], values: &mut [[f32; GROUP]]) {
    let (quads, _) = values.as_flattened_mut().as_chunks_mut::<4>();
    let (triples, _) = codes.as_chunks::<3>();
    for (to, &[a, b, c]) in quads.iter_mut().zip(triples) {
        let word = u32::from_le_bytes([a, b, c, 0]);
        *to = std::array::from_fn(|i| table[(word >> (6 * i) & 63) as usize]);
    }
}

#[inline(always)]
fn decode8(table: &[f32; 256], codes: &[u8], values: &mut [[f32; GROUP]]) {
    for (to, &code) in values.as_flattened_mut().iter_mut().zip(codes) {
        *to = table[usize::from(code)];
    }
}
