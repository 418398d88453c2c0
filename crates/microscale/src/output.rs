//! Standard output, or a file that is whole or not there.

use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use microscale_eval::write_atomically;

/// Prints a result, or writes it where `--output` says. A closed pipe (`| head`) is no failure.
pub(crate) fn emit(text: &str, output: Option<&Path>) -> Result<()> {
    if let Some(path) = output {
        return Ok(write_atomically(path, text.as_bytes())?);
    }
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
