//! Memory for packed weights, in large pages where the system has them.

use std::fmt;

use memmap2::MmapMut;

/// Bytes that are streamed through. A token reads all of a model's once, and a quantizer writes them: with pages of 4 KiB
/// much of the time would go to finding the pages, and most of it to getting new ones.
pub(crate) enum Buffer {
    Mapped(MmapMut),
    /// Small, or where the system maps nothing.
    Heap(Vec<u8>),
}

impl Buffer {
    pub(crate) fn zeroed(length: usize) -> Buffer {
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
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Mapped(map) => map,
            Buffer::Heap(bytes) => bytes,
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::Mapped(map) => map,
            Buffer::Heap(bytes) => bytes,
        }
    }
}

impl Clone for Buffer {
    fn clone(&self) -> Buffer {
        let mut copy = Buffer::zeroed(self.bytes().len());
        copy.bytes_mut().copy_from_slice(self.bytes());
        copy
    }
}

/// Equal bytes, wherever they lie.
impl PartialEq for Buffer {
    fn eq(&self, other: &Buffer) -> bool {
        self.bytes() == other.bytes()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.bytes().fmt(f)
    }
}
