//! Activations quantized once, in tiles of rows.

use rayon::prelude::*;

use super::bf16::floats;
use super::product::{ScaleRange, Scales, Side, TILE};
use super::quantize::Quantizer;
use crate::cpu::simd::{Isa, dispatch};
use crate::{BlockFormat, Matrix};

/// Activations ready to be multiplied: tiles of [`TILE`] rows, `values[tile][k][row]`.
#[derive(Clone, Debug)]
pub struct Operand {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) k: usize,
    pub(in crate::cpu) block_size: Option<usize>,
    pub(in crate::cpu) range: ScaleRange,
    /// Whether a plain operand holds subnormals, which products of two plain operands count as zero.
    pub(in crate::cpu) subnormals: bool,
    values: Vec<[f32; TILE]>,
    scales: Vec<[f32; TILE]>,
}

impl Operand {
    pub(in crate::cpu) fn new(isa: Isa, x: &Matrix, format: Option<BlockFormat>) -> Operand {
        let (rows, k) = (x.rows(), x.columns());
        let quantizer = format.map(Quantizer::new);
        let blocks = quantizer.map_or(0, |q| k.div_ceil(q.block_size()));
        let tiles = rows.div_ceil(TILE);
        let mut values = vec![[0f32; TILE]; tiles * k];
        let mut scales = vec![[1f32; TILE]; tiles * blocks];
        // Plain operands have no scales: hand out empty slices.
        let mut scale_chunks: Vec<&mut [[f32; TILE]]> = if blocks == 0 {
            (0..tiles).map(|_| Default::default()).collect()
        } else {
            scales.chunks_mut(blocks).collect()
        };
        values
            .par_chunks_mut(k)
            .zip(scale_chunks.par_iter_mut())
            .with_min_len((4096 / k).max(1))
            .enumerate()
            .for_each_init(
                || (vec![0f32; k], vec![0f32; blocks]),
                |(row, powers), (tile, (values, scales))| {
                    for r in 0..TILE.min(rows - tile * TILE) {
                        dispatch!(isa, simd => {
                            let _ = simd;
                            floats(x.row(tile * TILE + r), row);
                            if let Some(q) = quantizer {
                                q.row(row, powers);
                                scales.iter_mut().zip(powers.iter()).for_each(|(tile, &s)| tile[r] = s);
                            }
                            values.iter_mut().zip(row.iter()).for_each(|(tile, &x)| tile[r] = x);
                        });
                    }
                },
            );
        let range = ScaleRange::of(scales.iter().flatten().copied());
        let subnormals = format.is_none() && x.values().iter().any(|x| (1..0x80).contains(&(x.to_bits() & 0x7FFF)));
        Operand { rows, k, block_size: quantizer.map(|q| q.block_size()), range, subnormals, values, scales }
    }

    /// One tile.
    pub(in crate::cpu) fn tile(&self, tile: usize) -> Side<'_, TILE> {
        let scales = self.block_size.map(|block_size| {
            let blocks = self.k.div_ceil(block_size);
            Scales { block_size, powers: &self.scales[tile * blocks..][..blocks] }
        });
        Side { values: &self.values[tile * self.k..][..self.k], scales }
    }

    /// The same with subnormals set to zero.
    pub(in crate::cpu) fn without_subnormals(&self) -> Operand {
        let mut copy = self.clone();
        flush_subnormals(copy.values.as_flattened_mut());
        copy
    }
}

/// Sets subnormals to zero.
#[inline(always)]
pub(in crate::cpu) fn flush_subnormals(values: &mut [f32]) {
    for x in values {
        *x = if x.abs() < f32::MIN_POSITIVE { 0.0 } else { *x };
    }
}
