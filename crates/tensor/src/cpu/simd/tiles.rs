#![allow(unsafe_code, reason = "tile instructions")]
//! Matrix tiles (AMX): 16 × 16 sums of 16 pairs each in one instruction.
//!
//! Their order of additions is not the canonical one, so they serve only where every partial sum is exact.

use super::LANES;

/// Sixteen pairs: of one row, one after another along k, or one of each of sixteen outputs.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(crate) struct Lanes(pub(crate) [u32; LANES]);

impl Lanes {
    pub(crate) const ZERO: Lanes = Lanes([0; LANES]);
}

/// One operand of a tile product: sixteen pairs of each of sixteen rows, or of sixteen outputs.
pub(crate) type Step = [Lanes; LANES];

/// The sums of a tile: sixteen rows of sixteen outputs.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums(pub(crate) [[f32; LANES]; LANES]);

cfg_select! {
    all(target_arch = "x86_64", target_os = "linux") => {
        mod amx;
        pub(crate) use amx::{Configured, Tiles};
    }
    _ => {
        mod none;
        pub(crate) use none::{Configured, Tiles};
    }
}
