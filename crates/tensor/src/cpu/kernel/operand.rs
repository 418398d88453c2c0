//! Activations quantized once, in tiles of sixteen rows.

use rayon::prelude::*;

use super::bf16::floats;
use super::product::{Extent, STEP, Scales, TILE, XTile};
use super::quantize::Quantizer;
use crate::cpu::simd::tiles::Step;
use crate::cpu::simd::{Isa, LANES, dispatch};
use crate::{BlockFormat, Matrix};

/// Activations ready to be multiplied.
#[derive(Clone, Debug)]
pub struct Operand {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) k: usize,
    pub(in crate::cpu) format: Option<BlockFormat>,
    tiles: Vec<Tile>,
}

/// Sixteen rows of an operand, those beyond the last zero.
#[derive(Clone, Debug, Default)]
pub(in crate::cpu) struct Tile {
    steps: Vec<Step>,
    powers: Vec<[f32; TILE]>,
    mass: Vec<[f32; TILE]>,
    extent: Option<Extent>,
    row: Vec<f32>,
    row_blocks: Vec<[f32; 2]>,
}

impl Operand {
    pub(in crate::cpu) fn new(isa: Isa, x: &Matrix, format: Option<BlockFormat>) -> Operand {
        let (rows, k) = (x.rows(), x.columns());
        let tiles = (0..rows.div_ceil(TILE))
            .into_par_iter()
            .with_min_len((4096 / (k * TILE)).max(1))
            .map(|tile| {
                let rows = TILE.min(rows - tile * TILE);
                let mut to = Tile::default();
                dispatch!(isa, simd => {
                    let _ = simd;
                    to.fill((rows, k), format, #[inline(always)] |r, to| floats(x.row(tile * TILE + r), to));
                });
                to.row = Vec::new();
                to
            })
            .collect();
        Operand { rows, k, format, tiles }
    }

    pub(in crate::cpu) fn tiles(&self) -> impl Iterator<Item = XTile<'_>> {
        self.tiles.iter().map(|tile| tile.view(self.format))
    }
}

impl Tile {
    /// Quantizes `rows` rows of `k` elements along k, or takes them as they are, in place of what was there;
    /// `row(r, to)` writes row r.
    #[inline(always)]
    pub(in crate::cpu) fn fill(
        &mut self,
        (rows, k): (usize, usize),
        format: Option<BlockFormat>,
        row: impl Fn(usize, &mut [f32]),
    ) {
        let quantizer = format.map(Quantizer::new);
        let blocks = format.map_or(0, |f| k.div_ceil(f.block_size));
        self.steps.clear();
        self.steps.resize(k.div_ceil(STEP), Step::ZERO);
        self.powers.clear();
        self.powers.resize(blocks, [1.0; TILE]);
        self.mass.clear();
        self.mass.resize(blocks, [0.0; TILE]);
        self.row.clear();
        self.row.resize(self.steps.len() * STEP, 0.0);
        self.row_blocks.resize(blocks, [0.0; 2]);
        let mut extent: Option<Extent> = None;
        for r in 0..rows {
            row(r, &mut self.row[..k]);
            if let Some(quantizer) = &quantizer {
                quantizer.row(&mut self.row[..k], &mut self.row_blocks);
                for (b, [power, mass]) in self.row_blocks.iter().enumerate() {
                    self.powers[b][r] = *power;
                    self.mass[b][r] = *mass;
                }
            } else {
                let own = Extent::of_values(self.row[..k].iter().copied());
                extent = Some(extent.map_or(own, |e| e.join(own)));
            }
            for (step, values) in self.steps.iter_mut().zip(self.row.as_chunks::<STEP>().0) {
                pack_pairs(values, &mut step.0[r]);
            }
        }
        self.extent = extent.or_else(|| format.map(|f| Extent::of_scales(f.element, &self.powers)));
    }

    pub(in crate::cpu) fn view(&self, format: Option<BlockFormat>) -> XTile<'_> {
        XTile {
            steps: &self.steps,
            scales: format.map(|f| Scales { block_size: f.block_size, powers: &self.powers }),
            mass: &self.mass,
            extent: self.extent.unwrap_or(Extent::of_values([])),
        }
    }
}

/// Values that are bf16, as pairs.
#[inline(always)]
pub(in crate::cpu) fn pack_pairs(values: &[f32; STEP], to: &mut [u32; LANES]) {
    for (to, [low, high]) in to.iter_mut().zip(values.as_chunks::<2>().0) {
        *to = low.to_bits() >> 16 | high.to_bits() & 0xFFFF_0000;
    }
}
