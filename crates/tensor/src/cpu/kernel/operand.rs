//! Activations quantized once, in tiles of rows.

use half::bf16;
use rayon::prelude::*;

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
                        widen(isa, x.row(tile * TILE + r), row);
                        if let Some(q) = quantizer {
                            dispatch!(isa, simd => { let _ = simd; q.row(row, powers) });
                            scales.iter_mut().zip(powers.iter()).for_each(|(tile, &s)| tile[r] = s);
                        }
                        values.iter_mut().zip(row.iter()).for_each(|(tile, &x)| tile[r] = x);
                    }
                },
            );
        let range = ScaleRange::of(scales.iter().flatten().copied());
        Operand { rows, k, block_size: quantizer.map(|q| q.block_size()), range, values, scales }
    }

    /// Number of tiles; the last may be short of rows.
    pub(in crate::cpu) fn tiles(&self) -> usize {
        self.rows.div_ceil(TILE)
    }

    /// One tile.
    pub(in crate::cpu) fn tile(&self, tile: usize) -> Side<'_, TILE> {
        let scales = self.block_size.map(|block_size| {
            let blocks = self.k.div_ceil(block_size);
            Scales { block_size, powers: &self.scales[tile * blocks..][..blocks] }
        });
        Side { values: &self.values[tile * self.k..][..self.k], scales }
    }

    /// Whether any value is a subnormal, which products of two plain operands count as zero.
    pub(in crate::cpu) fn has_subnormals(&self) -> bool {
        self.values.as_flattened().iter().any(|x| x.is_subnormal())
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

/// bf16 to f32.
pub(in crate::cpu) fn widen(isa: Isa, from: &[bf16], to: &mut [f32]) {
    dispatch!(isa, simd => { let _ = simd; to.iter_mut().zip(from).for_each(|(to, x)| *to = f32::from_bits(u32::from(x.to_bits()) << 16)) });
}
