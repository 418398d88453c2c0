//! What can go wrong with a model, said so that it can be mended.

use std::path::{Path, PathBuf};

/// An error of the model crate. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or directory could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A value of a `config.json` that is missing, malformed or not supported.
    #[error("{path}: {key} is {found}; expected {expected}")]
    Config {
        /// The file.
        path: PathBuf,
        /// The key, with its table where it has one: `rope_scaling.factor`.
        key: String,
        /// What is there, or `missing`.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A directory, a weight file or an index that cannot be used.
    #[error("{path}: {reason}")]
    Checkpoint {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it, and what would do.
        reason: String,
    },
    /// A tensor that is missing, of the wrong shape or type, or not finite.
    #[error("{path}: tensor {name}: {reason}")]
    Tensor {
        /// The file that holds it, or the checkpoint that does not.
        path: PathBuf,
        /// Its name in the checkpoint.
        name: String,
        /// What was found and what was expected.
        reason: String,
    },
    /// A recipe that cannot be used.
    #[error("{reason}")]
    Recipe {
        /// What is wrong, where, and the nearest valid name.
        reason: String,
    },
    /// A `tokenizer.json` that cannot be used.
    #[error("{path}: not a usable tokenizer: {reason}")]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What the tokenizer library says.
        reason: String,
    },
    /// A text that cannot be turned into ids, or back.
    #[error("cannot encode {text:?}: {reason}")]
    Encode {
        /// Its beginning.
        text: String,
        /// What the tokenizer library says.
        reason: String,
    },
    /// A request that cannot be scored.
    #[error("request {index}: {reason}")]
    Request {
        /// Its index among the requests given.
        index: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// A table that needs more memory than it may take.
    #[error(
        "these rows need {} at least, and {} were allowed; give fewer rows, more memory, or a model that \
         `microscale quantize` has made smaller", gigabytes(*.needed), gigabytes(*.allowed)
    )]
    Memory {
        /// Bytes needed.
        needed: usize,
        /// Bytes allowed.
        allowed: usize,
    },
    /// Activations that memory had no room for could not be kept in a temporary file.
    #[error("a temporary file in {directory}: {source}; set TMPDIR to a folder with more room, or allow more memory")]
    Spill {
        /// The folder.
        directory: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A text that cannot be continued.
    #[error("cannot generate: {reason}")]
    Generation {
        /// What stands against it.
        reason: String,
    },
}

/// Bytes, to be read.
fn gigabytes(bytes: usize) -> String {
    format!("{:.2} GB", bytes as f64 / 1e9)
}

impl Error {
    /// The error of a read that failed at `path`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Io { path: path.to_owned(), source }
    }

    /// The error of a write that failed at `path`.
    pub(crate) fn write(path: &Path) -> impl FnOnce(std::io::Error) -> Error {
        move |source| Error::Write { path: path.to_owned(), source }
    }

    /// A file, directory or index that cannot be used.
    pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Error {
        Error::Checkpoint { path: path.to_owned(), reason: reason.into() }
    }
}
