//! The way of a quantized weight into panels.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use microscale_formats::{E8M0, INT8};
use rayon::prelude::*;

use super::super::extent::{Extent, limit, ratio, unit};
use super::super::sides::{PANEL, STEP};
use super::packed::{GroupScales, Packed, first_line};
use crate::MxTensor;
use crate::buffer::Buffer;
use crate::cpu::simd::codes::{CodeTable, GROUP, Line, QUAD, QUADS, pack_step, position};

impl Packed {
    /// Lays a weight out, its codes with this [stride](crate::cpu::simd::codes::StepCodes::stride); with it the extent of its values.
    pub(super) fn new(tensor: &MxTensor, stride: usize) -> (Packed, Extent) {
        let (outputs, k) = (tensor.shape()[0], tensor.shape()[1]);
        let (element, block_size) = (tensor.format().element, tensor.format().block_size);
        let (blocks, steps, groups) = (k.div_ceil(block_size), k.div_ceil(STEP), outputs.div_ceil(GROUP * PANEL));
        let lines = steps * element.bits() as usize;
        let scale_bytes = groups * blocks * size_of::<GroupScales>();
        let mut memory = Buffer::zeroed(scale_bytes + groups * lines * GROUP * size_of::<Line>());
        let (scales, all_lines) = memory.bytes_mut().split_at_mut(scale_bytes);
        scales.fill(ONE);
        let all_lines = all_lines.as_chunks_mut().0;
        let scales = scales.as_chunks_mut().0.as_chunks_mut().0;
        let mut limits = vec![0f32; outputs.div_ceil(PANEL) * steps];
        let packing = Packing::new(tensor, stride);
        let groups = all_lines.par_chunks_mut(GROUP * lines).zip(scales.par_chunks_mut(blocks));
        let groups = groups.zip(limits.par_chunks_mut(GROUP * steps));
        groups.enumerate().for_each_init(
            || Room { codes: vec![0; k], placed: vec![[[0; QUAD]; QUADS]; steps] },
            |room, (group, ((lines, scales), limits))| {
                for (i, limits) in limits.chunks_mut(steps).enumerate() {
                    packing.panel(room, group * GROUP + i, (lines, scales, limits));
                }
            },
        );
        let powers: Vec<[f32; PANEL]> = scales.as_flattened().iter().map(|s| s.map(|s| E8M0(s).value())).collect();
        let scales_are_normal = scales.as_flattened().as_flattened().iter().all(|s| !matches!(s, 0 | 255));
        let plain = element.bits() > 4 && element != INT8 && !packing.has_special.into_inner();
        let packed = Packed {
            bits: element.bits(),
            block_size,
            table: Box::new(CodeTable::new(element)),
            ratio: ratio(element),
            unit: unit(element),
            k,
            memory,
            stride,
            scale_bytes,
            scales_are_normal,
            plain_codes: Some(element).filter(|_| plain),
            limit: limits.iter().copied().fold(f32::INFINITY, f32::min),
            limits,
        };
        (packed, Extent::of_scales(element, &powers))
    }
}

/// The byte of the scale 1: exponents are 127 more.
const ONE: u8 = 127;

/// A weight, and what is known of every code of its format.
struct Packing<'a> {
    tensor: &'a MxTensor,
    stride: usize,
    /// The bits of a code that are 0 if its value is.
    magnitude: u8,
    /// The square of its value in the smallest magnitude.
    squares: [f32; 256],
    /// Whether it is infinity or NaN, and whether the weight has such a code.
    special: [bool; 256],
    has_special: AtomicBool,
}

/// Room for the codes of a row, and for those of a panel's steps where [`pack_step`] wants them.
struct Room {
    codes: Vec<u8>,
    placed: Vec<[[u8; QUAD]; QUADS]>,
}

impl<'a> Packing<'a> {
    fn new(tensor: &'a MxTensor, stride: usize) -> Self {
        let element = tensor.format().element;
        Packing {
            tensor,
            stride,
            magnitude: if element == INT8 { 0xFF } else { (1 << (element.bits() - 1)) - 1 },
            squares: std::array::from_fn(|code| (element.decode(code as u8) / unit(element)).powi(2)),
            special: std::array::from_fn(|code| !element.decode(code as u8).is_finite()),
            has_special: AtomicBool::new(false),
        }
    }

    /// Packs a panel's codes into the lines of its group, and writes its scales and limits.
    fn panel(
        &self,
        Room { codes, placed }: &mut Room,
        panel: usize,
        (group_lines, scales, limits): (&mut [Line], &mut [GroupScales], &mut [f32]),
    ) {
        let Packing { tensor, stride, .. } = *self;
        let (bits, block_size) = (tensor.format().element.bits(), tensor.format().block_size);
        limits.fill(f32::INFINITY);
        for output in 0..PANEL.min(tensor.shape()[0] - panel * PANEL) {
            tensor.unpack_row(panel * PANEL + output, codes);
            for ((step, codes), least) in placed.iter_mut().zip(codes.chunks(STEP)).zip(limits.iter_mut()) {
                let norm = codes.iter().map(|&code| self.squares[usize::from(code)]).sum::<f32>().sqrt();
                *least = least.min(limit(norm));
                // A square that is none makes the sum none.
                if !norm.is_finite() && codes.iter().any(|&code| self.special[usize::from(code)]) {
                    self.has_special.store(true, Relaxed);
                }
                for (quad, codes) in step.iter_mut().zip(codes.chunks(4)) {
                    for (k, &code) in codes.iter().enumerate() {
                        quad[position(bits, output, k)] = code;
                    }
                }
            }
            let row_scales = tensor.row_scales(panel * PANEL + output);
            for ((to, &scale), block) in scales.iter_mut().zip(row_scales).zip(codes.chunks(block_size)) {
                // A block of zeros takes the scale 1, as in the operand: see `Quantizer::row`.
                let zero = scale != E8M0::NAN && block.iter().all(|&c| c & self.magnitude == 0);
                to[panel % GROUP][output] = if zero { ONE } else { scale.0 };
            }
        }
        let lines = placed.len() * bits as usize;
        let panel_lines = &mut group_lines[first_line(panel, lines, stride)..];
        for (step, to) in placed.iter().zip(panel_lines.chunks_mut(bits as usize * stride)) {
            pack_step(step, bits, (to, stride));
        }
    }
}
