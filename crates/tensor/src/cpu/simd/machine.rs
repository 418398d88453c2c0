//! What is known of machines beside their instructions: no result depends on it, only how fast it comes.

use std::sync::LazyLock;

use super::Isa;
use super::codes::GROUP;
use super::tiles::Tiles;

/// Whether AMD made the CPU.
static IS_AMD: LazyLock<bool> = LazyLock::new(|| {
    cfg_select! {
        target_arch = "x86_64" => {
            let maker = std::arch::x86_64::__cpuid(0);
            [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes).as_flattened() == b"AuthenticAMD"
        }
        _ => false,
    }
});

/// Whether subnormal numbers are multiplied as fast as others. Intel's machines take an assist of microcode for it; on AMD's Zen 3
/// formats with many of them were as fast as others.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "asked where codes are taken for f32"))]
pub(super) fn subnormals_are_fast() -> bool {
    *IS_AMD
}

/// From one line of a panel's codes to its next ([`StepCodes`](super::codes::StepCodes)), where the machine takes them to products
/// fastest. On AMD's Zen 4, one stream that is left to the CPU's own prefetchers was up to a quarter faster than four that are asked for
/// ahead; on an Intel Xeon with AMX four were up to a fifth faster than one, however that is asked for. With AVX2 only four have been
/// measured.
pub(crate) fn code_stride(isa: Isa) -> usize {
    if isa.reads_together() && *IS_AMD { GROUP } else { 1 }
}

/// Whether the instruction for pairs of bf16 is slower than two for the same numbers as `f32`. An Intel Xeon with AMX takes four times
/// as long for it as for one of those, AMD's Zen 4 as long.
pub(super) fn pairs_are_slow() -> bool {
    !*IS_AMD
}

/// [`Simd::gathers`](super::Simd::gathers). An Intel Xeon with AMX takes two thirds of the time for softmax's exponentials so. Others
/// have not been measured: older machines of Intel must wait at every gather for the sake of security, and AMD's take them apart.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "only AVX-512 gathers"))]
pub(super) fn gathers_are_fast() -> bool {
    !*IS_AMD && Tiles::detect().is_some()
}
