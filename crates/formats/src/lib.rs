//! What the bits of the OCP Microscaling (MX) formats mean.
//!
//! An MX block is up to k values (32 by default) that share one power-of-two scale in [`E8M0`]; each value is an
//! element of a small [`ElementFormat`]. This crate is the one definition of both: slow, obvious, without
//! dependencies and without `unsafe`. Everything faster elsewhere must equal it bit for bit.
//!
//! Source: OCP Microscaling Formats (MX) Specification v1.0.
//!
//! ```
//! use microscale_formats::{E2M1, ScaleRule, dequantize_block, quantize_block};
//!
//! let mut codes = [0; 4];
//! let scale = quantize_block(&[0.1, -3.0, 0.75, 5.0], E2M1, ScaleRule::Floor, &mut codes);
//! let mut values = [0.0; 4];
//! dequantize_block(&codes, scale, E2M1, &mut values);
//! assert_eq!((scale.0, values), (127, [0.0, -3.0, 1.0, 4.0])); // ties go to the even code: 0.75 to 1, 5 to 4
//! ```

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod bf16;
mod block;
mod convention;
mod element;
mod pack;
mod scale;

pub use bf16::round_to_bf16;
pub use block::{dequantize_block, quantize_block, quantize_block_with};
pub use convention::Convention;
pub use element::{E2M1, E2M3, E3M2, E4M3, E5M2, ElementFormat, INT8, Rounding, Ties};
pub use pack::{pack, packed_len, unpack, unpack_one};
pub use scale::{E8M0, ScaleRule};

/// The block size of the OCP specification, and everyone's default.
pub const BLOCK: usize = 32;
