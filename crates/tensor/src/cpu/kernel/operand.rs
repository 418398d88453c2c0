//! Activations quantized once, in tiles of sixteen rows.

use rayon::prelude::*;

use super::bf16::floats;
use super::linear::FEW;
use super::product::{Extent, STEP, Scales, StepBytes, TILE, XTile, unit};
use super::quantize::Quantizer;
use crate::cpu::simd::codes::{BYTE_BIAS, is_small_integer};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{Isa, LANES, dispatch};
use crate::{BlockFormat, Matrix};

/// Activations ready to be multiplied.
#[derive(Clone, Debug)]
pub struct Operand {
    pub(in crate::cpu) rows: usize,
    pub(in crate::cpu) k: usize,
    format: Option<BlockFormat>,
    tiles: Vec<Tile>,
}

/// Up to sixteen rows of an operand.
#[derive(Clone, Debug, Default)]
pub(in crate::cpu) struct Tile {
    /// `[step][row]`.
    lanes: Vec<Lanes>,
    stride: usize,
    /// `[block]`, those of rows beyond the last 1 and 0.
    powers: Vec<[f32; TILE]>,
    norms: Vec<[f32; TILE]>,
    bytes: Vec<StepBytes>,
    extent: Option<Extent>,
}

/// Room for one row.
#[derive(Default)]
pub(in crate::cpu) struct Row {
    values: Vec<f32>,
    /// Scale and norm of each block.
    blocks: Vec<[f32; 2]>,
}

impl Operand {
    pub(in crate::cpu) fn new(isa: Isa, x: &Matrix, format: Option<BlockFormat>) -> Operand {
        let (rows, k) = (x.rows(), x.columns());
        let tiles = (0..rows.div_ceil(TILE))
            .into_par_iter()
            .with_min_len((8192 / (k * TILE)).max(1))
            .map_init(Row::default, |room, tile| {
                let some = TILE.min(rows - tile * TILE);
                let stride = if rows <= FEW { rows } else { TILE };
                let mut to = Tile::default();
                dispatch!(isa, simd => {
                    let _ = simd;
                    to.fill([some, stride], k, format, room, #[inline(always)] |r, to| floats(x.row(tile * TILE + r), to));
                });
                to
            })
            .collect();
        Operand { rows, k, format, tiles }
    }

    pub(in crate::cpu) fn block_size(&self) -> Option<usize> {
        self.format.map(|f| f.block_size)
    }

    pub(in crate::cpu) fn tiles(&self) -> impl Iterator<Item = XTile<'_>> {
        self.tiles.iter().map(|tile| tile.view(self.format))
    }
}

impl Tile {
    /// Quantizes rows of `k` elements along k, or takes them as they are, in place of what was there; `row(r, to)`
    /// writes row r. There is room for `stride` rows, of which those beyond `rows` become zero.
    #[inline(always)]
    pub(in crate::cpu) fn fill(
        &mut self,
        [rows, stride]: [usize; 2],
        k: usize,
        format: Option<BlockFormat>,
        room: &mut Row,
        row: impl Fn(usize, &mut [f32]),
    ) {
        let quantizer = format.map(Quantizer::new);
        let (steps, blocks) = (k.div_ceil(STEP), format.map_or(0, |f| k.div_ceil(f.block_size)));
        self.stride = stride;
        if rows < stride {
            self.lanes.clear();
            self.powers.clear();
            self.norms.clear();
        }
        self.lanes.resize(steps * stride, Lanes::ZERO);
        self.powers.resize(blocks, [1.0; TILE]);
        self.norms.resize(blocks, [0.0; TILE]);
        room.values.clear();
        room.values.resize(steps * STEP, 0.0);
        room.blocks.resize(blocks, [0.0; 2]);
        let units = format.filter(|f| stride <= FEW && is_small_integer(f.element)).map(|f| 1.0 / unit(f.element));
        self.bytes.clear();
        self.bytes.resize(if units.is_some() { steps * stride } else { 0 }, StepBytes::default());
        let mut extent: Option<Extent> = None;
        for r in 0..rows {
            let values = &mut room.values[..k];
            row(r, values);
            if let Some(quantizer) = &quantizer {
                quantizer.row(values, &mut room.blocks);
                for (b, [power, norm]) in room.blocks.iter().enumerate() {
                    self.powers[b][r] = *power;
                    self.norms[b][r] = *norm;
                }
            } else {
                let own = Extent::of_values(values.iter().copied());
                extent = Some(extent.map_or(own, |e| e.join(own)));
            }
            for (step, values) in room.values.as_chunks::<STEP>().0.iter().enumerate() {
                pack_pairs(values, &mut self.lanes[step * stride + r].0);
                if let Some(units) = units {
                    self.bytes[step * stride + r] = step_bytes(values, units);
                }
            }
        }
        self.extent = extent.or_else(|| format.map(|f| Extent::of_scales(f.element, &self.powers)));
    }

    pub(in crate::cpu) fn view(&self, format: Option<BlockFormat>) -> XTile<'_> {
        XTile {
            lanes: &self.lanes,
            stride: self.stride,
            scales: format.map(|f| Scales { block_size: f.block_size, powers: &self.powers }),
            norms: &self.norms,
            bytes: &self.bytes,
            unit: format.map_or(1.0, |f| unit(f.element)),
            extent: self.extent.unwrap_or(Extent::of_values([])),
        }
    }
}

/// Values that are bf16, as pairs.
#[inline(always)]
fn pack_pairs(values: &[f32; STEP], to: &mut [u32; LANES]) {
    for (to, [low, high]) in to.iter_mut().zip(values.as_chunks::<2>().0) {
        *to = low.to_bits() >> 16 | high.to_bits() & 0xFFFF_0000;
    }
}

/// Elements that are whole numbers of units, each below 128, as bytes.
#[inline(always)]
fn step_bytes(values: &[f32; STEP], units: f32) -> StepBytes {
    let mut bytes = StepBytes::default();
    let mut sum = 0;
    for (quad, values) in bytes.quads.iter_mut().zip(values.as_chunks::<4>().0) {
        *quad = u32::from_le_bytes(values.map(|x| (x * units) as i8 as u8));
        sum += values.iter().map(|x| (x * units) as i32).sum::<i32>();
    }
    bytes.start = -BYTE_BIAS * sum;
    bytes
}
