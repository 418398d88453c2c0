//! The kernels: each algorithm once, over [`Simd`](super::simd::Simd).

pub(super) mod attention;
pub(super) mod bf16;
mod bytes;
pub(super) mod cache;
mod extent;
mod floats;
mod integers;
pub(super) mod linear;
pub(super) mod operand;
pub(super) mod panels;
pub(super) mod product;
pub(super) mod quantize;
pub(super) mod rows;
mod scores;
mod sides;
mod softmax;
mod stream;
mod words;
