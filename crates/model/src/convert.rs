//! Stored values to bf16, or at their own value.

use half::{bf16, f16};
use microscale_formats::round_to_bf16;
use rayon::prelude::*;
use safetensors::Dtype;

/// The types that [`to_bf16`] takes.
pub(crate) const READABLE: [Dtype; 3] = [Dtype::BF16, Dtype::F16, Dtype::F32];

/// Values converted by one task; a tensor of fewer is not worth a second thread.
const CHUNK: usize = 1 << 18;

/// Little-endian values of a [`READABLE`] type as bf16, and how many of those are not finite.
pub(crate) fn to_bf16(bytes: &[u8], dtype: Dtype) -> (Vec<bf16>, usize) {
    match dtype {
        Dtype::BF16 => convert(bytes, bf16::from_le_bytes),
        Dtype::F16 => convert(bytes, |b| round(f16::from_le_bytes(b).to_f32())),
        _ => convert(bytes, |b| round(f32::from_le_bytes(b))),
    }
}

/// Rounds as the format library does.
fn round(x: f32) -> bf16 {
    bf16::from_bits((round_to_bf16(x).to_bits() >> 16) as u16)
}

/// Converts values of `N` bytes each, in parallel.
fn convert<const N: usize>(bytes: &[u8], one: impl Fn([u8; N]) -> bf16 + Sync) -> (Vec<bf16>, usize) {
    let (values, _) = bytes.as_chunks::<N>();
    let mut out = vec![bf16::ZERO; values.len()];
    let not_finite = out
        .par_chunks_mut(CHUNK)
        .zip(values.par_chunks(CHUNK))
        .map(|(out, values)| {
            let mut not_finite = 0;
            for (y, &x) in out.iter_mut().zip(values) {
                *y = one(x);
                not_finite += usize::from(!y.is_finite());
            }
            not_finite
        })
        .sum();
    (out, not_finite)
}

/// Little-endian values of a [`READABLE`] type at their own value.
pub(crate) fn widen(bytes: &[u8], from: Dtype, to: &mut [f32]) {
    match from {
        Dtype::BF16 => {
            for (to, x) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f32::from_bits(u32::from(u16::from_le_bytes(*x)) << 16);
            }
        }
        Dtype::F16 => {
            for (to, x) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *to = f16::from_le_bytes(*x).to_f32();
            }
        }
        _ => {
            for (to, x) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *to = f32::from_le_bytes(*x);
            }
        }
    }
}
