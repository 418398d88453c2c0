//! Ctrl-C: the first ends the work at the next good place, the second ends the process.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static STOP: AtomicBool = AtomicBool::new(false);

/// Listens from now on; `place` is where the work will end: "this batch". Called once.
pub(crate) fn listen(place: &'static str) -> Result<()> {
    ctrlc::set_handler(move || {
        if STOP.swap(true, Ordering::Relaxed) {
            std::process::exit(1);
        }
        eprintln!("\nstopping after {place}; once more to quit at once");
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether the work is to end.
pub(crate) fn requested() -> bool {
    STOP.load(Ordering::Relaxed)
}
