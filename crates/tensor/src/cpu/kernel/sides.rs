//! The two sides of a product, in the forms that [`product`](super::product) takes.

use super::extent::Extent;
use crate::cpu::simd::LANES;
use crate::cpu::simd::codes::{BYTE_BIAS, ORDER, QUADS};
use crate::cpu::simd::tiles::{Lanes, Step};

/// Rows of a tile.
pub(in crate::cpu) const TILE: usize = 16;
/// Outputs of a panel: one vector.
pub(in crate::cpu) const PANEL: usize = LANES;
/// Elements along k of a [`Step`].
pub(in crate::cpu) const STEP: usize = 2 * LANES;

/// Scales, one power of two (or NaN) per block and row (or output).
#[derive(Clone, Copy)]
pub(in crate::cpu) struct Scales<'a> {
    pub(in crate::cpu) block_size: usize,
    pub(in crate::cpu) powers: &'a [[f32; LANES]],
}

/// Up to sixteen rows: `lanes[k / 32 · stride + row].0[k % 32 / 2]`; none where bytes will do.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct XTile<'a> {
    pub(in crate::cpu) lanes: &'a [Lanes],
    /// Rows there is room for: 16, or as many as there are where those are few.
    pub(in crate::cpu) stride: usize,
    /// None where the elements have none or hold them already.
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Whether the elements hold their scales.
    pub(in crate::cpu) dequantized: bool,
    /// Per block and row the Euclidean norm of the elements over the largest power of two that divides them all; empty where
    /// no sum of products through tiles can round.
    pub(in crate::cpu) norms: &'a [[f32; TILE]],
    /// `[step][row]`, where the elements are small integers times a unit and that is of use; else empty.
    pub(in crate::cpu) bytes: &'a [StepBytes],
    /// `[step][row]`, of few rows, where blocks are steps and that is of use; else empty.
    pub(in crate::cpu) integers: &'a [StepIntegers],
    /// `[step][row]`, the same integers of many rows, and what they are multiples of.
    pub(in crate::cpu) words: &'a [Lanes],
    pub(in crate::cpu) word_units: &'a [[f32; TILE]],
    pub(in crate::cpu) extent: Extent,
}

/// A step of a row in signed bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct StepBytes {
    /// Four elements each, in their [order](ORDER).
    pub(in crate::cpu) quads: [u32; QUADS],
    /// What a sum of products with bytes that are [`BYTE_BIAS`] too large has to start with.
    pub(in crate::cpu) start: i32,
    /// What they are multiples of: the format's smallest magnitude, scaled.
    pub(in crate::cpu) unit: f32,
}

impl StepBytes {
    /// Of four elements each and the sum of all, in units that are worth so much after scaling.
    #[inline(always)]
    pub(in crate::cpu) fn new((quads, sum): ([u32; QUADS], i32), unit: f32) -> StepBytes {
        StepBytes { quads, unit, start: (-BYTE_BIAS).wrapping_mul(sum) }
    }

    /// The elements.
    #[inline(always)]
    pub(super) fn values(&self) -> [f32; STEP] {
        let mut values = [0.0; STEP];
        for (four, quad) in values.as_chunks_mut::<4>().0.iter_mut().zip(self.quads) {
            for (k, byte) in ORDER.into_iter().zip(quad.to_le_bytes()) {
                four[k] = f32::from(byte.cast_signed()) * self.unit;
            }
        }
        values
    }
}

/// A step of a row in signed integers of 16 bits, two to a pair as their bf16 values are.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::cpu) struct StepIntegers {
    /// They fit if the norm does.
    pub(in crate::cpu) pairs: [u32; LANES],
    /// The same in two signed bytes each, the lower ones and those worth 256 times as much, by fours in their [order](ORDER);
    /// they fit if the norm is not above [`HALVES`](Self::HALVES).
    pub(in crate::cpu) halves: [[u32; QUADS]; 2],
    /// What sums of products of either with bytes that are [`BYTE_BIAS`] too large have to start with.
    pub(in crate::cpu) starts: [i32; 2],
    /// What they are multiples of: the largest power of two that divides all of the step's elements, scaled.
    pub(in crate::cpu) unit: f32,
    /// Their Euclidean norm, or a little more.
    pub(in crate::cpu) norm: f32,
}

impl StepIntegers {
    pub(in crate::cpu) const HALVES: f32 = 127.0 * 256.0;
}

/// Sixteen outputs: `steps[stride · (k / 32 − first)][k % 32 / 2].0[output]`, scales likewise.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct WPanel<'a> {
    pub(in crate::cpu) steps: &'a [Step],
    pub(in crate::cpu) scales: Option<Scales<'a>>,
    /// Distance of neighbours along k, in steps and in blocks.
    pub(in crate::cpu) stride: usize,
    /// The step and the block that `steps` and `scales` begin with.
    pub(in crate::cpu) first: [usize; 2],
    /// For every step, or one for all, the [`limit`](super::extent::limit).
    pub(in crate::cpu) limits: &'a [f32],
}

/// The block that holds element `k`. Nearly all are of 32, and a division takes as long as many a product.
#[inline(always)]
pub(super) fn block_of(k: usize, block_size: usize) -> usize {
    if block_size == STEP { k / STEP } else { k / block_size }
}

impl<'a> XTile<'a> {
    /// The pairs of a row in a step.
    #[inline(always)]
    pub(in crate::cpu) fn row(&self, step: usize, row: usize) -> &'a [u32; LANES] {
        &self.lanes[step * self.stride + row].0
    }

    /// The pairs of `R` rows from `first` on in a step.
    #[inline(always)]
    pub(super) fn rows<const R: usize>(&self, step: usize, first: usize) -> &'a [Lanes; R] {
        self.lanes[step * self.stride + first..].first_chunk().expect("rows of the tile")
    }

    /// Whether all scales are 1.
    pub(in crate::cpu) fn is_unscaled(&self) -> bool {
        self.scales.is_none()
    }

    /// The scale of a row in the block that holds element `k`.
    #[inline(always)]
    pub(in crate::cpu) fn power(&self, k: usize, row: usize) -> f32 {
        match self.scales {
            Some(s) => s.powers[block_of(k, s.block_size)][row],
            None => 1.0,
        }
    }

    /// The steps of all sixteen rows.
    #[inline(always)]
    pub(super) fn steps(&self) -> &'a [Step] {
        self.lanes.as_chunks().0
    }
}

impl<'a> WPanel<'a> {
    #[inline(always)]
    pub(super) fn step(&self, step: usize) -> &'a Step {
        &self.steps[self.stride * (step - self.first[0])]
    }

    /// The largest norm of the other side whose products with this step are exact in any order.
    #[inline(always)]
    pub(super) fn limit(&self, step: usize) -> f32 {
        self.limits.get(step).or(self.limits.last()).copied().unwrap_or(0.0)
    }

    /// The scales of a step that is a block.
    #[inline(always)]
    pub(super) fn block(&self, step: usize) -> &'a [f32; PANEL] {
        self.scales.map_or(&[1.0; PANEL], |s| &s.powers[self.stride * (step - self.first[1])])
    }

    #[inline(always)]
    pub(super) fn power(&self, k: usize) -> Option<&'a [f32; PANEL]> {
        self.scales.map(|s| &s.powers[self.stride * (block_of(k, s.block_size) - self.first[1])])
    }
}
