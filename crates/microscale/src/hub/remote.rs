//! The hub itself, through the `hf-hub` crate.
//!
//! Version 0.5 with `ureq`, not 1.0: 57 crates instead of 235 and a sixth of the build time (75 s of CPU instead of
//! 462), no async runtime, TLS by `ring` with bundled roots (1.0: aws-lc, which builds C with CMake, and the system's
//! roots), and files that broke off are resumed (1.0 starts them again). What 0.5 lacks is here or in [`Settings`]: the
//! environment's variables, a check of each file's size, blobs that another commit brought already, remains that cannot
//! be resumed, and readable errors. It sets no timeouts: a connection that stalls is ended by the user, and resumed.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde_json::Value;

use super::select::Snapshot;
use super::{HubError, Progress, Settings};

/// Pause before the first retry; each later one is twice as long.
const PAUSE: Duration = Duration::from_millis(250);

/// At least this long between two reports of progress.
const REPORT: Duration = Duration::from_millis(100);

/// A connection to the hub.
pub(super) struct Remote<'a> {
    api: Api,
    settings: &'a Settings,
    progress: &'a dyn Progress,
}

impl<'a> Remote<'a> {
    pub(super) fn new(settings: &'a Settings, progress: &'a dyn Progress) -> Result<Self, HubError> {
        // `ApiBuilder::new` panics without a home folder; `from_cache` does not look for one.
        let mut builder = ApiBuilder::from_cache(Cache::new(settings.cache.clone()))
            .with_token(settings.token.clone())
            // Its own retries append to the wrong place after a resumed attempt that brought nothing; see `fetch`.
            .with_retries(0)
            .with_user_agent("microscale", env!("CARGO_PKG_VERSION"));
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|error| HubError::BadAnswer {
            url: settings.endpoint.clone().unwrap_or_default(),
            reason: error.to_string(),
        })?;
        Ok(Remote { api, settings, progress })
    }

    /// The commit that `repo`'s revision names now, and its files.
    pub(super) fn open<'r>(&'r self, repo: &Repo, id: &str) -> Result<Fetched<'r>, HubError> {
        // Not tried again: who has no network should hear it at once.
        let Info { commit, sizes } = self.info(repo, id)?;
        let kind = match repo.url().starts_with("datasets/") {
            true => RepoType::Dataset,
            false => RepoType::Model,
        };
        // From here on by commit, so that all files are of one even if the branch moves on meanwhile.
        let pinned = Repo::with_revision(id.to_owned(), kind, commit.clone());
        let cache = Cache::new(self.settings.cache.clone());
        Ok(Fetched {
            remote: self,
            id: id.to_owned(),
            folder: cache.repo(pinned.clone()).pointer_path(&commit),
            asked: cache.repo(repo.clone()),
            blobs: cache.repo(pinned.clone()),
            revision: repo.revision().to_owned(),
            repo: self.api.repo(pinned),
            commit,
            files: sizes.keys().cloned().collect(),
            sizes,
        })
    }

    fn info(&self, repo: &Repo, id: &str) -> Result<Info, HubError> {
        let api_repo = self.api.repo(repo.clone());
        let page = page(&api_repo);
        let failed = |error: ureq::Error| self.explain(ApiError::RequestError(Box::new(error)), id, &page, &page);
        // The status alone does not tell a misspelt id from a private one, so keep the answer's headers.
        let request = api_repo.info_request().query("blobs", "true").config().http_status_as_error(false).build();
        let mut answer = request.call().map_err(failed)?;
        let status = answer.status().as_u16();
        let code = answer.headers().get("x-error-code").and_then(|code| code.to_str().ok()).unwrap_or("");
        match (status, code) {
            (200, _) => {}
            // The hub answers 401, not 404, to strangers who ask for what does not exist.
            (404, "RevisionNotFound") => {
                let revision = repo.revision().to_owned();
                return Err(HubError::NoRevision { id: id.to_owned(), revision, page });
            }
            (404, _) | (401, "RepoNotFound") => return Err(self.not_found(repo, id, page)),
            _ => return Err(failed(ureq::Error::StatusCode(status))),
        }
        let info: Value = answer.body_mut().read_json().map_err(failed)?;
        Info::read(&info)
            .ok_or_else(|| HubError::BadAnswer { url: page, reason: "no commit or files in it".to_owned() })
    }

    fn not_found(&self, repo: &Repo, id: &str, page: String) -> HubError {
        let dataset = repo.url().starts_with("datasets/");
        let advice = match (dataset, &self.settings.token) {
            (true, None) => "check HF_ENDPOINT, and HF_TOKEN if a token is needed there",
            (true, Some(_)) => "check HF_ENDPOINT, and that the token may see it",
            (false, None) => "check the spelling (no such folder is here either); if it is private, set HF_TOKEN",
            (false, Some(_)) => {
                "check the spelling (no such folder is here either); if it is private, the token must be one that may \
                 see it"
            }
        };
        let kind = if dataset { "data set" } else { "model" };
        HubError::NotFound { kind, id: id.to_owned(), page, advice }
    }

    /// Does something again while it fails for reasons that may pass.
    fn again_if_passing<T>(&self, mut action: impl FnMut() -> Result<T, HubError>) -> Result<T, HubError> {
        let mut pause = PAUSE;
        for _ in 0..self.settings.retries {
            match action() {
                Err(error) if error.is_passing() => sleep(pause),
                result => return result,
            }
            pause *= 2;
        }
        action()
    }

    /// An error of the crate in our words.
    fn explain(&self, error: ApiError, id: &str, url: &str, page: &str) -> HubError {
        let url = url.to_owned();
        match error {
            ApiError::RequestError(error) => match *error {
                ureq::Error::StatusCode(status @ (401 | 403)) => {
                    let token_advice = match self.settings.token {
                        None => "set HF_TOKEN to a token of that account",
                        Some(_) => "check that the token (HF_TOKEN, or the token file) is valid and of that account",
                    };
                    HubError::Denied { id: id.to_owned(), status, page: page.to_owned(), token_advice }
                }
                ureq::Error::StatusCode(status) => HubError::Server { url, status },
                ureq::Error::Protocol(_)
                | ureq::Error::Json(_)
                | ureq::Error::BadUri(_)
                | ureq::Error::Http(_)
                | ureq::Error::TooManyRedirects
                | ureq::Error::LargeResponseHeader(..) => HubError::BadAnswer { url, reason: error.to_string() },
                error => HubError::Unreachable { url, reason: error.to_string() },
            },
            ApiError::IoError(error) if is_of_the_connection(&error) => {
                HubError::Interrupted { url, reason: error.to_string() }
            }
            ApiError::IoError(source) => self.cache_error(source, self.settings.cache.clone(), url),
            ApiError::TooManyRetries(error) => self.explain(*error, id, &url, page),
            ApiError::LockAcquisition(lock) => HubError::Busy { url, lock },
            error => HubError::BadAnswer { url, reason: error.to_string() },
        }
    }

    fn cache_error(&self, source: io::Error, path: PathBuf, url: String) -> HubError {
        match source.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
                HubError::DiskFull { url, cache: self.settings.cache.clone() }
            }
            _ => HubError::Cache { path, source },
        }
    }
}

/// What the hub tells of a repository.
struct Info {
    commit: String,
    /// Each file, with its size where the server tells it (mirrors may not).
    sizes: BTreeMap<String, Option<u64>>,
}

impl Info {
    fn read(info: &Value) -> Option<Info> {
        let commit = info.get("sha")?.as_str().filter(|sha| stays_inside(sha) && !sha.contains('/'))?.to_owned();
        let file = |file: &Value| {
            let name = file.get("rfilename")?.as_str().filter(|name| stays_inside(name))?;
            Some((name.to_owned(), file.get("size").and_then(Value::as_u64)))
        };
        Some(Info { commit, sizes: info.get("siblings")?.as_array()?.iter().filter_map(file).collect() })
    }
}

/// Whether an error that the crate met while copying came from the server's side, not the disk's.
fn is_of_the_connection(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<ureq::Error>())
        || matches!(
            error.kind(),
            ErrorKind::UnexpectedEof
                | ErrorKind::ConnectionReset
                | ErrorKind::ConnectionAborted
                | ErrorKind::BrokenPipe
                | ErrorKind::TimedOut
                | ErrorKind::NetworkDown
                | ErrorKind::NetworkUnreachable
                | ErrorKind::HostUnreachable
        )
}

/// A repository's page, from which people accept licences.
fn page(repo: &ApiRepo) -> String {
    let url = repo.url("");
    url.rsplit_once("/resolve/").map_or(url.clone(), |(page, _)| page.to_owned())
}

/// Whether a name from the server is a path that stays below the folder it is joined to.
fn stays_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, Component::Normal(_))) && !name.contains(['\\', ':'])
}

/// One commit of a repository on the hub.
pub(super) struct Fetched<'a> {
    remote: &'a Remote<'a>,
    id: String,
    commit: String,
    revision: String,
    files: Vec<String>,
    sizes: BTreeMap<String, Option<u64>>,
    folder: PathBuf,
    /// The repository at this commit.
    repo: ApiRepo,
    blobs: CacheRepo,
    /// The repository at the revision asked for.
    asked: CacheRepo,
}

impl Snapshot for Fetched<'_> {
    fn files(&self) -> &[String] {
        &self.files
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, HubError> {
        let place = self.folder.join(name);
        if !place.is_file() {
            self.remote.again_if_passing(|| self.download(name, &place))?;
        }
        Ok(place)
    }

    fn missing(&self, name: &str, advice: &str) -> HubError {
        let reason = format!("has no {name}; {advice}");
        HubError::Unusable { id: self.id.clone(), reason }
    }
}

impl Fetched<'_> {
    /// Notes in the cache which commit the revision is; done last, so that offline use finds whole copies.
    pub(super) fn keep(&self) -> Result<(), HubError> {
        let failed = |source| HubError::Cache { path: self.folder.clone(), source };
        self.asked.create_ref(&self.commit).map_err(failed)?;
        // The crate noted the commit under its own name; Python's client does not, and would list it as a branch.
        if self.revision != self.commit
            && let Some(root) = self.folder.parent().and_then(Path::parent)
        {
            let _ = std::fs::remove_file(root.join("refs").join(&self.commit));
        }
        Ok(())
    }

    fn download(&self, name: &str, place: &Path) -> Result<(), HubError> {
        let url = self.repo.url(name);
        let explain = |error| self.remote.explain(error, &self.id, &url, &page(&self.repo));
        let metadata = self.remote.api.metadata(&url).map_err(explain)?;
        self.check(&metadata, &url)?;
        let blob = self.blobs.blob_path(metadata.etag());
        // The size in the answer to a file's request is that of a compressed form where the server sends one.
        let answered = metadata.size() as u64;
        let size = self.sizes.get(name).copied().flatten().unwrap_or(answered);
        if length(&blob) == Some(size) && link(&blob, place) {
            return Ok(());
        }
        let rest = blob.with_extension("part");
        if length(&rest).is_some_and(|length| length >= answered) {
            // Nothing is left to ask for, which servers refuse (416); it was never renamed, so do not trust it.
            let failed = |source| HubError::Cache { path: rest.clone(), source };
            std::fs::remove_file(&rest).map_err(failed)?;
        }
        let report = Report::new(name, self.remote.progress);
        self.repo.download_with_progress(name, report).map_err(explain)?;
        // Some servers ignore ranges, and a body without a length ends where the connection does.
        match length(place) {
            Some(length) if length == size => Ok(()),
            length => {
                let _ = std::fs::remove_file(place);
                let _ = std::fs::remove_file(&blob);
                let reason = format!("got {} bytes of {size}", length.unwrap_or(0));
                Err(HubError::Interrupted { url, reason })
            }
        }
    }

    /// Both become parts of paths in the cache, and the file must be of the commit asked for.
    fn check(&self, metadata: &Metadata, url: &str) -> Result<(), HubError> {
        let reason = if metadata.commit_hash() != self.commit {
            format!("it sends commit {:?} instead of {}", metadata.commit_hash(), self.commit)
        } else if !stays_inside(metadata.etag()) || metadata.etag().contains('.') {
            format!("its etag is {:?}", metadata.etag())
        } else {
            return Ok(());
        };
        Err(HubError::BadAnswer { url: url.to_owned(), reason })
    }
}

fn length(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// Makes `place` (`snapshots/COMMIT/...`) a link to a blob that another commit brought. Whether it worked: if not, the
/// file is downloaded again.
#[cfg(unix)]
fn link(blob: &Path, place: &Path) -> bool {
    let Some(root) = blob.ancestors().find(|root| place.starts_with(root)) else {
        return false;
    };
    let (Ok(blob), Ok(below)) = (blob.strip_prefix(root), place.strip_prefix(root)) else {
        return false;
    };
    let up: PathBuf = below.components().skip(1).map(|_| Component::ParentDir).collect();
    let made = || {
        std::fs::create_dir_all(place.parent().unwrap_or(root))?;
        std::os::unix::fs::symlink(up.join(blob), place)
    };
    made().is_ok() && place.is_file()
}

#[cfg(not(unix))]
fn link(_: &Path, _: &Path) -> bool {
    false
}

/// Passes the crate's progress on, not more often than a reader can follow.
struct Report<'a> {
    name: &'a str,
    progress: &'a dyn Progress,
    done: u64,
    total: u64,
    last: Option<Instant>,
}

impl<'a> Report<'a> {
    fn new(name: &'a str, progress: &'a dyn Progress) -> Self {
        Report { name, progress, done: 0, total: 0, last: None }
    }
}

impl hf_hub::api::Progress for Report<'_> {
    fn init(&mut self, size: usize, _: &str) {
        self.done = 0;
        self.total = size as u64;
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        let due = self.last.is_none_or(|last| last.elapsed() >= REPORT);
        if due && self.done < self.total {
            self.last = Some(Instant::now());
            self.progress.file(self.name, self.done, self.total);
        }
    }

    fn finish(&mut self) {
        self.progress.file(self.name, self.done, self.total);
    }
}
