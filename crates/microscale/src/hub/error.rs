//! What can go wrong with a download, said so that it can be mended.

use std::io;
use std::path::PathBuf;

/// An error of the download. Each message says what, where and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HubError {
    /// The binary cannot download.
    #[error(
        "cannot fetch {id}: this microscale was built without `download`; rebuild it with that cargo feature, or \
         download the files and give their folder"
    )]
    NotBuiltIn {
        /// What was asked for.
        id: String,
    },
    /// Not a hub id.
    #[error("{text:?} is no hub id; expected owner/name or owner/name@revision")]
    BadId {
        /// What was given.
        text: String,
    },
    /// A task without a known data set.
    #[error("no data set is known for task `{task}` (known: {known}); give a folder of task files with --data")]
    UnknownTask {
        /// The task asked for.
        task: String,
        /// The tasks that would do.
        known: String,
    },
    /// No place for the cache.
    #[error("no home folder to keep downloads in; set HF_HOME to a folder")]
    NoCache,
    /// Offline, and the cache lacks something.
    #[error(
        "{missing} of {id} is not in the cache {cache}, and HF_HUB_OFFLINE forbids to download it; unset \
         HF_HUB_OFFLINE, or run once with a network and this cache"
    )]
    Offline {
        /// The model or data set.
        id: String,
        /// The first file that is missing.
        missing: String,
        /// The cache.
        cache: PathBuf,
    },
    /// No connection.
    #[error(
        "cannot reach {url}: {reason}; check the network (and HF_ENDPOINT, HTTPS_PROXY), or download the files \
         elsewhere and give their folder"
    )]
    Unreachable {
        /// What was asked for.
        url: String,
        /// The cause.
        reason: String,
    },
    /// The hub knows no such repository.
    #[error("the hub has no {kind} {id} (asked for {page}); {advice}")]
    NotFound {
        /// `model` or `data set`.
        kind: &'static str,
        /// The id asked for.
        id: String,
        /// Its page.
        page: String,
        /// What to do.
        advice: &'static str,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{id} has no revision {revision} (asked for {page}); check the spelling, or leave out @{revision}")]
    NoRevision {
        /// The repository.
        id: String,
        /// The revision asked for.
        revision: String,
        /// The repository's page.
        page: String,
    },
    /// Gated, private, or a bad token.
    #[error("access to {id} is denied (HTTP {status}); accept its licence at {page} and {token_advice}")]
    Denied {
        /// The repository.
        id: String,
        /// The HTTP status.
        status: u16,
        /// The repository's page.
        page: String,
        /// What to do about the token.
        token_advice: &'static str,
    },
    /// The server failed.
    #[error("{url}: the server answers with HTTP {status}; try again later")]
    Server {
        /// What was asked for.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// The server answers, but not as a hub does.
    #[error("{url}: not an answer of a hub ({reason}); check HF_ENDPOINT and proxy settings")]
    BadAnswer {
        /// What was asked for.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The connection broke during a file.
    #[error("the download of {url} broke off: {reason}; run again to continue")]
    Interrupted {
        /// The file.
        url: String,
        /// The cause.
        reason: String,
    },
    /// No space left.
    #[error(
        "no space left for {url} in {cache}; free some or set HF_HOME to a larger disk, then run again to continue"
    )]
    DiskFull {
        /// The file.
        url: String,
        /// The cache.
        cache: PathBuf,
    },
    /// Another process fetches the same file.
    #[error("another process is downloading {url} (lock {lock}); wait for it, then run again")]
    Busy {
        /// The file.
        url: String,
        /// The lock.
        lock: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use {path} in the cache: {source}; check its permissions, or set HF_HOME to another folder")]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The repository lacks what is needed.
    #[error("{id}: {reason}")]
    Unusable {
        /// The repository.
        id: String,
        /// What it lacks and what to do.
        reason: String,
    },
}

#[cfg(feature = "download")]
impl HubError {
    /// Whether it may be gone a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            HubError::Interrupted { .. } | HubError::Unreachable { .. } => true,
            HubError::Server { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }
}
