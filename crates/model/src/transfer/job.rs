//! One tensor's way from a file into another: which bytes, and what becomes of them, row by row.

use std::sync::Arc;

use microscale_formats::{E8M0, round_to_bf16, unpack};
use microscale_tensor::{RowDequantizer, RowQuantizer};
use safetensors::Dtype;

use crate::convert::widen;
use crate::native::PackedTensor;

/// Bytes that one piece of work reads or writes, whichever is more. Small enough for a cache, large enough that the
/// system's calls do not count.
const SLICE: usize = 4 << 20;

/// A tensor (or, of a quantized one, codes and scales) that becomes one or two others. All are cut into the same
/// number of rows, and a row of the outputs follows from that row of the inputs.
#[derive(Clone, Debug)]
pub struct Job {
    /// The tensor as errors and reports name it.
    pub name: String,
    /// What it reads: at least one.
    pub inputs: Vec<Input>,
    /// What it writes: one or two.
    pub outputs: Vec<Output>,
    /// Into how many rows all of them are cut.
    pub rows: usize,
    /// What becomes of a row.
    pub transform: Transform,
}

/// Where the rows are that a job reads.
#[derive(Clone, Debug)]
pub struct Input {
    /// Index of the source's file.
    pub file: usize,
    /// Offset of the first row in it.
    pub offset: usize,
    /// Bytes of a row; the next follows at once.
    pub row_bytes: usize,
}

/// A tensor that a job writes.
#[derive(Clone, Debug)]
pub struct Output {
    /// Its name in the file.
    pub name: String,
    /// Its type as the header has it, or one of the same width.
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
}

impl Output {
    /// Bytes of the tensor.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// What becomes of a row.
#[derive(Clone, Debug)]
pub enum Transform {
    /// The same bytes.
    Copy,
    /// A value, rounded to bf16.
    Round(Dtype),
    /// A row of values: packed codes, and scales.
    Quantize {
        /// Type of the values.
        from: Dtype,
        /// Whether they are rounded to bf16 first, as a model's are.
        round: bool,
        /// What they become.
        to: PackedTensor,
    },
    /// Codes and scales: a row of values, bf16 or f32.
    Dequantize {
        /// What the codes and scales are.
        from: PackedTensor,
        /// Type of the values.
        to: Dtype,
    },
    /// Whatever else.
    Rows(Arc<dyn RowTransform>),
}

/// A way of rows that is not this crate's. What [`Debug`] writes must tell it from any other.
pub trait RowTransform: std::fmt::Debug + Send + Sync {
    /// Turns `rows` rows, given as one stretch of bytes per input, into as many of each output.
    ///
    /// # Errors
    /// What the output cannot hold or the input should not be.
    fn apply(&self, rows: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<(), String>;
}

impl Job {
    /// Rows of a slice, at least one.
    pub(crate) fn slice_rows(&self) -> usize {
        let read: usize = self.inputs.iter().map(|input| input.row_bytes).sum();
        let written: usize = self.outputs.iter().map(Output::bytes).sum::<usize>() / self.rows.max(1);
        (SLICE / read.max(written).max(1)).max(1)
    }

    /// Bytes that it reads.
    pub(crate) fn input_bytes(&self) -> usize {
        self.rows * self.inputs.iter().map(|input| input.row_bytes).sum::<usize>()
    }
}

impl Transform {
    /// Turns `rows` rows, given as one stretch of bytes per input, into as many of each output. Answers how many values
    /// (of a rounding) or blocks (of a quantization) among them are not finite.
    ///
    /// # Errors
    /// A block size of 0; what another transform refuses.
    pub(crate) fn apply(&self, rows: usize, inputs: &[&[u8]], outputs: &mut [&mut [u8]]) -> Result<usize, String> {
        match (self, inputs, outputs) {
            (Transform::Quantize { from, round, to }, [values], [codes, scales]) => {
                quantize(rows, (values, *from, *round), to, codes, scales).map_err(|e| e.to_string())
            }
            (Transform::Dequantize { from, to }, [codes, scales], [values]) => {
                dequantize(rows, from, codes, scales, (values, *to)).map_err(|e| e.to_string())?;
                Ok(0)
            }
            (Transform::Rows(transform), inputs, outputs) => {
                transform.apply(rows, inputs, outputs)?;
                Ok(0)
            }
            (Transform::Round(from), [values], [rounded]) => Ok(round_values(values, *from, rounded)),
            (_, [from], [to]) => {
                to.copy_from_slice(from);
                Ok(0)
            }
            _ => unreachable!("jobs are made with the inputs and outputs of their transform"),
        }
    }
}

/// Packs rows and answers how many blocks are not finite.
fn quantize(
    rows: usize,
    (values, from, round): (&[u8], Dtype, bool),
    to: &PackedTensor,
    codes: &mut [u8],
    scales: &mut [u8],
) -> Result<usize, microscale_tensor::Error> {
    let (columns, packed) = (to.shape[1], PackedTensor { unpacked: false, ..to.clone() });
    let mut quantizer = RowQuantizer::new(columns, to.format, to.ties)?;
    let mut row_codes = vec![0; packed.code_bytes()];
    let scale_rows = scales.chunks_exact_mut(to.blocks());
    let code_rows = codes.chunks_exact_mut(to.code_bytes());
    for ((values, codes), scales) in values.chunks_exact(values.len() / rows).zip(code_rows).zip(scale_rows) {
        widen(values, from, quantizer.values());
        if round && from != Dtype::BF16 {
            quantizer.values().iter_mut().for_each(|x| *x = round_to_bf16(*x));
        }
        if to.unpacked {
            quantizer.encode(&mut row_codes, scales);
            unpack(&row_codes, to.format.element.bits(), codes);
        } else {
            quantizer.encode(codes, scales);
        }
    }
    Ok(scales.iter().filter(|&&scale| E8M0(scale) == E8M0::NAN).count())
}

/// Values rounded to bf16; answers how many of those are not finite.
pub(super) fn round_values(bytes: &[u8], from: Dtype, to: &mut [u8]) -> usize {
    const EXPONENT: u16 = 0x7F80; // all bits of it set: infinity or NaN
    if from == Dtype::BF16 {
        to.copy_from_slice(bytes);
    } else {
        let width = from.bitsize() / 8;
        let mut values = [0f32; 64];
        for (bytes, to) in bytes.chunks(64 * width).zip(to.chunks_mut(64 * 2)) {
            let values = &mut values[..bytes.len() / width];
            widen(bytes, from, values);
            for (to, x) in to.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                *to = ((round_to_bf16(*x).to_bits() >> 16) as u16).to_le_bytes();
            }
        }
    }
    let not_finite = |x: &[u8; 2]| u16::from_le_bytes(*x) & EXPONENT == EXPONENT;
    let (values, _) = to.as_chunks::<2>();
    // Whether there are any is quickly said; they are counted where there are.
    if !values.iter().fold(false, |any, x| any | not_finite(x)) {
        return 0;
    }
    values.iter().filter(|x| not_finite(x)).count()
}

/// Unpacks rows into bf16 or f32.
fn dequantize(
    rows: usize,
    from: &PackedTensor,
    codes: &[u8],
    scales: &[u8],
    (values, to): (&mut [u8], Dtype),
) -> Result<(), microscale_tensor::Error> {
    let mut dequantizer = RowDequantizer::new(from.shape[1], from.format)?;
    let width = values.len() / rows;
    let rows = codes.chunks_exact(from.code_bytes()).zip(scales.chunks_exact(from.blocks()));
    for ((codes, scales), bytes) in rows.zip(values.chunks_exact_mut(width)) {
        let row = match from.unpacked {
            true => dequantizer.decode_bytes(codes, scales),
            false => dequantizer.decode(codes, scales),
        };
        if to == Dtype::F32 {
            bytes.as_chunks_mut::<4>().0.iter_mut().zip(row).for_each(|(to, x)| *to = x.to_le_bytes());
        } else {
            let halves = row.iter().map(|x| (x.to_bits() >> 16) as u16); // bf16 values already
            bytes.as_chunks_mut::<2>().0.iter_mut().zip(halves).for_each(|(to, x)| *to = x.to_le_bytes());
        }
    }
    Ok(())
}
