//! One safetensors file: mapped, its header checked once.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::{Map, Value};

use crate::{Error, MappedFile};

/// Longest header, as the safetensors format has it.
const MAX_HEADER: usize = 100_000_000;
/// Bytes looked at in one go where a whole file is read.
const STRETCH: usize = 64 << 20;
/// Bytes of the header's length in front of it.
const LENGTH: usize = 8;

/// A weight file whose header's offsets lie within it.
pub struct WeightsFile {
    file: MappedFile,
    metadata: Metadata,
    /// Offset of the tensors' data in the file.
    data: usize,
}

impl WeightsFile {
    /// Maps a file and checks its header.
    ///
    /// # Errors
    /// A file that cannot be read, or is no safetensors file.
    pub fn open(path: PathBuf) -> Result<Self, Error> {
        Self::checked(MappedFile::open(path)?)
    }

    /// A file that is part of the program; `path` names it.
    pub(crate) fn in_memory(path: PathBuf, bytes: &'static [u8]) -> Result<Self, Error> {
        Self::checked(MappedFile::in_memory(path, bytes))
    }

    /// Parses the header. `safetensors` checks that the offsets are contiguous and fit the shapes; that they also end
    /// with the file is checked here, where the sum cannot overflow.
    fn checked(file: MappedFile) -> Result<Self, Error> {
        let (path, content) = (file.path(), file.bytes());
        let Some((length, rest)) = content.split_first_chunk::<LENGTH>() else {
            return Err(truncated(path, format!("it has {} bytes, fewer than any safetensors file", content.len())));
        };
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER as u64 {
            let reason = format!("its header is said to have {length} bytes; this is not a safetensors file");
            return Err(Error::checkpoint(path, reason));
        }
        let Some((header, data)) = rest.split_at_checked(length as usize) else {
            return Err(truncated(path, format!("its header has {length} bytes, the file {}", content.len())));
        };
        let metadata: Metadata =
            serde_json::from_slice(header).map_err(|e| Error::checkpoint(path, explain(header, &e)))?;
        let promised = metadata.data_len();
        if promised > data.len() {
            let reason = format!("its header promises {promised} bytes of tensors, the file holds {}", data.len());
            return Err(truncated(path, reason));
        }
        if promised < data.len() {
            let excess = data.len() - promised;
            let reason = format!("{excess} bytes follow the last tensor; the file is corrupt, fetch it again");
            return Err(Error::checkpoint(path, reason));
        }
        let data = LENGTH + header.len();
        Ok(WeightsFile { metadata, data, file })
    }

    /// The file itself.
    pub fn file(&self) -> &MappedFile {
        &self.file
    }

    /// The file without what its header says.
    pub fn into_file(self) -> MappedFile {
        self.file
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.file.bytes()
    }

    /// What the header says of every tensor.
    pub fn infos(&self) -> impl Iterator<Item = (String, TensorInfo)> {
        self.metadata.tensors().into_iter().map(|(name, info)| (name, info.clone()))
    }

    /// The header's free part, `__metadata__`: texts by key.
    pub fn notes(&self) -> Option<&HashMap<String, String>> {
        self.metadata.metadata().as_ref()
    }

    /// What the header says of one tensor.
    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.metadata.info(name)
    }

    /// Offset in the file of a tensor's first byte.
    pub fn offset(&self, info: &TensorInfo) -> usize {
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
        self.file.release(self.offset(info), info.data_offsets.1 - info.data_offsets.0);
    }

    /// Gives the memory of a stretch of the file back, as [`release`](Self::release) that of a tensor.
    pub(crate) fn release_range(&self, offset: usize, length: usize) {
        self.file.release(offset, length);
    }

    /// Calls `f` with the whole file in stretches, giving each back after use.
    pub(crate) fn stretches(&self, mut f: impl FnMut(&[u8])) {
        for (i, stretch) in self.bytes().chunks(STRETCH).enumerate() {
            f(stretch);
            self.file.release(i * STRETCH, stretch.len());
        }
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
