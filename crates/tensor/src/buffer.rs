//! Memory for packed weights, in large pages where the system has them.

use std::fmt;

use memmap2::MmapMut;

/// Bytes that are streamed through. A token reads all of a model's once, and a quantizer writes them: with pages of 4 KiB
/// much of the time would go to finding the pages, and most of it to getting new ones.
pub(crate) enum Buffer {
    /// So many bytes at the beginning of a map.
    Mapped(MmapMut, usize),
    /// Small, or where the system maps nothing.
    Heap(Vec<u8>),
}

const LARGE_PAGE: usize = 2 << 20;

impl Buffer {
    /// In large pages but for what is left at the end, which would take a whole one.
    pub(crate) fn zeroed(length: usize) -> Buffer {
        if length < LARGE_PAGE {
            return Buffer::Heap(vec![0; length]);
        }
        // Linux lays a map at the beginning of a large page only if its length is one of whole ones; of what is not written
        // there is nothing but addresses.
        match MmapMut::map_anon(length.next_multiple_of(LARGE_PAGE)) {
            Ok(map) => {
                advise(&map, length / LARGE_PAGE * LARGE_PAGE);
                Buffer::Mapped(map, length)
            }
            Err(_) => Buffer::Heap(vec![0; length]),
        }
    }

    #[inline(always)]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Buffer::Mapped(map, length) => &map[..*length],
            Buffer::Heap(bytes) => bytes,
        }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match self {
            Buffer::Mapped(map, length) => &mut map[..*length],
            Buffer::Heap(bytes) => bytes,
        }
    }
}

/// Asks for large pages up to so many bytes, and for small ones after them: advice, which need not be followed.
#[cfg(target_os = "linux")]
fn advise(map: &MmapMut, large: usize) {
    use memmap2::Advice;
    let _ = map.advise_range(Advice::HugePage, 0, large);
    if large < map.len() {
        let _ = map.advise_range(Advice::NoHugePage, large, map.len() - large);
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: &MmapMut, _: usize) {}

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
