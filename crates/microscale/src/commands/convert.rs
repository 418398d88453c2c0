//! `microscale convert`: quantized models as other programs store them, and back.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use microscale_exchange::{Source, convert};
use microscale_model::ModelOutput;

use crate::arguments::Convert;
use crate::engine::Engine;
use crate::{sources, transfer};

pub(crate) fn run(arguments: &Convert) -> Result<ExitCode> {
    Engine::new(arguments.writing.threads)?;
    let path = Path::new(&arguments.source);
    let source = match path.exists() && !sources::is_demo(Some(&arguments.source)) {
        true => Source::open(path)?,
        false => Source::of_checkpoint(sources::model(Some(&arguments.source))?)?,
    };
    let options = ModelOutput { shard_size: arguments.writing.shard_size, ..ModelOutput::default() };
    transfer::run("converting", &arguments.output, |progress| {
        convert(&source, arguments.to, &arguments.output, &options, progress)
    })
}
