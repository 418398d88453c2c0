//! Memory for packed weights, in large pages where the system has them.

use memmap2::MmapMut;

/// Bytes that are streamed through. A token reads all of a model's once: with pages of 4 KiB much of the time would go
/// to finding the pages.
pub(in crate::cpu) enum Buffer {
    Mapped(MmapMut),
    /// Small, or where the system maps nothing.
    Heap(Vec<u8>),
}

impl Buffer {
    pub(in crate::cpu) fn zeroed(length: usize) -> Buffer {
        const LARGE_PAGE: usize = 2 << 20;
        if length < LARGE_PAGE {
            return Buffer::Heap(vec![0; length]);
        }
        match MmapMut::map_anon(length) {
            Ok(map) => {
                // Advice; pages stay small where it cannot be followed.
                #[cfg(target_os = "linux")]
                let _ = map.advise(memmap2::Advice::HugePage);
                Buffer::Mapped(map)
            }
            Err(_) => Buffer::Heap(vec![0; length]),
        }
    }

    #[inline(always)]
    pub(in crate::cpu) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Mapped(map) => map,
            Buffer::Heap(bytes) => bytes,
        }
    }

    pub(in crate::cpu) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::Mapped(map) => map,
            Buffer::Heap(bytes) => bytes,
        }
    }
}
