//! What the cache holds of a repository.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, Repo};

use super::select::Snapshot;
use super::{HubError, Settings};

/// One commit of a repository, as far as it is in the cache.
pub(super) struct Cached {
    id: String,
    cache: PathBuf,
    folder: PathBuf,
    files: Vec<String>,
}

impl Cached {
    /// What the cache has of `repo`, which may be nothing.
    pub(super) fn open(repo: &Repo, id: &str, settings: &Settings) -> Result<Cached, HubError> {
        let root = settings.cache.join(repo.folder_name());
        let reference = root.join("refs").join(repo.revision());
        let commit = match fs::read_to_string(&reference) {
            Ok(commit) => commit.trim().to_owned(),
            // A commit needs no reference: its folder has its name.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory) => {
                repo.revision().to_owned()
            }
            Err(source) => return Err(HubError::Cache { path: reference, source }),
        };
        let folder = Cache::new(settings.cache.clone()).repo(repo.clone()).pointer_path(&commit);
        let mut files = Vec::new();
        if folder.is_dir() {
            list(&folder, "", &mut files)?;
        }
        files.sort();
        Ok(Cached { id: id.to_owned(), cache: settings.cache.clone(), folder, files })
    }
}

impl Snapshot for Cached {
    fn files(&self) -> &[String] {
        &self.files
    }

    fn folder(&self) -> &Path {
        &self.folder
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, HubError> {
        match self.has(name) {
            true => Ok(self.folder.join(name)),
            false => Err(self.missing(name, "")),
        }
    }

    fn missing(&self, name: &str, _: &str) -> HubError {
        HubError::Offline { id: self.id.clone(), missing: name.to_owned(), cache: self.cache.clone() }
    }
}

/// Adds the files below `folder` to `found`, by `/`-separated path. A link to nothing is no file.
fn list(folder: &Path, above: &str, found: &mut Vec<String>) -> Result<(), HubError> {
    let failed = |source| HubError::Cache { path: folder.to_owned(), source };
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let name = format!("{above}{name}");
        if path.is_file() {
            found.push(name);
        } else if path.is_dir() && !path.is_symlink() {
            list(&path, &format!("{name}/"), found)?;
        }
    }
    Ok(())
}
