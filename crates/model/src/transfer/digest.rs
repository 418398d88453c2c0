//! The hash of the source, taken while it is transferred.
//!
//! On the way the digest of every file so far is known from time to time. A journal of those proves later that the
//! beginning of a file is still what it was, without a second hash of parts.

use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::MappedFile;
use crate::checkpoint::{Sha256Digest, hash_of, hexadecimal};

/// Bytes in memory at a time, and between two digests: a multiple.
const CHUNK: usize = 4 << 20;
const STRETCH: usize = 8 * CHUNK;

/// The files of a source, each hashed up to some length.
pub(super) struct SourceDigest<'a> {
    files: Vec<&'a MappedFile>,
    states: Vec<Mutex<(Sha256, usize)>>,
}

impl<'a> SourceDigest<'a> {
    pub(super) fn new(files: &[&'a MappedFile]) -> SourceDigest<'a> {
        SourceDigest { files: files.to_vec(), states: files.iter().map(|_| Mutex::new((Sha256::new(), 0))).collect() }
    }

    /// Hashes a file up to `end`, and calls `each` with the length hashed and its digest after every stretch; that it
    /// answers false ends the work.
    pub(super) fn advance(&self, file: usize, end: usize, mut each: impl FnMut(usize, Sha256Digest) -> bool) {
        let mut state = self.states[file].lock().unwrap_or_else(PoisonError::into_inner);
        let (sha256, position) = &mut *state;
        while *position < end {
            let length = CHUNK.min(end - *position);
            sha256.update(self.files[file].stretch(*position, length));
            self.files[file].release(*position, length);
            *position += length;
            let noted = position.is_multiple_of(STRETCH) || *position == end;
            if noted && !each(*position, sha256.clone().finalize().into()) {
                return;
            }
        }
    }

    /// How much of a file was hashed, and its digest.
    pub(super) fn of(&self, file: usize) -> (usize, Sha256Digest) {
        let state = self.states[file].lock().unwrap_or_else(PoisonError::into_inner);
        (state.1, state.0.clone().finalize().into())
    }

    /// The hash of a source that was hashed to its end: of a model with this `config.json`, or of a file.
    pub(super) fn whole(&self, config: Option<&[u8]>) -> String {
        let digests: Vec<Sha256Digest> = (0..self.files.len()).map(|file| self.of(file).1).collect();
        match (config, digests.as_slice()) {
            (None, [only]) => hexadecimal(only),
            (config, digests) => hash_of(config.unwrap_or_default(), digests),
        }
    }
}
