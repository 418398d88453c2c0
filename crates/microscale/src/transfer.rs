//! Writing files of tensors: progress, Ctrl-C, and what to say at the end.

use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use microscale_model::{Ending, Error, OnProgress, Transferred, partial_path};

use crate::commands::inspect::size;
use crate::interrupt;

/// Does the work with a progress bar and reports it; `verb` is what it does: "quantizing".
pub(crate) fn run(
    verb: &'static str,
    output: &Path,
    work: impl FnOnce(OnProgress<'_>) -> Result<Transferred, Error>,
) -> Result<ExitCode> {
    interrupt::listen("these slices")?;
    let bar = ProgressBar::no_length();
    let style = "{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    bar.set_style(ProgressStyle::with_template(style).context("progress bar")?.progress_chars("=> "));
    bar.set_message(verb);
    let start = Instant::now();
    let done = work(&|progress| {
        bar.set_length(progress.total as u64);
        bar.set_position(progress.done as u64);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    let partial = partial_path(output);
    let kept = || format!("what is done is kept in {}, and the same command goes on from there", partial.display());
    let done = match done {
        Err(error @ Error::Write { .. }) if partial.exists() => return Err(anyhow!("{error}; {}", kept())),
        other => other?,
    };
    match done.ending {
        Ending::Interrupted => eprintln!("interrupted: {}", kept()),
        Ending::AlreadyThere => eprintln!("{}: complete already; nothing was written", output.display()),
        Ending::Complete => report(&done, output, start.elapsed().as_secs_f64()),
    }
    Ok(if done.ending == Ending::Interrupted { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Says on standard error what was written and how fast.
fn report(done: &Transferred, output: &Path, seconds: f64) {
    if let [(name, _), ..] = done.not_finite.as_slice() {
        let count: usize = done.not_finite.iter().map(|(_, count)| count).sum();
        let others = match done.not_finite.len() - 1 {
            0 => String::new(),
            others => format!(" and {others} other tensors"),
        };
        eprintln!("warning: {count} blocks or values of {name}{others} hold infinities or NaN");
    }
    let bits = match done.quantized_values {
        0 => String::new(),
        values => format!(", {:.2} bits per quantized value", done.quantized_bytes as f64 * 8.0 / values as f64),
    };
    let resumed = match done.bytes_resumed {
        0 => String::new(),
        bytes => format!(", {} of it by an earlier run", size(bytes)),
    };
    eprintln!(
        "{}: {} from {}{resumed}{bits}, {seconds:.1} s",
        output.display(),
        size(done.bytes_written),
        size(done.bytes_read)
    );
}
