//! Weights laid out for the product: panels of sixteen outputs, packed at their true width.

use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use half::bf16;
use microscale_formats::{E8M0, ElementFormat, INT8};
use rayon::prelude::*;

use super::bf16::pair;
use super::bytes::{BytePanel, ByteStep};
use super::extent::{Extent, limit, ratio, unit};
use super::floats::{FloatPanel, FloatStep, float_lanes};
use super::sides::{PANEL, STEP, Scales, WPanel};
use super::words::WordPanel;
use crate::buffer::Buffer;
use crate::cpu::simd::codes::{BlockScales, CodeTable, GROUP, Line, QUAD, QUADS, StepCodes, pack_step, position};
use crate::cpu::simd::tiles::{Lanes, Step};
use crate::cpu::simd::{IntegerProducts, LANES, Simd};
use crate::spare::capacity;
use crate::{Matrix, MxTensor, WeightMatrix};

/// A step of zeros.
pub(in crate::cpu) const ZERO: Step = [Lanes::ZERO; LANES];

/// A weight `[outputs, k]`, outputs padded with zeros to whole panels and k to whole steps.
pub struct Panels {
    pub(in crate::cpu) outputs: usize,
    pub(in crate::cpu) k: usize,
    pub(in crate::cpu) extent: Extent,
    storage: Storage,
}

/// The scales of one block of a group of panels: a line of memory, as of their codes.
type GroupScales = [BlockScales; GROUP];

/// The codes of a panel.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct PanelCodes<'a> {
    /// From its first one to its last, or to the last of its group where these lie side by side.
    lines: &'a [Line],
    /// From one of them to the next, as of [`StepCodes`].
    stride: usize,
}

/// The scales of a panel.
#[derive(Clone, Copy)]
pub(in crate::cpu) struct PanelScales<'a> {
    group: &'a [GroupScales],
    panel: usize,
}

enum Storage {
    /// `[panel][step]`.
    Plain(Vec<Step>),
    Packed(Packed),
}

/// Codes and scales of a quantized weight.
pub(in crate::cpu) struct Packed {
    pub(in crate::cpu) bits: u32,
    pub(in crate::cpu) block_size: usize,
    pub(in crate::cpu) table: Box<CodeTable>,
    pub(in crate::cpu) ratio: f32,
    /// The smallest magnitude of the format.
    pub(in crate::cpu) unit: f32,
    k: usize,
    /// Scales, `[group of panels][block]`: in memory of their own, as at the end of this, their pages would be small.
    /// After them codes, by group of panels: `[panel][step]` or, where [`stride`](Self::stride) says so, `[step][line][panel]`, each step
    /// packed by [`pack_step`].
    memory: Buffer,
    /// From one line of a panel's codes to the next: 1 or [`GROUP`].
    pub(in crate::cpu) stride: usize,
    /// How many bytes the scales are.
    scale_bytes: usize,
    /// [`WPanel::limit`] of every step, `[panel][step]`.
    limits: Vec<f32>,
    /// The least of them.
    pub(in crate::cpu) limit: f32,
    /// Whether no scale is the smallest, whose power is subnormal, or NaN.
    pub(in crate::cpu) scales_are_normal: bool,
    /// The format, if codes are a sign and a magnitude in 6 or 8 bits and none of them is infinity or NaN.
    pub(in crate::cpu) plain_codes: Option<ElementFormat>,
}

impl Panels {
    /// Lays a weight out, its codes with this [stride](StepCodes::stride).
    pub(in crate::cpu) fn new(weight: WeightMatrix, code_stride: usize) -> Panels {
        match weight {
            WeightMatrix::Bf16(matrix) => Self::plain(&matrix),
            WeightMatrix::Mx(tensor) => Self::packed(&tensor, code_stride),
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

    fn packed(tensor: &MxTensor, stride: usize) -> Panels {
        let (outputs, k) = (tensor.shape()[0], tensor.shape()[1]);
        let (element, block_size) = (tensor.format().element, tensor.format().block_size);
        let (bits, blocks) = (element.bits(), k.div_ceil(block_size));
        let (panels, steps) = (outputs.div_ceil(PANEL), k.div_ceil(STEP));
        let lines = steps * bits as usize;
        let one = E8M0::from_exponent(0).0;
        let magnitude = if element == INT8 { 0xFF } else { (1u8 << (bits - 1)) - 1 };
        let groups = panels.div_ceil(GROUP);
        let scale_bytes = groups * blocks * size_of::<GroupScales>();
        let mut memory = Buffer::zeroed(scale_bytes + groups * lines * GROUP * size_of::<Line>());
        let (scales, all_lines) = memory.bytes_mut().split_at_mut(scale_bytes);
        scales.fill(one);
        let all_lines = all_lines.as_chunks_mut().0;
        let scales = scales.as_chunks_mut().0.as_chunks_mut().0;
        let mut limits = vec![0f32; panels * steps];
        let special: [bool; 256] = std::array::from_fn(|code| !element.decode(code as u8).is_finite());
        let has_special = AtomicBool::new(false);
        let squares: [f32; 256] = std::array::from_fn(|code| (element.decode(code as u8) / unit(element)).powi(2));
        let lay_panel =
            |(unpacked, row): &mut (Vec<[[u8; QUAD]; QUADS]>, Vec<u8>),
             panel: usize,
             (group_lines, scales, limits): (&mut [Line], &mut [GroupScales], &mut [f32])| {
                limits.fill(f32::INFINITY);
                for output in 0..PANEL.min(outputs - panel * PANEL) {
                    tensor.unpack_row(panel * PANEL + output, row);
                    for ((step, row), least) in unpacked.iter_mut().zip(row.chunks(STEP)).zip(limits.iter_mut()) {
                        let norm = row.iter().map(|&code| squares[usize::from(code)]).sum::<f32>().sqrt();
                        *least = least.min(limit(norm));
                        // A square that is none makes the sum none.
                        if !norm.is_finite() && row.iter().any(|&code| special[usize::from(code)]) {
                            has_special.store(true, Relaxed);
                        }
                        for (quad, row) in step.iter_mut().zip(row.chunks(4)) {
                            for (k, &code) in row.iter().enumerate() {
                                quad[position(bits, output, k)] = code;
                            }
                        }
                    }
                    let row_scales = tensor.row_scales(panel * PANEL + output);
                    for ((to, &scale), block) in scales.iter_mut().zip(row_scales).zip(row.chunks(block_size)) {
                        // A block of zeros takes the scale 1, as in the operand: see `Quantizer::row`.
                        let zero = scale != E8M0::NAN && block.iter().all(|&c| c & magnitude == 0);
                        to[panel % GROUP][output] = if zero { one } else { scale.0 };
                    }
                }
                let panel_lines = &mut group_lines[first_line(panel, lines, stride)..];
                for (step, to) in unpacked.iter().zip(panel_lines.chunks_mut(bits as usize * stride)) {
                    pack_step(step, bits, (to, stride));
                }
            };
        let groups = all_lines.par_chunks_mut(GROUP * lines).zip(scales.par_chunks_mut(blocks));
        let groups = groups.zip(limits.par_chunks_mut(GROUP * steps));
        groups.enumerate().for_each_init(
            || (vec![[[0u8; QUAD]; QUADS]; steps], vec![0u8; k]),
            |room, (group, ((lines, scales), limits))| {
                for (i, limits) in limits.chunks_mut(steps).enumerate() {
                    lay_panel(room, group * GROUP + i, (lines, scales, limits));
                }
            },
        );
        let powers: Vec<[f32; PANEL]> = scales.as_flattened().iter().map(|s| s.map(|s| E8M0(s).value())).collect();
        let extent = Extent::of_scales(element, &powers);
        let table = Box::new(CodeTable::new(element));
        let scales_are_normal = scales.as_flattened().as_flattened().iter().all(|s| !matches!(s, 0 | 255));
        Panels {
            outputs,
            k,
            extent,
            storage: Storage::Packed(Packed {
                bits,
                block_size,
                table,
                ratio: ratio(element),
                unit: unit(element),
                k,
                memory,
                stride,
                scale_bytes,
                scales_are_normal,
                plain_codes: Some(element).filter(|_| bits > 4 && element != INT8 && !has_special.into_inner()),
                limit: limits.iter().copied().fold(f32::INFINITY, f32::min),
                limits,
            }),
        }
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
            Storage::Plain(steps) => {
                let width = self.k.div_ceil(STEP);
                let steps = &steps[panel * width..][..width];
                WPanel { steps, scales: None, stride: 1, first: [0; 2], limits: &[] }
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

impl Packed {
    /// The codes of a panel.
    #[inline(always)]
    pub(in crate::cpu) fn codes(&self, panel: usize) -> PanelCodes<'_> {
        let lines = self.k.div_ceil(STEP) * self.bits as usize;
        let all = self.memory.bytes()[self.scale_bytes..].as_chunks().0;
        let group = &all[panel / GROUP * GROUP * lines..][..GROUP * lines];
        let panel_lines = &group[first_line(panel, lines, self.stride)..];
        PanelCodes { lines: if self.stride == 1 { &panel_lines[..lines] } else { panel_lines }, stride: self.stride }
    }

    fn limits(&self, panel: usize) -> &[f32] {
        let steps = self.k.div_ceil(STEP);
        &self.limits[panel * steps..][..steps]
    }

    /// The scales of a panel.
    #[inline(always)]
    pub(in crate::cpu) fn scales(&self, panel: usize) -> PanelScales<'_> {
        let blocks = self.k.div_ceil(self.block_size);
        let all = self.memory.bytes()[..self.scale_bytes].as_chunks().0.as_chunks().0;
        PanelScales { group: &all[panel / GROUP * blocks..][..blocks], panel: panel % GROUP }
    }

    /// Some steps of a panel to bytes, where the format is one of small integers and blocks are steps.
    #[inline(always)]
    pub(super) fn byte_panel<'a, S: IntegerProducts>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> BytePanel<'a> {
        match self.bits {
            4 => self.decode_bytes::<S, 4>(simd, panel, steps.clone(), scratch),
            6 => self.decode_bytes::<S, 6>(simd, panel, steps.clone(), scratch),
            _ => self.decode_bytes::<S, 8>(simd, panel, steps.clone(), scratch),
        }
        self.load_scales(simd, panel, steps, self.unit, &mut scratch.powers);
        BytePanel { steps: &scratch.bytes, units: &scratch.powers, bits: self.bits as usize }
    }

    /// The same to integers of 16 bits, where the format has [some](CodeTable::integers).
    #[inline(always)]
    pub(super) fn word_panel<'a, S: IntegerProducts>(
        &'a self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &'a mut Scratch,
    ) -> WordPanel<'a> {
        match self.bits {
            4 => self.decode_words::<S, 4>(simd, panel, steps.clone(), scratch),
            6 => self.decode_words::<S, 6>(simd, panel, steps.clone(), scratch),
            _ => self.decode_words::<S, 8>(simd, panel, steps.clone(), scratch),
        }
        self.load_scales(simd, panel, steps, self.unit, &mut scratch.powers);
        WordPanel { steps: &scratch.steps, units: &scratch.powers }
    }

    #[inline(always)]
    fn decode_words<S: IntegerProducts, const BITS: usize>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let table = self.table.integers.as_ref().expect("words are taken of formats that have integers");
        scratch.steps.resize(steps.len(), ZERO);
        self.each_step::<S, _, BITS>(
            simd,
            (panel, steps),
            &mut scratch.steps,
            #[inline(always)]
            |codes, _, step| {
                for (q, [first, second]) in step.as_chunks_mut().0.iter_mut().enumerate() {
                    let pairs = simd.integers::<BITS>(table, codes, q);
                    simd.store_pairs(pairs[0], &mut first.0);
                    simd.store_pairs(pairs[1], &mut second.0);
                }
            },
        );
    }

    #[inline(always)]
    fn decode_bytes<S: IntegerProducts, const BITS: usize>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &mut Scratch,
    ) {
        let table = self.table.bytes.as_ref().expect("formats of small integers have bytes");
        scratch.bytes.resize(steps.len(), [Lanes::ZERO; QUADS]);
        self.each_step::<S, _, BITS>(
            simd,
            (panel, steps),
            &mut scratch.bytes,
            #[inline(always)]
            |codes, _, step| {
                for (q, to) in step.iter_mut().enumerate() {
                    simd.store_pairs(simd.bytes::<BITS>(table, codes, q), &mut to.0);
                }
            },
        );
    }

    /// Decodes some steps of a panel: `decode(codes, step, to)`, one after another.
    #[inline(always)]
    fn each_step<S: Simd, T, const BITS: usize>(
        &self,
        simd: S,
        (panel, steps): (usize, Range<usize>),
        to: &mut [T],
        decode: impl Fn(StepCodes<'_>, usize, &mut T),
    ) {
        let codes = self.codes(panel);
        for (step, to) in steps.clone().zip(to) {
            // As many steps further on are those that will be asked for next.
            fetch_step::<S, BITS>(simd, codes, step + steps.len());
            decode(codes.step::<BITS>(step), step, to);
        }
    }

    /// Some steps of a panel to f32, times their scales if `SCALED`, which takes blocks that are steps.
    #[inline(always)]
    fn decode_floats<S: Simd, const SCALED: bool>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &mut Scratch,
    ) {
        match self.bits {
            4 => self.decode_floats_of::<S, 4, SCALED>(simd, panel, steps, scratch),
            6 => self.decode_floats_of::<S, 6, SCALED>(simd, panel, steps, scratch),
            _ => self.decode_floats_of::<S, 8, SCALED>(simd, panel, steps, scratch),
        }
    }

    #[inline(always)]
    fn decode_floats_of<S: Simd, const BITS: usize, const SCALED: bool>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &mut Scratch,
    ) {
        scratch.floats.resize(steps.len(), [[Lanes::ZERO; 2]; LANES]);
        self.each_step::<S, _, BITS>(
            simd,
            (panel, steps),
            &mut scratch.floats,
            #[inline(always)]
            |codes, s, step| {
                let scale = if SCALED { Some(simd.powers(self.scales(panel).block(s))) } else { None };
                for (q, [first, second]) in step.as_chunks_mut().0.iter_mut().enumerate() {
                    let pairs = simd.decode::<BITS>(&self.table, codes, q);
                    float_lanes(simd, pairs[0], scale, first);
                    float_lanes(simd, pairs[1], scale, second);
                }
            },
        );
    }

    /// Some steps of a panel to pairs, times their scales if `SCALED`, which takes blocks that are steps.
    #[inline(always)]
    fn decode<S: Simd, const BITS: usize, const SCALED: bool>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        scratch: &mut Scratch,
    ) {
        scratch.steps.resize(steps.len(), ZERO);
        self.each_step::<S, _, BITS>(
            simd,
            (panel, steps.clone()),
            &mut scratch.steps,
            #[inline(always)]
            |codes, s, step| {
                let power = if SCALED { simd.powers(self.scales(panel).block(s)) } else { simd.splat(1.0) };
                for (q, pairs) in step.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    let [mut first, mut second] = simd.decode::<BITS>(&self.table, codes, q);
                    if SCALED {
                        (first, second) = (scaled(simd, first, power), scaled(simd, second, power));
                    }
                    simd.store_pairs(first, &mut pairs[0].0);
                    simd.store_pairs(second, &mut pairs[1].0);
                }
            },
        );
        if !SCALED {
            self.load_scales(simd, panel, steps, 1.0, &mut scratch.powers);
        }
    }

    /// The scales of the blocks of some steps, times a power of two.
    #[inline(always)]
    fn load_scales<S: Simd>(&self, simd: S, panel: usize, steps: Range<usize>, unit: f32, to: &mut Vec<[f32; LANES]>) {
        let scales = self.scales(panel);
        let blocks =
            steps.start * STEP / self.block_size..(steps.end * STEP).div_ceil(self.block_size).min(scales.group.len());
        to.resize(blocks.len(), [1.0; PANEL]);
        for (to, block) in to.iter_mut().zip(blocks) {
            simd.store(simd.mul(simd.powers(scales.block(block)), simd.splat(unit)), to);
        }
    }
}

/// Asks for the codes of a step, if there is one.
#[inline(always)]
fn fetch_step<S: Simd, const BITS: usize>(simd: S, codes: PanelCodes<'_>, step: usize) {
    if step < codes.lines.len().div_ceil(BITS * codes.stride) {
        let codes = codes.step::<BITS>(step);
        for line in 0..BITS {
            simd.fetch(codes.line(line));
        }
    }
}

#[inline(always)]
fn scaled<S: Simd>(simd: S, pairs: S::Pairs, scale: S::F32) -> S::Pairs {
    let [even, odd] = simd.floats(pairs);
    simd.or(simd.shift_right(simd.bits(simd.mul(even, scale)), 16), simd.bits(simd.mul(odd, scale)))
}

/// Where the lines of a panel's codes begin, of which there are so many, in those of its group.
fn first_line(panel: usize, lines: usize, stride: usize) -> usize {
    if stride == 1 { panel % GROUP * lines } else { panel % GROUP }
}

impl<'a> PanelCodes<'a> {
    /// The same, its stride one that the compiler knows, but for 0.
    #[inline(always)]
    pub(super) fn with_stride<const STRIDE: usize>(self) -> PanelCodes<'a> {
        if STRIDE == 0 {
            return self;
        }
        assert_eq!(self.stride, STRIDE, "the stride that the weight was laid out with");
        PanelCodes { stride: STRIDE, ..self }
    }

    #[inline(always)]
    pub(super) fn stride(self) -> usize {
        self.stride
    }

    /// The codes of a panel of the same group, so many further on: `apart`, if the panels do not lie side by side.
    #[inline(always)]
    pub(super) fn beside(self, panels: usize, apart: PanelCodes<'a>) -> PanelCodes<'a> {
        if self.stride == 1 { apart } else { PanelCodes { lines: &self.lines[panels..], ..self } }
    }

    #[inline(always)]
    pub(super) fn step<const BITS: usize>(self, step: usize) -> StepCodes<'a> {
        let extent = StepCodes::extent(BITS, self.stride);
        StepCodes { lines: &self.lines[step * BITS * self.stride..][..extent], stride: self.stride }
    }

    /// The bytes between what lies so far ahead of a step and what a row that streams through the group will read there: after a panel
    /// it goes on with the same one of the next group. None where the panels' lines lie side by side.
    #[inline(always)]
    pub(super) fn skip<const BITS: usize>(self, step: usize, ahead: usize) -> usize {
        let length = size_of_val(self.lines);
        if self.stride > 1 || length - step * BITS * size_of::<Line>() > ahead { 0 } else { (GROUP - 1) * length }
    }
}

impl<'a> PanelScales<'a> {
    #[inline(always)]
    pub(super) fn block(self, block: usize) -> &'a BlockScales {
        &self.group[block][self.panel]
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
