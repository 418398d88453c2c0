//! Where memory comes from.
#![allow(unsafe_code, reason = "the trait of allocators is unsafe")]

use std::alloc::{GlobalAlloc, Layout, System};

use mimalloc::MiMalloc;

/// Tokenizers, data sets and small models ask for memory millions of times, in which [`MiMalloc`] is the faster one. It keeps
/// what is free for a second, though, and of a large model's weights before they are quantized that would be much: what is
/// large comes from the system, and goes back to it.
struct BySize;

#[global_allocator]
static ALLOCATOR: BySize = BySize;

/// Bytes from which on a piece of memory is large.
const LARGE: usize = 2 << 20;

// SAFETY: every piece goes back to the allocator it came from, which its size tells.
unsafe impl GlobalAlloc for BySize {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { if layout.size() < LARGE { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's.
        unsafe { if layout.size() < LARGE { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { if layout.size() < LARGE { MiMalloc.dealloc(at, layout) } else { System.dealloc(at, layout) } }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's; of what moves to the other allocator no more is copied than there is on both sides.
        unsafe {
            match (layout.size() < LARGE, size < LARGE) {
                (true, true) => MiMalloc.realloc(at, layout, size),
                (false, false) => System.realloc(at, layout, size),
                _ => {
                    let to = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                    if !to.is_null() {
                        to.copy_from_nonoverlapping(at, layout.size().min(size));
                        self.dealloc(at, layout);
                    }
                    to
                }
            }
        }
    }
}
