//! What can go wrong with an evaluation, said so that it can be mended.

use std::path::PathBuf;

/// An error of the eval crate. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file or folder could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A task that was asked for has no data.
    #[error("no data for task `{task}` in {place}: expected {accepted}")]
    MissingTask {
        /// The task asked for.
        task: String,
        /// Where it was looked for.
        place: String,
        /// The file names that would have been taken.
        accepted: String,
    },
    /// Several data sets claim to be one task.
    #[error("task `{task}` has more than one data set: {first} and {second}; remove or move all but one")]
    AmbiguousTask {
        /// The task.
        task: String,
        /// One candidate.
        first: String,
        /// Another candidate.
        second: String,
    },
    /// A data file as a whole is unusable.
    #[error("{file}: {reason}")]
    File {
        /// The file.
        file: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A record of a data file is unusable.
    #[error("{file}:{line}: {reason}")]
    Record {
        /// The file.
        file: String,
        /// The line, from 1; for Parquet, the row, from 1.
        line: usize,
        /// What is wrong and what to do.
        reason: String,
    },
    /// A request that cannot be put into tokens.
    #[error("task `{task}`, document {document}, choice {choice}: {reason}")]
    Request {
        /// The task.
        task: String,
        /// Index of the document in the task.
        document: usize,
        /// Index of the choice in the document.
        choice: usize,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The file of kept scores cannot be used.
    #[error("store {path}: {reason}")]
    Store {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The model or its tokenizer failed.
    #[error(transparent)]
    Model(#[from] microscale_model::Error),
    /// A scorer broke its contract.
    #[error("the scorer of row `{row}` {reason}")]
    Scorer {
        /// The label of the row.
        row: String,
        /// What it did.
        reason: String,
    },
}
