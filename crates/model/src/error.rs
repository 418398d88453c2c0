//! What can go wrong with a model, said so that it can be mended.

use std::path::PathBuf;

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
}
