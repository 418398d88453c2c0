use std::arch::asm;
use std::arch::x86_64::{__cpuid_count, _xgetbv};
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::sync::LazyLock;

use super::{Step, Sums};

/// Proof of AMX with bf16, and of the kernel's leave to use it.
#[derive(Clone, Copy)]
pub(crate) struct Tiles(());

impl Tiles {
    pub(crate) fn detect() -> Option<Tiles> {
        static DETECTED: LazyLock<bool> = LazyLock::new(|| {
            if !is_x86_feature_detected!("xsave") || !is_x86_feature_detected!("avx512f") {
                return false;
            }
            const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
            const TILE_STATE: u64 = 0b11 << 17;
            #[target_feature(enable = "xsave")]
            fn enabled_state() -> u64 {
                // SAFETY: the feature is enabled here, and register 0 exists wherever it is.
                unsafe { _xgetbv(0) }
            }
            // SAFETY: XSAVE was detected above.
            let state = unsafe { enabled_state() };
            __cpuid_count(7, 0).edx & BF16_AND_TILES == BF16_AND_TILES
                && state & TILE_STATE == TILE_STATE
                && permitted()
        });
        DETECTED.then_some(Tiles(()))
    }

    /// Sets up this thread's tiles until the result is dropped.
    pub(crate) fn configure(self) -> Configured {
        /// Palette 1, eight tiles of sixteen rows of 64 bytes.
        #[repr(C, align(64))]
        struct Configuration {
            palette: u8,
            start_row: u8,
            reserved: [u8; 14],
            row_bytes: [u16; 16],
            rows: [u8; 16],
        }
        let eight = |x: u8| std::array::from_fn(|i| if i < 8 { x } else { 0 });
        let configuration = Configuration {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes: eight(64).map(u16::from),
            rows: eight(16),
        };
        // SAFETY: `self` proves AMX; the operand is the 64 bytes that the instruction reads.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const configuration, options(nostack, readonly)) }
        Configured(PhantomData)
    }
}

/// Asks the kernel for leave to use the state of the tiles (Linux 5.16 and newer), for all threads to come.
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const TILE_DATA: u64 = 18;
    let result: i64;
    // SAFETY: a system call of two numbers that touches no memory of ours; it clobbers rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") ARCH_PRCTL => result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") TILE_DATA,
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result == 0
}

/// The calling thread's tiles are set up.
pub(crate) struct Configured(PhantomData<*const ()>);

impl Drop for Configured {
    fn drop(&mut self) {
        // SAFETY: a value exists only where AMX does.
        unsafe { asm!("tilerelease", options(nostack, nomem)) }
    }
}

impl Configured {
    /// The sums of rows by outputs, of one or four steps, written to `room`.
    #[inline(always)]
    pub(crate) fn multiply<'a, const N: usize>(
        &self,
        x: &[Step; N],
        w: [&Step; N],
        room: &'a mut MaybeUninit<[Sums; N]>,
    ) -> &'a mut [Sums; N] {
        const { assert!(N == 1 || N == 4) };
        let (x, sums) = (x.as_ptr(), room.as_mut_ptr());
        // SAFETY: this thread's tiles are set up as 16 rows of 64 bytes, which is what a `Step` and a `Sums` hold, of
        // which there are `N`, and all of which are written. Nothing else in the program uses tiles.
        unsafe {
            if N == 1 {
                asm!(
                    "tileloadd tmm4, [{x} + {stride}*1]",
                    "tileloadd tmm6, [{w} + {stride}*1]",
                    "tilezero tmm0",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tilestored [{sums} + {stride}*1], tmm0",
                    x = in(reg) x, w = in(reg) w[0], sums = in(reg) sums, stride = in(reg) 64usize,
                    out("tmm0") _, out("tmm4") _, out("tmm6") _, options(nostack)
                );
            } else {
                asm!(
                    "tileloadd tmm4, [{x} + {stride}*1]",
                    "tileloadd tmm6, [{w0} + {stride}*1]",
                    "tilezero tmm0",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm5, [{x} + {stride}*1 + 1024]",
                    "tileloadd tmm7, [{w1} + {stride}*1]",
                    "tilezero tmm1",
                    "tdpbf16ps tmm1, tmm5, tmm7",
                    "tileloadd tmm4, [{x} + {stride}*1 + 2048]",
                    "tileloadd tmm6, [{w2} + {stride}*1]",
                    "tilezero tmm2",
                    "tdpbf16ps tmm2, tmm4, tmm6",
                    "tileloadd tmm5, [{x} + {stride}*1 + 3072]",
                    "tileloadd tmm7, [{w3} + {stride}*1]",
                    "tilezero tmm3",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "tilestored [{sums} + {stride}*1], tmm0",
                    "tilestored [{sums} + {stride}*1 + 1024], tmm1",
                    "tilestored [{sums} + {stride}*1 + 2048], tmm2",
                    "tilestored [{sums} + {stride}*1 + 3072], tmm3",
                    x = in(reg) x, w0 = in(reg) w[0], w1 = in(reg) w[1 % N], w2 = in(reg) w[2 % N],
                    w3 = in(reg) w[3 % N], sums = in(reg) sums, stride = in(reg) 64usize,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack)
                );
            }
            room.assume_init_mut()
        }
    }
}
