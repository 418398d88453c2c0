//! Which files of a repository are needed.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hf_hub::{Repo, RepoType};
use serde_json::Value;

use super::cached::Cached;
use super::remote::Remote;
use super::{Data, HubError, Id, MAIN, Progress, Settings};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Small files that are taken where a model has them.
const SMALL: [&str; 4] =
    ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"];

/// Where the hub keeps a Parquet copy of every data set, also of those that consist of a script.
const CONVERTED: &str = "refs/convert/parquet";

/// One commit of a repository: on the hub or in the cache.
pub(super) trait Snapshot {
    /// All files by `/`-separated path, in order.
    fn files(&self) -> &[String];

    /// The folder in the cache.
    fn folder(&self) -> &Path;

    /// Brings a file into the folder; answers with its place.
    fn fetch(&self, name: &str) -> Result<PathBuf, HubError>;

    /// The error for a needed file that is not among the files.
    fn missing(&self, name: &str, advice: &str) -> HubError;

    fn has(&self, name: &str) -> bool {
        self.files().iter().any(|file| file == name)
    }
}

/// The folder with a model.
pub(super) fn model(id: &Id, settings: &Settings, progress: &dyn Progress) -> Result<PathBuf, HubError> {
    let repo = Repo::with_revision(id.name.clone(), RepoType::Model, id.revision.clone());
    let cached = || model_files(&Cached::open(&repo, &id.name, settings)?);
    let fetched = || {
        let remote = Remote::new(settings, progress)?;
        let snapshot = remote.open(&repo, &id.name)?;
        let folder = model_files(&snapshot)?;
        snapshot.keep()?;
        Ok(folder)
    };
    either(&id.name, settings, progress, cached, fetched)
}

/// The files of a task's data set.
pub(super) fn dataset(
    data: &Data,
    settings: &Settings,
    progress: &dyn Progress,
) -> Result<Vec<(String, PathBuf)>, HubError> {
    let repos = [MAIN, CONVERTED]
        .map(|revision| Repo::with_revision(data.id.to_owned(), RepoType::Dataset, revision.to_owned()));
    let cached = || {
        for repo in &repos {
            let files = data_files(&Cached::open(repo, data.id, settings)?, data)?;
            if !files.is_empty() {
                return Ok(files);
            }
        }
        let missing = format!("the {} split for {}", data.split, data.task);
        Err(HubError::Offline { id: data.id.to_owned(), missing, cache: settings.cache.clone() })
    };
    let fetched = || {
        let remote = Remote::new(settings, progress)?;
        for repo in &repos {
            let snapshot = match remote.open(repo, data.id) {
                // Not every data set has a converted copy; then the message below says what is wrong.
                Err(HubError::NoRevision { .. }) => continue,
                snapshot => snapshot?,
            };
            let files = data_files(&snapshot, data)?;
            if !files.is_empty() {
                snapshot.keep()?;
                return Ok(files);
            }
        }
        let reason = format!(
            "no Parquet or JSONL file of the {} split for {}, neither on {MAIN} nor on {CONVERTED}; \
             give a folder of task files with --data",
            data.split, data.task
        );
        Err(HubError::Unusable { id: data.id.to_owned(), reason })
    };
    either(data.id, settings, progress, cached, fetched)
}

/// From the cache alone when offline, otherwise from the hub; and when that cannot be reached, a complete copy in the
/// cache does too.
fn either<T>(
    id: &str,
    settings: &Settings,
    progress: &dyn Progress,
    cached: impl Fn() -> Result<T, HubError>,
    fetched: impl Fn() -> Result<T, HubError>,
) -> Result<T, HubError> {
    if settings.offline {
        return cached();
    }
    let error = match fetched() {
        Err(error) if error.is_passing() => error,
        result => return result,
    };
    let Ok(copy) = cached() else {
        return Err(error);
    };
    progress.note(&format!("{id}: using the copy in the cache; {error}"));
    Ok(copy)
}

fn model_files(snapshot: &dyn Snapshot) -> Result<PathBuf, HubError> {
    // Small files first: what is wrong with a repository shows before gigabytes are fetched.
    if !snapshot.has("config.json") {
        return Err(snapshot.missing("config.json", "give a model in the format of transformers"));
    }
    let present = SMALL.into_iter().filter(|name| snapshot.has(name));
    for name in std::iter::once("config.json").chain(present) {
        snapshot.fetch(name)?;
    }
    // A single file comes before an index, as in transformers.
    if snapshot.has(SINGLE) {
        snapshot.fetch(SINGLE)?;
    } else if snapshot.has(INDEX) {
        let names = shard_names(&snapshot.fetch(INDEX)?)?;
        if let Some(name) = names.iter().find(|name| !snapshot.has(name)) {
            return Err(snapshot.missing(name, "its index names that file, so the repository is incomplete"));
        }
        for name in &names {
            snapshot.fetch(name)?;
        }
    } else {
        let advice = "only safetensors weights can be read; convert the model with transformers' save_pretrained";
        return Err(snapshot.missing(SINGLE, advice));
    }
    Ok(snapshot.folder().to_owned())
}

/// The files that an index names. They are compared with the repository's list, which holds no path that leads out.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, HubError> {
    let bytes = std::fs::read(index).map_err(|source| HubError::Cache { path: index.to_owned(), source })?;
    let root: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let names = root.get("weight_map").and_then(Value::as_object).map(|map| map.values());
    let names = names.and_then(|names| names.map(|name| name.as_str().map(str::to_owned)).collect());
    names.ok_or_else(|| HubError::Unusable {
        id: index.display().to_string(),
        reason: "not an index of weights (no weight_map of file names); delete the file and run again".to_owned(),
    })
}

fn data_files(snapshot: &dyn Snapshot, data: &Data) -> Result<Vec<(String, PathBuf)>, HubError> {
    let names = data_names(snapshot.files(), data)?;
    names.into_iter().map(|(relative, name)| Ok((relative, snapshot.fetch(name)?))).collect()
}

/// The files of the scored split, each with the path under which it is recognised.
fn data_names<'a>(files: &'a [String], data: &Data) -> Result<Vec<(String, &'a str)>, HubError> {
    let wanted = |extension: &str| -> Vec<&'a str> {
        let names = files.iter().map(String::as_str);
        names.filter(|name| has_extension(name, extension) && is_of_split(name, data)).collect()
    };
    let mut extension = "parquet";
    let mut names = wanted(extension);
    if names.is_empty() {
        extension = "jsonl";
        names = wanted(extension);
    }
    let folders: BTreeSet<&str> = names.iter().map(|name| folder(name)).collect();
    if let (Some(first), Some(last)) = (folders.first(), folders.last())
        && first != last
    {
        let reason = format!(
            "holds several data sets for {}: {first:?} and {last:?}; download one and give its folder with --data",
            data.task
        );
        return Err(HubError::Unusable { id: data.id.to_owned(), reason });
    }
    let count = names.len();
    let named = |(index, name): (usize, &'a str)| {
        let file = name.rsplit('/').next().unwrap_or(name);
        // Converted files are called validation/0000.parquet.
        let file = match file.starts_with(data.split) {
            true => file.to_owned(),
            false => format!("{}-{index:05}-of-{count:05}.{extension}", data.split),
        };
        let folders = [data.task, folder(name)].into_iter().filter(|folder| !folder.is_empty());
        (folders.chain([file.as_str()]).collect::<Vec<_>>().join("/"), name)
    };
    Ok(names.into_iter().enumerate().map(named).collect())
}

fn folder(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(folder, _)| folder)
}

fn has_extension(name: &str, wanted: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, extension)| extension.eq_ignore_ascii_case(wanted))
}

/// Whether a file is of the scored split: its name says so, or, where that names no split, its folder.
fn is_of_split(name: &str, data: &Data) -> bool {
    if data.config.is_some_and(|config| !name.contains(config)) {
        return false;
    }
    let mut parts = name.rsplit('/');
    let file = parts.next().and_then(|file| file.rsplit_once('.')).map_or("", |(stem, _)| stem);
    let folder = parts.next().unwrap_or("");
    split_in(file).or_else(|| split_in(folder)) == Some(data.split)
}

/// The split that a file's or folder's name tells.
fn split_in(name: &str) -> Option<&'static str> {
    let mut words = name.split(|c: char| !c.is_ascii_alphanumeric());
    // `partial-validation`: the hub converted only the beginning.
    if name.starts_with("partial-") {
        return Some("partial");
    }
    words.find_map(|word| ["test", "validation", "train"].into_iter().find(|split| *split == word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::DATA;

    fn names(task: &str, files: &[&str]) -> Result<Vec<String>, HubError> {
        let data = DATA.iter().find(|data| data.task == task).unwrap();
        let files: Vec<String> = files.iter().map(|&file| file.to_owned()).collect();
        Ok(data_names(&files, data)?.into_iter().map(|(relative, name)| format!("{relative} = {name}")).collect())
    }

    #[test]
    fn split_and_configuration_are_found_in_every_layout() {
        let arc = [
            "ARC-Challenge/test-00000-of-00001.parquet",
            "ARC-Challenge/train-00000-of-00001.parquet",
            "ARC-Easy/test-00000-of-00001.parquet",
            "README.md",
        ];
        let easy = "ARC-Easy/test-00000-of-00001.parquet";
        assert_eq!(names("arc_easy", &arc).unwrap(), [format!("arc_easy/{easy} = {easy}")]);
        let converted = [
            "winogrande_l/validation/0000.parquet",
            "winogrande_xl/train/0000.parquet",
            "winogrande_xl/validation/0000.parquet",
            "winogrande_xl/validation/0001.parquet",
        ];
        assert_eq!(
            names("winogrande", &converted).unwrap(),
            [
                "winogrande/winogrande_xl/validation/validation-00000-of-00002.parquet = winogrande_xl/validation/0000.parquet",
                "winogrande/winogrande_xl/validation/validation-00001-of-00002.parquet = winogrande_xl/validation/0001.parquet",
            ]
        );
        let flat = ["piqa-test.parquet", "piqa-validation.parquet", "validation.jsonl"];
        assert_eq!(names("piqa", &flat).unwrap(), ["piqa/validation-00000-of-00001.parquet = piqa-validation.parquet"]);
        assert_eq!(names("piqa", &["validation.jsonl"]).unwrap(), ["piqa/validation.jsonl = validation.jsonl"]);
        let none = ["piqa.py", "partial-validation/0000.parquet", "test/0000.parquet", "validation.csv"];
        assert!(names("piqa", &none).unwrap().is_empty());
    }

    #[test]
    fn two_data_sets_are_not_mixed() {
        let error = names("hellaswag", &["a/validation.parquet", "b/validation.parquet"]).unwrap_err().to_string();
        assert!(error.contains("\"a\" and \"b\""), "{error}");
    }
}
