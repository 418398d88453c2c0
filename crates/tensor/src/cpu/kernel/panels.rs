//! Weights laid out for the product: panels of sixteen outputs, packed at their true width.

mod pack;
mod packed;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bf16::pair;
use super::bytes::ByteStep;
use super::extent::Extent;
use super::floats::{FloatPanel, FloatStep, float_lanes};
use super::sides::{PANEL, STEP, Scales, WPanel};
use crate::cpu::simd::tiles::{Lanes, Step};
use crate::cpu::simd::{LANES, Simd};
use crate::spare::capacity;
use crate::{Matrix, WeightMatrix};
pub(in crate::cpu) use packed::Packed;
pub(super) use packed::{PanelCodes, PanelScales};

/// A step of zeros.
pub(in crate::cpu) const ZERO: Step = [Lanes::ZERO; LANES];

/// A weight `[outputs, k]`, outputs padded with zeros to whole panels and k to whole steps.
pub struct Panels {
    pub(in crate::cpu) outputs: usize,
    pub(in crate::cpu) k: usize,
    pub(in crate::cpu) extent: Extent,
    storage: Storage,
}

enum Storage {
    /// `[panel][step]`.
    Plain(Vec<Step>),
    Packed(Packed),
}

impl Panels {
    /// Lays a weight out, its codes with this [stride](StepCodes::stride).
    pub(in crate::cpu) fn new(weight: WeightMatrix, code_stride: usize) -> Panels {
        match weight {
            WeightMatrix::Bf16(matrix) => Self::plain(&matrix),
            WeightMatrix::Mx(tensor) => {
                let (packed, extent) = Packed::new(&tensor, code_stride);
                let [outputs, k] = [0, 1].map(|axis| tensor.shape()[axis]);
                Panels { outputs, k, extent, storage: Storage::Packed(packed) }
            }
        }
    }

    fn plain(matrix: &Matrix) -> Panels {
        let (outputs, k) = (matrix.rows(), matrix.columns());
        let steps = k.div_ceil(STEP);
        let mut panels = vec![ZERO; outputs.div_ceil(PANEL) * steps];
        let extent = panels
            .par_chunks_mut(steps)
            .enumerate()
            .map(|(panel, steps)| {
                let rows = panel * PANEL..outputs.min((panel + 1) * PANEL);
                for (output, row) in rows.clone().enumerate() {
                    lay_row(matrix.row(row), output, steps);
                }
                let values = &matrix.values()[rows.start * k..rows.end * k];
                Extent::of_values(values.iter().map(|x| x.to_f32()))
            })
            .reduce(|| Extent::of_values([]), Extent::join);
        Panels { outputs, k, extent, storage: Storage::Plain(panels) }
    }

    /// How many panels there are.
    pub(in crate::cpu) fn count(&self) -> usize {
        self.outputs.div_ceil(PANEL)
    }

    pub(in crate::cpu) fn block_size(&self) -> Option<usize> {
        self.as_packed().map(|p| p.block_size)
    }

    /// The steps of a plain panel; none of a packed one.
    #[inline(always)]
    pub(in crate::cpu) fn plain_steps(&self, panel: usize) -> &[Step] {
        let width = self.k.div_ceil(STEP);
        match &self.storage {
            Storage::Plain(steps) => &steps[panel * width..][..width],
            Storage::Packed(_) => &[],
        }
    }

    pub(in crate::cpu) fn as_packed(&self) -> Option<&Packed> {
        match &self.storage {
            Storage::Plain(_) => None,
            Storage::Packed(packed) => Some(packed),
        }
    }

    /// Whether [`panel`](Self::panel) can take the scales into the elements.
    pub(super) fn can_be_dequantized(&self) -> bool {
        self.block_size() == Some(STEP) && self.extent.dequantized().is_some()
    }

    /// One panel, these steps of it decoded where it is packed, and dequantized if asked for.
    #[inline(always)]
    pub(in crate::cpu) fn panel<'a, S: Simd>(
        &'a self,
        simd: S,
        (panel, dequantized): (usize, bool),
        steps: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> WPanel<'a> {
        match &self.storage {
            Storage::Plain(_) => {
                WPanel { steps: self.plain_steps(panel), scales: None, stride: 1, first: [0; 2], limits: &[] }
            }
            Storage::Packed(packed) if dequantized => {
                let first = [steps.start, 0];
                match packed.bits {
                    4 => packed.decode::<S, 4, true>(simd, panel, steps, scratch),
                    6 => packed.decode::<S, 6, true>(simd, panel, steps, scratch),
                    _ => packed.decode::<S, 8, true>(simd, panel, steps, scratch),
                }
                WPanel { steps: &scratch.steps, scales: None, stride: 1, first, limits: &[] }
            }
            Storage::Packed(packed) => {
                let first = [steps.start, steps.start * STEP / packed.block_size];
                match packed.bits {
                    4 => packed.decode::<S, 4, false>(simd, panel, steps, scratch),
                    6 => packed.decode::<S, 6, false>(simd, panel, steps, scratch),
                    _ => packed.decode::<S, 8, false>(simd, panel, steps, scratch),
                }
                let scales = Some(Scales { block_size: packed.block_size, powers: &scratch.powers });
                WPanel { steps: &scratch.steps, scales, stride: 1, first, limits: packed.limits(panel) }
            }
        }
    }

    /// The same in f32, dequantized where that can be.
    #[inline(always)]
    pub(super) fn float_panel<'a, S: Simd>(
        &'a self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> FloatPanel<'a> {
        match &self.storage {
            Storage::Plain(_) => {
                scratch.floats.resize(steps.len(), [[Lanes::ZERO; 2]; LANES]);
                for (step, to) in self.plain_steps(panel)[steps].iter().zip(&mut scratch.floats) {
                    for (pairs, to) in step.iter().zip(to) {
                        float_lanes(simd, simd.load_pairs(&pairs.0), None, to);
                    }
                }
                FloatPanel { steps: &scratch.floats, scales: None }
            }
            Storage::Packed(packed) if self.can_be_dequantized() => {
                packed.decode_floats::<S, true>(simd, panel, steps, scratch);
                FloatPanel { steps: &scratch.floats, scales: None }
            }
            Storage::Packed(packed) => {
                packed.decode_floats::<S, false>(simd, panel, steps.clone(), scratch);
                packed.load_scales(simd, panel, steps, 1.0, &mut scratch.powers);
                FloatPanel { steps: &scratch.floats, scales: Some((&scratch.powers, packed.block_size / STEP)) }
            }
        }
    }
}

/// Writes a row of bf16 values as the pairs of one output.
pub(in crate::cpu) fn lay_row(row: &[bf16], output: usize, steps: &mut [Step]) {
    for (step, values) in steps.iter_mut().zip(row.chunks(STEP)) {
        for (pairs, values) in step.iter_mut().zip(values.chunks(2)) {
            pairs.0[output] = pair(values);
        }
    }
}

/// Room for decoded steps of a panel.
#[derive(Default)]
pub(in crate::cpu) struct Scratch {
    steps: Vec<Step>,
    bytes: Vec<ByteStep>,
    floats: Vec<FloatStep>,
    powers: Vec<[f32; LANES]>,
}

impl Scratch {
    /// Bytes of memory, used or not.
    pub(super) fn capacity(&self) -> usize {
        let Scratch { steps, bytes, floats, powers } = self;
        capacity(steps) + capacity(bytes) + capacity(floats) + capacity(powers)
    }
}
