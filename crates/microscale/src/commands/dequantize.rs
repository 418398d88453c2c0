//! `microscale dequantize`: what `quantize` made, as plain floats.

use std::process::ExitCode;

use anyhow::Result;
use microscale_model::{Checkpoint, Float, ModelOutput, dequantize_file, dequantize_model};

use crate::arguments::{Dequantize, FloatArgument};
use crate::engine::Engine;
use crate::transfer;

pub(crate) fn run(arguments: &Dequantize) -> Result<ExitCode> {
    Engine::new(arguments.writing.threads)?;
    let (source, output) = (&arguments.source, &arguments.output);
    let to = match arguments.dtype {
        FloatArgument::Bf16 => Float::Bf16,
        FloatArgument::F32 => Float::F32,
    };
    if source.is_file() {
        return transfer::run("dequantizing", output, |progress| dequantize_file(source, output, to, progress));
    }
    let checkpoint = Checkpoint::open(source)?;
    let options = ModelOutput { shard_size: arguments.writing.shard_size, ..ModelOutput::default() };
    transfer::run("dequantizing", output, |progress| dequantize_model(&checkpoint, output, to, &options, progress))
}
