//! What may stand already where an output is to go.

use std::path::Path;

use rayon::prelude::*;

use super::digest::SourceDigest;
use super::partial::{self, Target};
use super::{Slice, Transfer};
use crate::weights_file::WeightsFile;
use crate::{Error, native};

impl Transfer<'_> {
    /// Whether the output is complete already. A file is made again and replaced; a folder counts if all its weights
    /// have the header that they would get.
    pub(super) fn already_there(&self) -> Result<bool, Error> {
        let path = self.target.path();
        let fail = |reason: &str| Err(Error::checkpoint(path, reason));
        if path.file_name().is_none() {
            return fail("is no name for an output; give one");
        }
        match &self.target {
            Target::File(_) if path.is_dir() => fail("is a directory; give the name of a file to write"),
            Target::File(_) if self.files.iter().any(|file| same_file(file.path(), path)) => {
                fail("is the source itself; choose another output")
            }
            Target::File(_) => Ok(false),
            Target::Directory(_) if !path.exists() => Ok(false),
            Target::Directory(_) => {
                if path.is_dir() && std::fs::read_dir(path).map_err(Error::io(path))?.next().is_none() {
                    return Ok(false);
                }
                if self.is_complete(path) {
                    partial::remove_journal(path)?;
                    return Ok(true);
                }
                fail("exists and is no output of the same command; remove it or choose another output")
            }
        }
    }

    /// Whether the files in `directory` are what this transfer would write, by their headers and lengths; and by their
    /// tensors where headers do not follow from the source, but name what that was made of.
    fn is_complete(&self, directory: &Path) -> bool {
        let open = |name: &String| WeightsFile::open(directory.join(name)).ok();
        let files: Option<Vec<WeightsFile>> = self.layout.shards.iter().map(|shard| open(&shard.name)).collect();
        let Some(files) = files else { return false };
        let claimed = files.first().and_then(|file| native::source_sha256(file).map(str::to_owned));
        let Some(hash) = claimed else { return false };
        let begins = |hash: &str| {
            let mut shards = files.iter().zip(0..);
            shards.all(|(file, shard)| file.bytes().starts_with(&self.layout.header(shard, hash)))
        };
        if !begins(&hash) {
            return false;
        }
        if begins(&"0".repeat(64)) {
            return self.slices().par_iter().all(|slice| self.stands_in(&files, slice));
        }
        let digest = SourceDigest::new(&self.files);
        (0..self.files.len()).for_each(|file| digest.advance(file, self.files[file].bytes().len(), |_, _| true));
        digest.whole(self.config) == hash
    }

    /// Whether a slice's outputs are what these files hold there.
    fn stands_in(&self, files: &[WeightsFile], slice: &Slice) -> bool {
        let mut buffers = [Vec::new(), Vec::new()];
        self.transform(slice, &mut buffers).is_ok()
            && buffers.iter().zip(self.places(slice)).all(|(made, (shard, offset))| {
                let there = files[shard].bytes().get(offset..offset + made.len());
                there == Some(made.as_slice())
            })
    }
}

/// Whether both names are of one file.
fn same_file(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}
