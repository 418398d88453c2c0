//! `microscale doctor`: what this machine offers.

use std::process::ExitCode;

use anyhow::Result;
use microscale::hub::Settings;
use microscale_tensor::Isa;

use super::inspect::size;
use crate::{engine, machine, output};

pub(crate) fn run() -> Result<ExitCode> {
    let isa = engine::isa()?;
    let available: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let text = format!(
        "microscale       {}\ninstruction set  {isa} (available: {})\nthreads          {threads}\nmemory           {}\ncache folder     {}\n",
        env!("CARGO_PKG_VERSION"),
        available.join(", "),
        memory(),
        cache_folder(),
    );
    output::emit(&text, None)?;
    Ok(ExitCode::SUCCESS)
}

/// Total and available memory, where the system says.
fn memory() -> String {
    machine::memory().map_or("unknown on this system".to_owned(), |memory| {
        format!("{} ({} available)", size(memory.total), size(memory.available))
    })
}

/// Where downloads go, by Hugging Face's rules.
fn cache_folder() -> String {
    Settings::from_env().map_or_else(|e| e.to_string(), |settings| settings.cache.display().to_string())
}
