//! Codes and scales in panels, and their way back to what products take.

use std::ops::Range;

use microscale_formats::ElementFormat;

use super::super::bytes::BytePanel;
use super::super::floats::float_lanes;
use super::super::sides::{PANEL, STEP};
use super::super::words::WordPanel;
use super::{Scratch, ZERO};
use crate::buffer::Buffer;
use crate::cpu::simd::codes::{BlockScales, CodeTable, GROUP, Line, QUADS, StepCodes};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{IntegerProducts, LANES, Simd};

/// Codes and scales of a quantized weight.
pub(in crate::cpu) struct Packed {
    pub(in crate::cpu) bits: u32,
    pub(in crate::cpu) block_size: usize,
    pub(in crate::cpu) table: Box<CodeTable>,
    pub(in crate::cpu) ratio: f32,
    /// The smallest magnitude of the format.
    pub(in crate::cpu) unit: f32,
    pub(super) k: usize,
    /// Scales, `[group of panels][block]`: in memory of their own, as at the end of this, their pages would be small.
    /// After them codes, by group of panels: `[panel][step]` or, where [`stride`](Self::stride) says so, `[step][line][panel]`, each step
    /// packed by [`pack_step`].
    pub(super) memory: Buffer,
    /// From one line of a panel's codes to the next: 1 or [`GROUP`].
    pub(in crate::cpu) stride: usize,
    /// How many bytes the scales are.
    pub(super) scale_bytes: usize,
    /// [`WPanel::limit`] of every step, `[panel][step]`.
    pub(super) limits: Vec<f32>,
    /// The least of them.
    pub(in crate::cpu) limit: f32,
    /// Whether no scale is the smallest, whose power is subnormal, or NaN.
    pub(in crate::cpu) scales_are_normal: bool,
    /// The format, if codes are a sign and a magnitude in 6 or 8 bits and none of them is infinity or NaN.
    pub(in crate::cpu) plain_codes: Option<ElementFormat>,
}

/// The scales of one block of a group of panels: a line of memory, as of their codes.
pub(super) type GroupScales = [BlockScales; GROUP];

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

    pub(super) fn limits(&self, panel: usize) -> &[f32] {
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
    pub(in super::super) fn byte_panel<'a, S: IntegerProducts>(
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
    pub(in super::super) fn word_panel<'a, S: IntegerProducts>(
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
    pub(super) fn decode_floats<S: Simd, const SCALED: bool>(
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
    pub(super) fn decode<S: Simd, const BITS: usize, const SCALED: bool>(
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
    pub(super) fn load_scales<S: Simd>(
        &self,
        simd: S,
        panel: usize,
        steps: Range<usize>,
        unit: f32,
        to: &mut Vec<[f32; LANES]>,
    ) {
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
pub(super) fn first_line(panel: usize, lines: usize, stride: usize) -> usize {
    if stride == 1 { panel % GROUP * lines } else { panel % GROUP }
}

impl<'a> PanelCodes<'a> {
    /// The same, its stride one that the compiler knows, but for 0.
    #[inline(always)]
    pub(in super::super) fn with_stride<const STRIDE: usize>(self) -> PanelCodes<'a> {
        if STRIDE == 0 {
            return self;
        }
        assert_eq!(self.stride, STRIDE, "the stride that the weight was laid out with");
        PanelCodes { stride: STRIDE, ..self }
    }

    #[inline(always)]
    pub(in super::super) fn stride(self) -> usize {
        self.stride
    }

    /// The codes of a panel of the same group, so many further on: `apart`, if the panels do not lie side by side.
    #[inline(always)]
    pub(in super::super) fn beside(self, panels: usize, apart: PanelCodes<'a>) -> PanelCodes<'a> {
        if self.stride == 1 { apart } else { PanelCodes { lines: &self.lines[panels..], ..self } }
    }

    #[inline(always)]
    pub(in super::super) fn step<const BITS: usize>(self, step: usize) -> StepCodes<'a> {
        let extent = StepCodes::extent(BITS, self.stride);
        StepCodes { lines: &self.lines[step * BITS * self.stride..][..extent], stride: self.stride }
    }

    /// The bytes between what lies so far ahead of a step and what a row that streams through the group will read there: after a panel
    /// it goes on with the same one of the next group. None where the panels' lines lie side by side.
    #[inline(always)]
    pub(in super::super) fn skip<const BITS: usize>(self, step: usize, ahead: usize) -> usize {
        let length = size_of_val(self.lines);
        if self.stride > 1 || length - step * BITS * size_of::<Line>() > ahead { 0 } else { (GROUP - 1) * length }
    }
}

impl<'a> PanelScales<'a> {
    #[inline(always)]
    pub(in super::super) fn block(self, block: usize) -> &'a BlockScales {
        &self.group[block][self.panel]
    }
}
