//! What the system says of processor and memory. Linux answers; elsewhere little is known.

use std::fs;

/// The processor's name, or its architecture.
pub(crate) fn cpu() -> String {
    let name = fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    name.unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// Bytes of memory.
pub(crate) struct Memory {
    pub(crate) total: usize,
    /// What can be had without swapping.
    pub(crate) available: usize,
}

/// The machine's memory, where the system says.
pub(crate) fn memory() -> Option<Memory> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    Some(Memory { total: kibibytes(&text, "MemTotal:")?, available: kibibytes(&text, "MemAvailable:")? })
}

/// Begins a new measurement of [`peak_memory`]; false where the system has none.
pub(crate) fn reset_peak_memory() -> bool {
    fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// The most bytes this process has had in memory since [`reset_peak_memory`].
pub(crate) fn peak_memory() -> Option<u64> {
    kibibytes(&fs::read_to_string("/proc/self/status").ok()?, "VmHWM:").map(|bytes| bytes as u64)
}

/// Bytes in the line of this name, which holds them as kB.
fn kibibytes(text: &str, name: &str) -> Option<usize> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    let number: usize = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(number * 1024)
}
