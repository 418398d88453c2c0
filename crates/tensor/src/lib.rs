//! MX tensors in bulk, and the arithmetic a LLaMA needs on them.
//!
//! [`MxTensor`] is the data type: packed codes and shared scales along one axis. [`Backend`] is the seam to the
//! hardware: a dozen operations, implemented slowly and obviously by [`Reference`] and fast by [`Cpu`], equal bit for
//! bit; [`conformance`] is the suite that says so. What every operation computes, and in which order it adds, is
//! fixed in `docs/numerics.md`.

mod backend;
mod buffer;
pub mod conformance;
mod cpu;
mod error;
pub mod math;
mod matrix;
mod reference;
mod row;
mod spare;
mod tensor;

pub use backend::{Attention, Backend, BlockFormat, KeyValueLayout, Linear, Rotation, TokenScore, WeightMatrix};
pub use cpu::{Cpu, Isa, UnsupportedIsa, peaks};
pub use error::Error;
pub use matrix::Matrix;
pub use reference::Reference;
pub use row::{RowDequantizer, RowQuantizer};
pub use tensor::{MxTensor, Real};

/// Version of the arithmetic: raised whenever a bit of any result changes, so that kept results are not taken for new ones.
pub const NUMERICS: u32 = 1;
