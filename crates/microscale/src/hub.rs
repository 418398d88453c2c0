//! Models and data sets from the Hugging Face hub, kept in the cache that Python's `huggingface_hub` uses too.
//!
//! A file that is in the cache is not fetched again; `HF_HOME`, `HF_HUB_CACHE`, `HF_TOKEN`, `HF_ENDPOINT` and
//! `HF_HUB_OFFLINE` are honoured as there. Without the cargo feature `download` every request is refused with an error
//! that says so.

#[cfg(feature = "download")]
mod cached;
mod error;
#[cfg(feature = "download")]
mod remote;
#[cfg(feature = "download")]
mod select;
mod settings;

use std::path::{Path, PathBuf};

pub use error::HubError;
pub use settings::Settings;

/// Told how a download goes on. A file that is in the cache already is not reported.
pub trait Progress {
    /// `done` of `total` bytes of the file `name` are here; at most ten times a second, and once at the end. A download
    /// that resumes begins with what was here before.
    fn file(&self, name: &str, done: u64, total: u64);

    /// One line that the user should read.
    fn note(&self, line: &str) {
        let _ = line;
    }
}

/// Says nothing.
impl Progress for () {
    fn file(&self, _: &str, _: u64, _: u64) {}
}

/// Whether an argument is meant as a hub id: `owner/name` or `owner/name@revision`, and no file or folder here.
pub fn looks_like_hub_id(argument: &str) -> bool {
    Id::parse(argument).is_ok() && !Path::new(argument).exists()
}

/// Fetches what running a model takes: `config.json`, the tokenizer's files and the safetensors weights.
///
/// `id` is `owner/name`, or `owner/name@revision` for a branch, tag or commit. Answers with the folder that holds them.
///
/// # Errors
/// Each says what failed and what to do. After an interruption another call goes on where this one stopped.
pub fn model(id: &str, settings: &Settings, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    let id = Id::parse(id)?;
    #[cfg(feature = "download")]
    return select::model(&id, settings, progress);
    #[cfg(not(feature = "download"))]
    refuse(&id.name, settings, progress)
}

/// Fetches the scored split of a task's data set.
///
/// Answers with the files, each under a path that names task, configuration and split, which is how
/// [`Catalog`](microscale_eval::Catalog) recognises it, and the place where it lies.
///
/// # Errors
/// `task` is not one of [`tasks`]; otherwise as for [`model`].
pub fn dataset(task: &str, settings: &Settings, progress: &dyn Progress) -> Result<Vec<(String, PathBuf)>, HubError> {
    files(data(task)?, settings, progress)
}

/// The same for its training split, which examples are drawn from.
///
/// # Errors
/// As for [`dataset`].
pub fn examples(task: &str, settings: &Settings, progress: &dyn Progress) -> Result<Vec<(String, PathBuf)>, HubError> {
    files(&Data { split: "train", ..*data(task)? }, settings, progress)
}

fn data(task: &str) -> Result<&'static Data, HubError> {
    DATA.iter()
        .find(|data| data.task == task)
        .ok_or_else(|| HubError::UnknownTask { task: task.to_owned(), known: tasks().collect::<Vec<_>>().join(", ") })
}

fn files(data: &Data, settings: &Settings, progress: &dyn Progress) -> Result<Vec<(String, PathBuf)>, HubError> {
    #[cfg(feature = "download")]
    return select::dataset(data, settings, progress);
    #[cfg(not(feature = "download"))]
    refuse(data.id, settings, progress)
}

/// The tasks that [`dataset`] knows.
pub fn tasks() -> impl Iterator<Item = &'static str> {
    DATA.iter().map(|data| data.task)
}

#[cfg(not(feature = "download"))]
fn refuse<T>(id: &str, _: &Settings, _: &dyn Progress) -> Result<T, HubError> {
    Err(HubError::NotBuiltIn { id: id.to_owned() })
}

/// The data set of a task.
#[cfg_attr(not(feature = "download"), expect(dead_code, reason = "read by the download only"))]
struct Data {
    task: &'static str,
    id: &'static str,
    /// What the paths of its files contain, where the data set holds several.
    config: Option<&'static str>,
    /// The split wanted: in the list below, the one that is scored.
    split: &'static str,
}

/// Ids, configurations and splits are those of lm-eval, so that both score the same documents.
const DATA: [Data; 5] = [
    Data { task: "piqa", id: "baber/piqa", config: None, split: "validation" },
    Data { task: "arc_easy", id: "allenai/ai2_arc", config: Some("ARC-Easy"), split: "test" },
    Data { task: "arc_challenge", id: "allenai/ai2_arc", config: Some("ARC-Challenge"), split: "test" },
    Data { task: "hellaswag", id: "Rowan/hellaswag", config: None, split: "validation" },
    Data { task: "winogrande", id: "allenai/winogrande", config: Some("winogrande_xl"), split: "validation" },
];

/// The branch that a repository's page shows.
const MAIN: &str = "main";

/// A hub id in its parts.
#[cfg_attr(not(feature = "download"), expect(dead_code, reason = "read by the download only"))]
struct Id {
    /// `owner/name`.
    name: String,
    revision: String,
}

impl Id {
    fn parse(text: &str) -> Result<Id, HubError> {
        let (name, revision) = text.split_once('@').unwrap_or((text, MAIN));
        let legal = name.split_once('/').is_some_and(|(owner, name)| legal_part(owner) && legal_part(name));
        if !legal || !legal_revision(revision) {
            return Err(HubError::BadId { text: text.to_owned() });
        }
        Ok(Id { name: name.to_owned(), revision: revision.to_owned() })
    }
}

/// The hub's own rules for an owner or a name.
fn legal_part(part: &str) -> bool {
    let edge = |c: char| c == '.' || c == '-';
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    (1..=96).contains(&part.len())
        && part.chars().all(legal)
        && !part.starts_with(edge)
        && !part.ends_with(edge)
        && !part.contains("--")
        && !part.contains("..")
}

/// A revision becomes part of a path in the cache and of a URL, so no more than git's usual names.
fn legal_revision(revision: &str) -> bool {
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(legal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        for id in ["meta-llama/Llama-3.1-8B", "a/b", "a/b@main", "a/b_c@refs/pr/1", "HuggingFaceTB/SmolLM2-135M@v1.0"] {
            assert!(looks_like_hub_id(id), "{id}");
        }
        for path in [
            "demo", "./a", "../a", "a/", "/a", "a/b/c", "a b/c", "a/b@", "a/..", "a--b/c", "~/a", "a\\b/c", "a/b@../x",
            "a/b@x//y", "", "/", "@", "src/hub",
        ] {
            assert!(!looks_like_hub_id(path), "{path}");
        }
    }

    #[cfg(not(feature = "download"))]
    #[test]
    fn without_the_feature_the_error_says_so() {
        let settings = Settings::from_variables(|_| None, Some("/nowhere".into())).unwrap();
        let model = model("owner/name", &settings, &()).unwrap_err().to_string();
        let dataset = dataset("piqa", &settings, &()).unwrap_err().to_string();
        for (error, id) in [(model, "owner/name"), (dataset, "baber/piqa")] {
            assert!(error.contains(id) && error.contains("built without `download`"), "{error}");
        }
    }
}
