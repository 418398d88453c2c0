//! [`MxTensor`]: packed codes and shared scales, checked once, in the constructor.

use half::{bf16, f16};
use microscale_formats::{BLOCK, E8M0, dequantize_block, packed_len, unpack};
use rayon::prelude::*;

use crate::buffer::Buffer;
use crate::cpu::{Isa, Quantizer};
use crate::{BlockFormat, Error, Matrix};

/// A tensor in an MX format.
///
/// Blocks run along one axis. Seen with that axis last, the tensor is a list of rows: each row's codes are packed at
/// their true width from a byte boundary on, each row's scales follow one another, and a short last block stays
/// short.
#[derive(Clone, Debug, PartialEq)]
pub struct MxTensor {
    format: BlockFormat,
    shape: Vec<usize>,
    axis: usize,
    codes: Buffer,
    scales: Vec<E8M0>,
}

/// A number that can be quantized: `f32`, `f16` or `bf16`.
pub trait Real: Copy + Send + Sync {
    /// Its value, exactly.
    fn to_f32(self) -> f32;

    /// The values of the even and of the odd elements of a block.
    #[inline(always)]
    fn halves(block: &[Self; BLOCK]) -> [[f32; BLOCK / 2]; 2] {
        let mut halves = [[0.0; BLOCK / 2]; 2];
        for i in 0..BLOCK / 2 {
            (halves[0][i], halves[1][i]) = (block[2 * i].to_f32(), block[2 * i + 1].to_f32());
        }
        halves
    }

    /// The block as pairs of bf16, if that is what it is.
    #[inline(always)]
    fn pairs(_block: &[Self; BLOCK]) -> Option<[u32; BLOCK / 2]> {
        None
    }
}

impl Real for f32 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
}
impl Real for f16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
}
impl Real for bf16 {
    #[inline(always)]
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }

    #[inline(always)]
    fn halves(block: &[bf16; BLOCK]) -> [[f32; BLOCK / 2]; 2] {
        let pairs = block_pairs(block);
        [pairs.map(|pair| f32::from_bits(pair << 16)), pairs.map(|pair| f32::from_bits(pair & 0xFFFF_0000))]
    }

    #[inline(always)]
    fn pairs(block: &[bf16; BLOCK]) -> Option<[u32; BLOCK / 2]> {
        Some(block_pairs(block))
    }
}

/// Two elements at a time, the even one in the low half, which is how the machine loads them.
#[inline(always)]
pub(crate) fn block_pairs(block: &[bf16; BLOCK]) -> [u32; BLOCK / 2] {
    let mut pairs = [0; BLOCK / 2];
    for (pair, [even, odd]) in pairs.iter_mut().zip(block.as_chunks::<2>().0) {
        *pair = u32::from(even.to_bits()) | u32::from(odd.to_bits()) << 16;
    }
    pairs
}

impl MxTensor {
    /// Quantizes `values` (row-major, of `shape`) in blocks along `axis`.
    ///
    /// Values are taken as they are: an `f32` is not rounded to bf16 first.
    ///
    /// # Errors
    /// A shape that does not fit the values, an axis it does not have, a block size of 0.
    pub fn quantize<T: Real>(values: &[T], shape: &[usize], axis: usize, format: BlockFormat) -> Result<Self, Error> {
        let rows = Rows::new(shape, axis, format)?;
        check("values", shape, rows.count * rows.length, values.len())?;
        let codes = Buffer::zeroed(rows.count * rows.code_bytes);
        let scales = vec![E8M0(0); rows.count * rows.blocks];
        let mut tensor = MxTensor { format, shape: shape.to_vec(), axis, codes, scales };
        tensor.refill(values)?;
        Ok(tensor)
    }

    /// Quantizes other values of the same shape, in place of what was there: without the time that new memory takes.
    ///
    /// # Errors
    /// Not as many values as the shape calls for.
    pub fn refill<T: Real>(&mut self, values: &[T]) -> Result<(), Error> {
        let rows = self.rows();
        check("values", &self.shape, rows.count * rows.length, values.len())?;
        let (isa, quantizer) = (Isa::best(), Quantizer::new(self.format));
        let least = (8192 / rows.length).max(1);
        let (codes, scales) = (self.codes.bytes_mut(), &mut self.scales);
        let each = codes.par_chunks_mut(rows.code_bytes).zip(scales.par_chunks_mut(rows.blocks)).with_min_len(least);
        each.enumerate().for_each_init(Vec::new, |gathered, (i, (codes, scales))| {
            let row = if rows.stride == 1 {
                &values[i * rows.length..][..rows.length]
            } else {
                gathered.clear();
                gathered.extend((0..rows.length).map(|j| values[rows.index(i, j)]));
                gathered
            };
            quantizer.encode_row(isa, row, codes, scales);
        });
        Ok(())
    }

    /// Quantizes a matrix along its columns.
    pub fn from_matrix(matrix: &Matrix, format: BlockFormat) -> MxTensor {
        Self::quantize(matrix.values(), &[matrix.rows(), matrix.columns()], 1, format)
            .expect("a matrix has two axes and as many values as its shape says, and BlockFormat a block size")
    }

    /// Takes codes and scales that were made elsewhere, in the layout of this type.
    ///
    /// # Errors
    /// As [`quantize`](Self::quantize), and where the bytes are not as many as the shape calls for.
    pub fn from_parts(
        format: BlockFormat,
        shape: &[usize],
        axis: usize,
        codes: Vec<u8>,
        scales: Vec<E8M0>,
    ) -> Result<Self, Error> {
        let rows = Rows::new(shape, axis, format)?;
        check("code bytes", shape, rows.count * rows.code_bytes, codes.len())?;
        check("scales", shape, rows.count * rows.blocks, scales.len())?;
        Ok(MxTensor { format, shape: shape.to_vec(), axis, codes: Buffer::Heap(codes), scales })
    }

    /// The values, row-major in the tensor's shape: element · scale, rounded to bf16.
    pub fn dequantize(&self) -> Vec<f32> {
        let rows = self.rows();
        let mut values = vec![0f32; rows.count * rows.length];
        let mut row = vec![0f32; rows.length];
        for i in 0..rows.count {
            let codes = self.row_codes(i);
            let blocks = row.chunks_mut(self.format.block_size).zip(codes.chunks(self.format.block_size));
            for ((values, codes), &scale) in blocks.zip(self.row_scales(i)) {
                dequantize_block(codes, scale, self.format.element, values);
            }
            for (j, &x) in row.iter().enumerate() {
                values[rows.index(i, j)] = x;
            }
        }
        values
    }

    /// The product of `self` `[m, k]` and `weight` `[n, k]`, both blocked along k: `[m, n]` in f32, row-major, summed in
    /// the canonical order (docs/numerics.md). Formats may differ; of two block sizes the smaller divides the larger.
    ///
    /// # Errors
    /// Operands that are not two such matrices.
    pub fn matmul(&self, weight: &MxTensor) -> Result<Vec<f32>, Error> {
        let fail = |reason| Error::Product { left: self.shape.clone(), right: weight.shape.clone(), reason };
        if self.shape.len() != 2 || weight.shape.len() != 2 || self.axis != 1 || weight.axis != 1 {
            return Err(fail("both must be matrices blocked along axis 1"));
        }
        if self.shape[1] != weight.shape[1] {
            return Err(fail("the inner lengths differ"));
        }
        let (a, b) = (self.format.block_size, weight.format.block_size);
        if !a.max(b).is_multiple_of(a.min(b)) {
            return Err(fail("the smaller block size must divide the larger"));
        }
        Ok(crate::reference::product(self, weight))
    }

    /// Element format, block size and scale rule.
    pub fn format(&self) -> BlockFormat {
        self.format
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The axis along which blocks run.
    pub fn axis(&self) -> usize {
        self.axis
    }

    /// Packed codes, row after row.
    pub fn packed_codes(&self) -> &[u8] {
        self.codes.bytes()
    }

    /// Shared scales, row after row.
    pub fn scales(&self) -> &[E8M0] {
        &self.scales
    }

    /// Bytes of codes and scales.
    pub fn bytes(&self) -> usize {
        self.codes.bytes().len() + self.scales.len()
    }

    /// One code per value of row `i`.
    pub(crate) fn row_codes(&self, i: usize) -> Vec<u8> {
        let mut codes = vec![0; self.rows().length];
        self.unpack_row(i, &mut codes);
        codes
    }

    /// Writes one code per value of row `i`, as many as there are.
    pub(crate) fn unpack_row(&self, i: usize, codes: &mut [u8]) {
        let bytes = self.rows().code_bytes;
        unpack(&self.codes.bytes()[i * bytes..][..bytes], self.format.element.bits(), codes);
    }

    /// The scales of row `i`.
    pub(crate) fn row_scales(&self, i: usize) -> &[E8M0] {
        let blocks = self.rows().blocks;
        &self.scales[i * blocks..][..blocks]
    }

    fn rows(&self) -> Rows {
        Rows::new(&self.shape, self.axis, self.format).expect("checked when the tensor was made")
    }
}

/// The tensor seen as rows along the blocked axis.
struct Rows {
    count: usize,
    length: usize,
    /// Distance in the values between neighbours in a row.
    stride: usize,
    blocks: usize,
    code_bytes: usize,
}

impl Rows {
    fn new(shape: &[usize], axis: usize, format: BlockFormat) -> Result<Rows, Error> {
        let length = *shape.get(axis).ok_or_else(|| Error::Axis { axis, shape: shape.to_vec() })?;
        if format.block_size == 0 {
            return Err(Error::BlockSize);
        }
        let total = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        let total = total.filter(|&n| n > 0 && n <= isize::MAX as usize / 8).ok_or(Error::Shape(shape.to_vec()))?;
        Ok(Rows {
            count: total / length,
            length,
            stride: shape[axis + 1..].iter().product(),
            blocks: length.div_ceil(format.block_size),
            code_bytes: packed_len(length, format.element.bits()),
        })
    }

    /// Position in the row-major values of element `j` of row `i`.
    fn index(&self, i: usize, j: usize) -> usize {
        i / self.stride * self.stride * self.length + i % self.stride + j * self.stride
    }
}

fn check(what: &'static str, shape: &[usize], expected: usize, found: usize) -> Result<(), Error> {
    if expected == found { Ok(()) } else { Err(Error::Length { what, shape: shape.to_vec(), expected, found }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_formats::{E2M1, E3M2, E4M3, ElementFormat, INT8};

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((i * 7919 + 13) % 997) as f32 / 100.0 - 4.5).collect()
    }

    #[test]
    fn any_axis_is_the_transpose_of_the_last() {
        let (shape, n) = ([3, 5, 4], 60);
        let values = ramp(n);
        for axis in 0..3 {
            let format = BlockFormat { block_size: 2, ..E3M2.into() };
            let tensor = MxTensor::quantize(&values, &shape, axis, format).unwrap();
            let got = tensor.dequantize();
            // By hand: take each line along the axis, block by block.
            let stride: usize = shape[axis + 1..].iter().product();
            for start in 0..n {
                let along = start / stride % shape[axis];
                let partner = if along % 2 == 1 { start - stride } else { start + stride };
                let single = along.is_multiple_of(2) && along + 1 == shape[axis];
                let block = if single { vec![values[start]] } else { vec![values[start], values[partner]] };
                let line = MxTensor::quantize(&block, &[block.len()], 0, format).unwrap();
                assert_eq!(got[start], line.dequantize()[0], "axis {axis}, value {start}");
            }
        }
    }

    #[test]
    fn sizes_are_the_packed_ones() {
        for (element, bytes) in [(E2M1, 2 * (20 + 2)), (E3M2, 2 * (30 + 2)), (INT8, 2 * (40 + 2))] {
            let tensor = MxTensor::quantize(&ramp(80), &[2, 40], 1, element.into()).unwrap();
            assert_eq!(tensor.bytes(), bytes, "{element}");
        }
    }

    #[test]
    fn products_of_every_pair_are_near_the_exact_one() {
        let (a, b) = (ramp(4 * 70), ramp(3 * 70));
        for left in ElementFormat::ALL {
            for right in ElementFormat::ALL {
                let x = MxTensor::quantize(&a, &[4, 70], 1, left.into()).unwrap();
                let w = MxTensor::quantize(&b, &[3, 70], 1, BlockFormat { block_size: 16, ..right.into() }).unwrap();
                let (dx, dw, y) = (x.dequantize(), w.dequantize(), x.matmul(&w).unwrap());
                for (i, &y) in y.iter().enumerate() {
                    let exact: f64 =
                        (0..70).map(|k| f64::from(dx[i / 3 * 70 + k]) * f64::from(dw[i % 3 * 70 + k])).sum();
                    assert!((f64::from(y) - exact).abs() <= 1e-4 * exact.abs().max(1.0), "{left} {right}: {y} {exact}");
                }
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let f = BlockFormat::from(E4M3);
        assert!(matches!(
            MxTensor::quantize(&[1f32; 5], &[2, 3], 1, f),
            Err(Error::Length { expected: 6, found: 5, .. })
        ));
        assert!(matches!(MxTensor::quantize(&[1f32; 6], &[2, 3], 2, f), Err(Error::Axis { .. })));
        assert!(matches!(MxTensor::quantize::<f32>(&[], &[0, 3], 1, f), Err(Error::Shape(_))));
        assert!(matches!(MxTensor::quantize::<f32>(&[], &[usize::MAX, 3], 1, f), Err(Error::Shape(_))));
        let none = BlockFormat { block_size: 0, ..f };
        assert_eq!(MxTensor::quantize(&[1f32; 6], &[2, 3], 1, none), Err(Error::BlockSize));
        let (x, y) = (
            MxTensor::quantize(&[1f32; 6], &[2, 3], 1, f).unwrap(),
            MxTensor::quantize(&[1f32; 4], &[2, 2], 1, f).unwrap(),
        );
        assert!(x.matmul(&y).unwrap_err().to_string().contains("inner lengths"));
        let f3 = BlockFormat { block_size: 3, ..f };
        let z = MxTensor::quantize(&[1f32; 6], &[2, 3], 1, f3).unwrap();
        assert!(x.matmul(&z).unwrap_err().to_string().contains("divide"));
    }

    #[test]
    fn half_precision_input_is_taken_at_its_value() {
        let halves: Vec<f16> = ramp(32).into_iter().map(f16::from_f32).collect();
        let floats: Vec<f32> = halves.iter().map(|h| h.to_f32()).collect();
        let f = BlockFormat::from(E4M3);
        assert_eq!(MxTensor::quantize(&halves, &[32], 0, f), MxTensor::quantize(&floats, &[32], 0, f));
    }
}
