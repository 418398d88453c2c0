//! One safetensors file: mapped, its header checked once.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use crate::Error;

/// Longest header, as the safetensors format has it.
const MAX_HEADER: usize = 100_000_000;
/// Bytes looked at in one go where a whole file is read.
const STRETCH: usize = 64 << 20;
/// Bytes of the header's length in front of it.
const LENGTH: usize = 8;

/// A weight file whose header's offsets lie within it.
pub(crate) struct WeightsFile {
    path: PathBuf,
    bytes: Bytes,
    metadata: Metadata,
    /// Offset of the tensors' data in the file.
    data: usize,
}

/// The content of a file.
enum Bytes {
    Mapped(Mmap),
    Static(&'static [u8]),
}

impl WeightsFile {
    /// Maps a file and checks its header.
    pub(crate) fn open(path: PathBuf) -> Result<Self, Error> {
        // An empty file cannot be mapped everywhere, and a pipe would block.
        let length = std::fs::metadata(&path).map_err(Error::io(&path))?;
        if !length.is_file() {
            return Err(Error::checkpoint(&path, "not a regular file; expected a safetensors file"));
        }
        if length.len() < LENGTH as u64 {
            return Err(truncated(&path, format!("it has {} bytes, fewer than any safetensors file", length.len())));
        }
        let file = File::open(&path).map_err(Error::io(&path))?;
        let mapped = map(&file).map_err(Error::io(&path))?;
        Self::checked(path, Bytes::Mapped(mapped))
    }

    /// A file that is part of the program; `path` names it.
    pub(crate) fn in_memory(path: PathBuf, bytes: &'static [u8]) -> Result<Self, Error> {
        Self::checked(path, Bytes::Static(bytes))
    }

    /// Parses the header. `safetensors` checks that the offsets are contiguous and fit the shapes; that they also end
    /// with the file is checked here, where the sum cannot overflow.
    fn checked(path: PathBuf, bytes: Bytes) -> Result<Self, Error> {
        let content = bytes.get();
        let Some((length, rest)) = content.split_first_chunk::<LENGTH>() else {
            return Err(truncated(&path, format!("it has {} bytes, fewer than any safetensors file", content.len())));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER as u64 {
            let reason = format!("its header is said to have {length} bytes; this is not a safetensors file");
            return Err(Error::checkpoint(&path, reason));
        }
        let Some((header, data)) = rest.split_at_checked(length as usize) else {
            return Err(truncated(&path, format!("its header has {length} bytes, the file {}", content.len())));
        };
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|e| Error::checkpoint(&path, explain(header, &e)))?;
        let promised = metadata.data_len();
        if promised > data.len() {
            let reason = format!("its header promises {promised} bytes of tensors, the file holds {}", data.len());
            return Err(truncated(&path, reason));
        }
        if promised < data.len() {
            let excess = data.len() - promised;
            let reason = format!("{excess} bytes follow the last tensor; the file is corrupt, fetch it again");
            return Err(Error::checkpoint(&path, reason));
        }
        let data = LENGTH + header.len();
        Ok(WeightsFile { path, bytes, metadata, data })
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get()
    }

    /// What the header says of every tensor.
    pub(crate) fn infos(&self) -> impl Iterator<Item = (String, TensorInfo)> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.clone()))
    }

    /// The header's free part, `__metadata__`: texts by key.
    pub(crate) fn notes(&self) -> Option<&HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// What the header says of one tensor.
    pub(crate) fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// The whole file's length.
    pub(crate) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// Offset in the file of a tensor's first byte.
    pub(crate) fn offset(&self, info: &TensorInfo) -> usize {
        self.data + info.data_offsets.0
    }

    /// Whether the file holds the tensor.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.metadata.info(name).is_some()
    }

    /// The bytes of one of this file's tensors.
    pub(crate) fn tensor(&self, info: &TensorInfo) -> &[u8] {
        &self.bytes()[self.data..][info.data_offsets.0..info.data_offsets.1]
    }

    /// Gives a tensor's memory back to the system; who needs it again reads it from the file again. A model that is
    /// read tensor by tensor so never lies in memory twice, as file and as weights.
    pub(crate) fn release(&self, info: &TensorInfo) {
        self.release_range(self.offset(info), info.data_offsets.1 - info.data_offsets.0);
    }

    /// The bytes of a stretch of the file, all in memory at once rather than page by page as they are touched.
    pub(crate) fn stretch(&self, offset: usize, length: usize) -> &[u8] {
        self.bytes.populate(offset, length);
        &self.bytes()[offset..][..length]
    }

    /// [`release`](Self::release) for a stretch of the file.
    pub(crate) fn release_range(&self, offset: usize, length: usize) {
        self.bytes.release(offset, length);
    }

    /// Calls `f` with the whole file in stretches, giving each back after use.
    pub(crate) fn stretches(&self, mut f: impl FnMut(&[u8])) {
        for (i, stretch) in self.bytes().chunks(STRETCH).enumerate() {
            f(stretch);
            self.bytes.release(i * STRETCH, stretch.len());
        }
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

/// The error for a file that ends too early.
fn truncated(path: &Path, found: String) -> Error {
    Error::checkpoint(path, format!("truncated: {found}; fetch it again"))
}

/// Why a header cannot be used: the first tensor whose entry is malformed, or what the parser says.
fn explain(header: &[u8], error: &serde_json::Error) -> String {
    let entries: Option<Map<String, Value>> = serde_json::from_slice(header).ok();
    let malformed =
        entries.into_iter().flatten().filter(|(name, _)| name != "__metadata__").find_map(|(name, entry)| {
            let reason = serde_json::from_value::<TensorInfo>(entry).err()?;
            Some(format!("tensor {name}: {reason}"))
        });
    let reason = malformed.unwrap_or_else(|| error.to_string());
    format!("its safetensors header cannot be used: {reason}; fetch the file again")
}
