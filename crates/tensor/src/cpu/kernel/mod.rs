//! The kernels: each algorithm once, over [`Simd`](super::simd::Simd).

mod bf16;
pub(super) mod linear;
pub(super) mod operand;
pub(super) mod panels;
pub(super) mod product;
pub(super) mod quantize;
pub(super) mod rows;
