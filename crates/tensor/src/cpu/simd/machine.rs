//! What is known of machines beside their instructions: no result depends on it, only how fast it comes.

use std::sync::LazyLock;

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

/// Whether the CPU's own prefetchers are best left alone with memory that is read line after line. On AMD's Zen 4 they took codes
/// to products up to a fifth faster than where these asked for lines as well. Others have not been measured.
pub(crate) fn prefetchers_keep_up() -> bool {
    *IS_AMD
}
