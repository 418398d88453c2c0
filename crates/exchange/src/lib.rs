//! MX checkpoints of other programs, read and written without losing a bit.
//!
//! A [`Source`] is a checkpoint of any [`Kind`], its tensors under their Hugging Face names. [`convert`] writes it as
//! another kind: codes and scales move as they are, rearranged where the target wants them otherwise, never
//! requantized; what the target cannot hold is refused. What it cannot say of a model (formats of activations and
//! attention, scale rule, origin) travels in this program's own metadata. docs/exchange.md has layouts and limits.

mod compressed_tensors;
mod dialect;
mod gguf;
mod gpt_oss;
mod mlx;
mod modelopt;
mod native;
mod notes;
mod open;
mod quark;
mod repack;
mod source;
mod torchao;
mod write;

use std::path::Path;

use microscale_model::transfer::{OnProgress, Transferred};
use microscale_model::{Error, ModelOutput};

pub use source::Source;

/// A way of storing quantized models.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// This program's own.
    Native,
    /// compressed-tensors, as vLLM and transformers read it.
    CompressedTensors,
    /// AMD Quark.
    Quark,
    /// NVIDIA ModelOpt.
    ModelOpt,
    /// Apple's MLX.
    Mlx,
    /// The names of gpt-oss: `_blocks` and `_scales`.
    GptOss,
    /// llama.cpp's file.
    Gguf,
    /// Codes a torchao `MXTensor` is made of.
    TorchAo,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 8] = [
        Self::Native,
        Self::CompressedTensors,
        Self::Quark,
        Self::ModelOpt,
        Self::Mlx,
        Self::GptOss,
        Self::Gguf,
        Self::TorchAo,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Native => "native",
            Kind::CompressedTensors => "compressed-tensors",
            Kind::Quark => "quark",
            Kind::ModelOpt => "modelopt",
            Kind::Mlx => "mlx",
            Kind::GptOss => "gpt-oss",
            Kind::Gguf => "gguf",
            Kind::TorchAo => "torchao",
        }
    }

    /// The kind of this name.
    pub fn from_name(name: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name)
    }
}

/// The type of a GGUF file's matrices that are not quantized.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Outtype {
    /// As they are in a model that runs here.
    #[default]
    Bf16,
    /// Blocks of 32 integers of 8 bits with a scale in f16, by ggml's rule. No MX: there is no way back from it.
    Q8_0,
}

impl Outtype {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Outtype::Bf16 => "bf16",
            Outtype::Q8_0 => "q8_0",
        }
    }

    /// The type of this name.
    pub fn from_name(name: &str) -> Option<Outtype> {
        [Outtype::Bf16, Outtype::Q8_0].into_iter().find(|outtype| outtype.name() == name)
    }
}

/// How to write.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The most that one file of a folder holds, in bytes.
    pub shard_size: usize,
    /// Of GGUF, the type of matrices that are not quantized.
    pub outtype: Outtype,
}

impl Default for Options {
    fn default() -> Self {
        Options { shard_size: ModelOutput::default().shard_size, outtype: Outtype::default() }
    }
}

/// Writes `source` as another kind: a file for GGUF, else a folder. Memory is bounded by a few slices per thread; what
/// is not complete lies beside under another name, and the same call goes on from there.
///
/// # Errors
/// A tensor that the kind cannot hold; a source without quantized tensors where the kind is no GGUF; what the system
/// says of a write.
pub fn convert(
    source: &Source,
    to: Kind,
    output: &Path,
    options: &Options,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    match to {
        Kind::Gguf => gguf::write(source, output, options.outtype, progress),
        kind if options.outtype != Outtype::default() => {
            let reason = format!("{} has no --outtype; only gguf files have", kind.name());
            Err(source::checkpoint(output, reason))
        }
        kind => write::folder(source, kind, output, options.shard_size, progress),
    }
}
