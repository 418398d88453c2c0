//! An output that is not complete yet: a folder beside it, with a journal of what is done.
//!
//! Nothing in it is trusted unless the journal says that it is the output of the same work, and nothing has the final
//! name before it is complete. What the journal's lines claim was handed to the system before: a killed process loses
//! no such write.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::positioned::write_all_at;
use super::shards::Layout;
use crate::Error;
use crate::checkpoint::{Sha256Digest, hexadecimal};

/// How a journal begins; the key of the work follows.
const TITLE: &str = "microscale journal 1 ";
const JOURNAL: &str = "microscale.journal";

/// Where the output goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A folder of files.
    Directory(PathBuf),
    /// One file.
    File(PathBuf),
}

impl Target {
    pub(crate) fn path(&self) -> &Path {
        match self {
            Target::Directory(path) | Target::File(path) => path,
        }
    }
}

/// What earlier runs of the same work left.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Record {
    /// The slices that are written, and how much in each was not finite.
    pub(super) slices: HashMap<usize, usize>,
    /// Of files of the source the greatest length hashed, and the digest in hexadecimal.
    pub(super) digests: BTreeMap<usize, (usize, String)>,
}

impl Record {
    /// Reads a journal's lines after the first; a last one without its end was being written, and is none.
    fn parse(text: &str) -> Record {
        let mut record = Record::default();
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["slice", index, not_finite] => {
                    if let (Ok(index), Ok(not_finite)) = (index.parse(), not_finite.parse()) {
                        record.slices.insert(index, not_finite);
                    }
                }
                ["lost", index] => {
                    if let Ok(index) = index.parse::<usize>() {
                        record.slices.remove(&index);
                    }
                }
                ["afresh"] => record = Record::default(),
                ["source", file, length, digest] => {
                    if let (Ok(file), Ok(length)) = (file.parse(), length.parse()) {
                        let known = record.digests.entry(file).or_default();
                        if length > known.0 {
                            *known = (length, digest.to_owned());
                        }
                    }
                }
                _ => {}
            }
        }
        record
    }
}

/// The folder of an unfinished output, locked for this process.
pub(super) struct Partial {
    directory: PathBuf,
    journal: Mutex<File>,
    files: Vec<(PathBuf, File)>,
}

/// The folder in which the output at `target` grows: its name with `.partial`.
pub fn partial_path(target: &Path) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    target.with_file_name(name)
}

impl Partial {
    /// Opens or makes the folder for the work `key` (one word); the record is empty where there is nothing to go on
    /// from.
    ///
    /// # Errors
    /// A folder that is not ours, or that another process is writing; what the system says.
    pub(super) fn open(target: &Target, key: &str, layout: &Layout) -> Result<(Partial, Record), Error> {
        let directory = partial_path(target.path());
        fs::create_dir_all(&directory).map_err(Error::write(&directory))?;
        let path = directory.join(JOURNAL);
        let fail = |reason: &str| Err(Error::checkpoint(&directory, reason));
        let others = fs::read_dir(&directory).map_err(Error::write(&directory))?.count() > usize::from(path.exists());
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut journal = open.map_err(Error::write(&path))?;
        match journal.try_lock() {
            Err(TryLockError::WouldBlock) => return fail("another process is writing here; wait for it"),
            Err(TryLockError::Error(source)) => return Err(Error::write(&path)(source)),
            Ok(()) => {}
        }
        let mut text = String::new();
        let read = journal.read_to_string(&mut text);
        if read.is_err() || (others && !text.starts_with(TITLE)) {
            return fail("is in the way and no unfinished output of this program; remove it or choose another output");
        }
        let title = format!("{TITLE}{key}\n");
        let record = text.strip_prefix(&title).map(Record::parse).unwrap_or_default();
        let whole = layout.shards.iter().all(|shard| {
            let length = fs::metadata(directory.join(&shard.name)).map(|file| file.len());
            length.is_ok_and(|length| length == shard.bytes() as u64)
        });
        let record = if whole { record } else { Record::default() };
        if record == Record::default() {
            begin(&directory, &mut journal, &title).map_err(Error::write(&path))?;
        } else {
            // What follows the last line's end was being written.
            let end = text.rfind('\n').map_or(0, |at| at + 1) as u64;
            journal.set_len(end).and_then(|()| journal.seek(SeekFrom::Start(end))).map_err(Error::write(&path))?;
        }
        let files = layout.shards.iter().map(|shard| open_shard(&directory.join(&shard.name), shard.bytes()));
        let files = files.collect::<Result<_, _>>()?;
        Ok((Partial { directory, journal: Mutex::new(journal), files }, record))
    }

    /// Writes at an offset of a shard.
    pub(super) fn write(&self, shard: usize, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        let (path, file) = &self.files[shard];
        write_all_at(file, bytes, offset).map_err(Error::write(path))
    }

    /// Notes that a slice is written.
    pub(super) fn note_slice(&self, index: usize, not_finite: usize) -> Result<(), Error> {
        self.note(&format!("slice {index} {not_finite}\n"))
    }

    /// Notes the digest of a source file's beginning.
    pub(super) fn note_digest(&self, file: usize, length: usize, digest: Sha256Digest) -> Result<(), Error> {
        self.note(&format!("source {file} {length} {}\n", hexadecimal(&digest)))
    }

    /// Notes that nothing of what is written so far counts.
    pub(super) fn note_afresh(&self) -> Result<(), Error> {
        self.note("afresh\n")
    }

    /// Notes that slices do not count though they are written.
    pub(super) fn note_lost(&self, slices: impl Iterator<Item = usize>) -> Result<(), Error> {
        self.note(&slices.map(|index| format!("lost {index}\n")).collect::<String>())
    }

    fn note(&self, line: &str) -> Result<(), Error> {
        let mut journal = self.journal.lock().unwrap_or_else(PoisonError::into_inner);
        journal.write_all(line.as_bytes()).map_err(Error::write(&self.directory.join(JOURNAL)))
    }

    /// Writes a small file whole.
    pub(super) fn add(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.directory.join(name);
        fs::write(&path, bytes).map_err(Error::write(&path))
    }

    /// Gives the output its name. Only after that the journal goes: whoever is killed in between leaves a complete
    /// output.
    pub(super) fn finish(self, target: &Target) -> Result<(), Error> {
        drop(self.journal);
        match target {
            Target::Directory(path) => {
                fs::rename(&self.directory, path).map_err(Error::write(path))?;
                remove_journal(path)
            }
            Target::File(path) => {
                let (file, _) = &self.files[0];
                fs::rename(file, path).map_err(Error::write(path))?;
                fs::remove_dir_all(&self.directory).map_err(Error::write(&self.directory))
            }
        }
    }

    /// Gives the work up.
    pub(super) fn discard(self) {
        // Best effort: the error to report is why.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Removes the journal of an output that is complete, if it is still there.
pub(super) fn remove_journal(directory: &Path) -> Result<(), Error> {
    let journal = directory.join(JOURNAL);
    match fs::remove_file(&journal) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::write(&journal)(error)),
        _ => Ok(()),
    }
}

/// Empties the folder and begins a journal. Its old lines go first, so that none outlives what it speaks of, but it is
/// recognized as ours at any moment.
fn begin(directory: &Path, journal: &mut File, title: &str) -> std::io::Result<()> {
    journal.set_len(journal.metadata()?.len().min(TITLE.len() as u64))?;
    journal.seek(SeekFrom::Start(0))?;
    journal.write_all(TITLE.as_bytes())?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name != JOURNAL) {
            fs::remove_file(path)?;
        }
    }
    journal.write_all(&title.as_bytes()[TITLE.len()..])
}

/// Opens a shard at its full length; what is not written yet is zeros.
fn open_shard(path: &Path, bytes: usize) -> Result<(PathBuf, File), Error> {
    let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
    let file = open.map_err(Error::write(path))?;
    file.set_len(bytes as u64).map_err(Error::write(path))?;
    Ok((path.to_owned(), file))
}
