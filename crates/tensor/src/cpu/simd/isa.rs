//! The instruction sets by name, and what of them is chosen by.

use std::fmt;

use super::codes::BYTE_BIAS;
use super::machine::pairs_are_slow;
use super::{IntegerProducts, dispatch_integers, tiles};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, avx512bf16, avx512vnni};

/// An instruction set the kernels exist for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, for every machine.
    Scalar,
    /// x86-64 AVX2 with FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// x86-64 AVX-512 (F, BW, DQ, VL).
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// AVX-512 with VNNI.
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    /// AVX-512 with VNNI, VBMI and BF16, whose dot product of pairs was found to add as the canonical order asks.
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
    /// The same with AMX tiles, for products whose sums are exact in any order.
    #[cfg(target_arch = "x86_64")]
    Amx,
    /// Arm NEON.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Isa {
    /// Whether it has [`IntegerProducts`].
    pub(crate) fn has_integer_products(self) -> bool {
        dispatch_integers!(self, simd => { let _ = simd; true }, false)
    }

    /// Whether products of bytes are worth more than those of wider integers.
    pub(crate) fn dots_bytes(self) -> bool {
        dispatch_integers!(self, simd => dots_bytes(simd), false)
    }

    /// What bytes of codes of so many bits are more than the integers they stand for.
    pub(crate) fn byte_bias(self, bits: u32) -> i32 {
        dispatch_integers!(self, simd => simd.byte_bias(bits as usize), BYTE_BIAS)
    }

    /// The largest sum of products of bytes that it can take for one.
    pub(crate) fn largest_short(self) -> i32 {
        dispatch_integers!(self, simd => largest_short(simd), 0)
    }

    /// Whether one instruction multiplies pairs of bf16.
    pub(crate) fn dots_pairs(self) -> bool {
        match self {
            // Without vectors nothing is gained by it.
            Isa::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Vnni => false,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => true,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => false,
        }
    }

    /// Whether the elements of pairs are better taken apart once for many products: without that instruction, or where it is slow.
    pub(crate) fn takes_pairs_apart(self) -> bool {
        !self.dots_pairs() || self != Isa::Scalar && pairs_are_slow()
    }

    /// [`Simd::READS_TOGETHER`](super::Simd::READS_TOGETHER).
    pub(crate) fn reads_together(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 | Isa::Amx => true,
            _ => false,
        }
    }

    /// Whether one instruction multiplies integers of 16 bits, but none pairs of bf16.
    pub(crate) fn dots_words_only(self) -> bool {
        self.dots_bytes() && !self.dots_pairs()
    }

    /// Those the running CPU has, slowest first; never empty.
    pub fn available() -> Vec<Isa> {
        let mut isas = vec![Isa::Scalar];
        #[cfg(target_arch = "x86_64")]
        isas.extend([Isa::Avx2, Isa::Avx512, Isa::Avx512Vnni, Isa::Avx512Bf16, Isa::Amx].into_iter().filter(|isa| {
            match isa {
                Isa::Avx2 => avx2::Avx2::detect().is_some(),
                Isa::Avx512 => avx512::Avx512::detect().is_some(),
                Isa::Avx512Vnni => avx512vnni::Avx512Vnni::detect().is_some(),
                Isa::Avx512Bf16 => avx512bf16::Avx512Bf16::detect().is_some(),
                _ => avx512bf16::Avx512Bf16::detect().is_some() && tiles::Tiles::detect().is_some(),
            }
        }));
        #[cfg(target_arch = "aarch64")]
        isas.push(Isa::Neon);
        isas
    }

    /// The fastest the running CPU has.
    pub fn best() -> Isa {
        *Self::available().last().unwrap_or(&Isa::Scalar)
    }

    /// The name, as `MICROSCALE_ISA` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Scalar => "scalar",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => "avx512vnni",
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => "avx512bf16",
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => "amx",
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => "neon",
        }
    }

    /// Matrix tiles, where this instruction set has them.
    pub(crate) fn tiles(self) -> Option<tiles::Tiles> {
        tiles::Tiles::detect().filter(|_| match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => true,
            _ => false,
        })
    }

    /// The instruction set of this name, if the running CPU has it.
    ///
    /// # Errors
    /// [`UnsupportedIsa`] for a name that is unknown or not available here.
    pub fn from_name(name: &str) -> Result<Isa, UnsupportedIsa> {
        Self::available()
            .into_iter()
            .find(|isa| isa.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnsupportedIsa { name: name.to_owned() })
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// An instruction set that was asked for and is not to be had.
#[derive(Clone, Debug, thiserror::Error)]
#[error("instruction set {name:?} is unknown or not supported by this CPU; available: {}",
    Isa::available().iter().map(|i| i.name()).collect::<Vec<_>>().join(", "))]
pub struct UnsupportedIsa {
    name: String,
}

fn dots_bytes<S: IntegerProducts>(_: S) -> bool {
    S::DOTS_BYTES
}

fn largest_short<S: IntegerProducts>(_: S) -> i32 {
    S::SHORT
}
