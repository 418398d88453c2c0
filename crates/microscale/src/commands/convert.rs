//! `microscale convert`: quantized models as other programs store them, and back.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow, bail};
use microscale_exchange::{Kind, Options, Source, convert};

use crate::arguments::Convert;
use crate::engine::Engine;
use crate::{sources, transfer, usage};

pub(crate) fn run(arguments: &Convert) -> Result<ExitCode> {
    let outtype = arguments.outtype.unwrap_or_default();
    if arguments.outtype.is_some() && arguments.to != Kind::Gguf {
        bail!(usage(anyhow!("--outtype is for --to gguf; {} has no such choice", arguments.to.name())));
    }
    Engine::new(arguments.writing.threads)?;
    let path = Path::new(&arguments.source);
    let source = match path.exists() && !sources::is_demo(Some(&arguments.source)) {
        true => Source::open(path)?,
        false => Source::of_checkpoint(sources::model(Some(&arguments.source))?)?,
    };
    let options = Options { shard_size: arguments.writing.shard_size, outtype };
    transfer::run("converting", &arguments.output, |progress| {
        convert(&source, arguments.to, &arguments.output, &options, progress)
    })
}
