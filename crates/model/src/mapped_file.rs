//! One file, mapped, whatever is in it.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use crate::Error;

/// A file that is read where and when its bytes are needed. It must not be changed while it is open.
pub struct MappedFile {
    path: PathBuf,
    bytes: Bytes,
}

/// The content of a file.
enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl MappedFile {
    /// Maps a file.
    ///
    /// # Errors
    /// A path that cannot be read, or is no regular file: a pipe would block.
    pub fn open(path: PathBuf) -> Result<MappedFile, Error> {
        let about = std::fs::metadata(&path).map_err(Error::io(&path))?;
        if !about.is_file() {
            return Err(Error::checkpoint(&path, "not a regular file; expected one with tensors"));
        }
        if about.len() == 0 {
            return Ok(MappedFile::in_memory(path, &[])); // such a file cannot be mapped everywhere
        }
        let file = File::open(&path).map_err(Error::io(&path))?;
        let bytes = Bytes::Mapped(map(&file).map_err(Error::io(&path))?);
        Ok(MappedFile { path, bytes })
    }

    /// A file that is part of the program; `path` names it.
    pub fn in_memory(path: PathBuf, bytes: &'static [u8]) -> MappedFile {
        MappedFile { path, bytes: Bytes::Static(bytes) }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get()
    }

    /// The bytes of a stretch of the file, all in memory at once rather than page by page as they are touched.
    pub(crate) fn stretch(&self, offset: usize, length: usize) -> &[u8] {
        self.bytes.populate(offset, length);
        &self.bytes()[offset..][..length]
    }

    /// Gives the memory of a stretch back to the system; who needs it again reads it from the file again.
    pub(crate) fn release(&self, offset: usize, length: usize) {
        self.bytes.release(offset, length);
    }
}

impl Bytes {
    fn get(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }

    /// Brings the pages of a mapped stretch in. Only a hint.
    fn populate(&self, offset: usize, length: usize) {
        #[cfg(target_os = "linux")]
        if let Bytes::Mapped(map) = self {
            let _ = map.advise_range(memmap2::Advice::PopulateRead, offset, length);
        }
        #[cfg(not(target_os = "linux"))]
        let _ = (offset, length);
    }

    /// Lets go of the pages of a mapped stretch. Only a hint: that it cannot be followed is no error.
    fn release(&self, offset: usize, length: usize) {
        #[cfg(unix)]
        if let Bytes::Mapped(map) = self {
            // SAFETY: the pages of a read-only map of a file hold nothing but the file's content, which the next
            // access brings back.
            #[allow(unsafe_code, reason = "beside the line that maps the file, the one that unloads it")]
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, offset, length) };
        }
        #[cfg(not(unix))]
        let _ = (offset, length);
    }
}

/// Maps a file to read it.
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and only ever read as bytes. Whoever truncates or rewrites a checkpoint while it is
    // open breaks the contract that `Checkpoint::open` states.
    #[allow(unsafe_code, reason = "the one line that maps a file (architecture invariant 1)")]
    unsafe {
        Mmap::map(file)
    }
}
