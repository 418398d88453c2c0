//! `microscale eval`: lm-eval's results and samples files.

use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::Eval;

pub(crate) fn run(_: &Eval) -> Result<ExitCode> {
    anyhow::bail!("pending")
}
