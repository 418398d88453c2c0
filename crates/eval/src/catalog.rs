//! Finds the data of each task among files, and reads it.

use sha2::{Digest, Sha256};

use crate::Error;
use crate::digest::hex;
use crate::files::{File, Files};
use crate::record::{Record, read_records, text_lines};
use crate::tasks::{BUILT_IN, CUSTOM, Definition, Document, Task};

/// The tasks that a set of files holds.
#[derive(Clone, Debug)]
pub struct Catalog {
    files: Files,
    candidates: Vec<Candidate>,
}

/// One data set that claims to be a task.
#[derive(Clone, Debug)]
struct Candidate {
    task: String,
    definition: &'static Definition,
    part: Part,
    /// Indices into the files: the records, in order of their shards.
    files: Vec<usize>,
}

/// What a data set of a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Its documents are scored.
    Scored,
    /// Its documents are examples before those that are scored.
    Examples,
}

/// The authors' release, by file name. Two of the names are common ones, so a field of the first record must agree.
const AUTHORS_FILES: [(&str, &str, Option<&str>, Part); 11] = [
    ("valid.jsonl", "piqa", Some("goal"), Part::Scored),
    ("ARC-Easy-Test.jsonl", "arc_easy", None, Part::Scored),
    ("ARC-Challenge-Test.jsonl", "arc_challenge", None, Part::Scored),
    ("hellaswag_val.jsonl", "hellaswag", None, Part::Scored),
    ("hellaswag_val.query-choices-gold.jsonl", "hellaswag", None, Part::Scored),
    ("dev.jsonl", "winogrande", Some("sentence"), Part::Scored),
    ("train.jsonl", "piqa", Some("goal"), Part::Examples),
    ("ARC-Easy-Train.jsonl", "arc_easy", None, Part::Examples),
    ("ARC-Challenge-Train.jsonl", "arc_challenge", None, Part::Examples),
    ("hellaswag_train.jsonl", "hellaswag", None, Part::Examples),
    ("train_xl.jsonl", "winogrande", Some("sentence"), Part::Examples),
];

/// Where PIQA's authors keep the labels, line by line, of which file.
const PIQA_LABELS: [(&str, &str); 2] = [("valid.jsonl", "valid-labels.lst"), ("train.jsonl", "train-labels.lst")];

/// Configurations of WinoGrande that repeat the validation split of `winogrande_xl`.
const OTHER_WINOGRANDE: [&str; 5] =
    ["winogrande_xs", "winogrande_s", "winogrande_m", "winogrande_l", "winogrande_debiased"];

impl Catalog {
    /// Looks through `files` by name; of `.jsonl` files whose name says nothing, the first line is read.
    ///
    /// # Errors
    /// A file cannot be read. What is wrong with a task's data shows when it is loaded.
    pub fn discover(files: Files) -> Result<Self, Error> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (index, file) in files.list().iter().enumerate() {
            let Some((task, definition, part)) = claim(file)? else {
                continue;
            };
            let sibling = candidates.iter_mut().find(|candidate| {
                let first = &files.list()[candidate.files[0]];
                candidate.task == task
                    && candidate.part == part
                    && first.folders() == file.folders()
                    && same_shards(first.name(), file.name())
            });
            match sibling {
                Some(candidate) => candidate.files.push(index),
                None => candidates.push(Candidate { task, definition, part, files: vec![index] }),
            }
        }
        Ok(Catalog { files, candidates })
    }

    /// The tasks found: the built-in ones in the order of the published table, then custom ones by name.
    pub fn names(&self) -> Vec<String> {
        let scored = || self.candidates.iter().filter(|candidate| candidate.part == Part::Scored);
        let found = |name: &str| scored().any(|candidate| candidate.task == name);
        let mut names: Vec<String> =
            BUILT_IN.iter().map(|task| task.name).filter(|name| found(name)).map(str::to_owned).collect();
        let mut custom: Vec<String> =
            scored().map(|candidate| candidate.task.clone()).filter(|name| !names.contains(name)).collect();
        custom.sort();
        custom.dedup();
        names.append(&mut custom);
        names
    }

    /// Reads the task called `name`.
    ///
    /// # Errors
    /// No file holds it, several data sets claim to be it, or a record is unusable; each with the file and line.
    pub fn load(&self, name: &str) -> Result<Task, Error> {
        let candidate = self.candidate(name, Part::Scored)?.ok_or_else(|| self.missing(name))?;
        let Read { documents, sources, sha256 } = self.read(candidate)?;
        Ok(Task {
            name: name.to_owned(),
            definition: candidate.definition,
            available: documents.len(),
            documents,
            sources,
            sha256,
            shots: 0,
        })
    }

    /// Reads the documents that examples of the task called `name` are drawn from: its training split.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn examples(&self, name: &str) -> Result<Vec<Document>, Error> {
        let Some(candidate) = self.candidate(name, Part::Examples)? else {
            let authors = AUTHORS_FILES.iter().find(|(_, task, _, part)| *task == name && *part == Part::Examples);
            let accepted = match authors {
                Some((file, ..)) => format!("{file}, or train*.parquet or .jsonl in a folder of the task's name"),
                None => "nothing: a task of one's own has no examples".to_owned(),
            };
            let task = format!("{name} (examples)");
            return Err(Error::MissingTask { task, place: self.files.place().to_owned(), accepted });
        };
        Ok(self.read(candidate)?.documents)
    }

    /// The one data set of a part of a task.
    fn candidate(&self, name: &str, part: Part) -> Result<Option<&Candidate>, Error> {
        let mut claims = self.candidates.iter().filter(|candidate| candidate.task == name && candidate.part == part);
        match (claims.next(), claims.next()) {
            (Some(first), Some(second)) => Err(Error::AmbiguousTask {
                task: name.to_owned(),
                first: self.label(first),
                second: self.label(second),
            }),
            (found, _) => Ok(found),
        }
    }

    fn read(&self, candidate: &Candidate) -> Result<Read, Error> {
        self.refuse_borrowed_name(candidate)?;
        self.refuse_missing_shards(candidate)?;
        let mut hash = Sha256::new();
        let mut sources = Vec::new();
        let mut documents = Vec::new();
        for &index in &candidate.files {
            let file = &self.files.list()[index];
            let labels = self.piqa_labels(&candidate.task, index)?;
            for source in std::iter::once(file).chain(labels) {
                hash.update(&*source.read()?);
                sources.push(source.label.clone());
            }
            let mut records = read_records(file)?;
            if let Some(labels) = labels {
                join_labels(file, labels, &mut records)?;
            }
            for (line, record) in records {
                documents.push(make_document(candidate.definition, record).map_err(|reason| Error::Record {
                    file: file.label.clone(),
                    line,
                    reason,
                })?);
            }
        }
        Ok(Read { documents, sources, sha256: hex(&hash.finalize()) })
    }

    fn label(&self, candidate: &Candidate) -> String {
        self.files.list()[candidate.files[0]].label.clone()
    }

    /// The error for a task without data; a file of the right name but the wrong content is named in it.
    fn missing(&self, name: &str) -> Error {
        let definition = BUILT_IN.into_iter().find(|task| task.name == name);
        let stray_name = AUTHORS_FILES.iter().find(|(_, task, ..)| *task == name).map(|(file, ..)| (*file).to_owned());
        let stray_name = stray_name.unwrap_or_else(|| format!("{name}.jsonl"));
        let stray = self.files.list().iter().find(|file| file.name() == stray_name);
        let mut accepted = match definition {
            Some(task) => task.accepted.to_owned(),
            None => CUSTOM.accepted.replace("NAME", name),
        };
        if let Some(file) = stray {
            accepted += &format!("; {} lacks those fields in its first line", file.label);
        }
        Error::MissingTask { task: name.to_owned(), place: self.files.place().to_owned(), accepted }
    }

    /// A custom file called, say, `winogrande.jsonl` would be reported as WinoGrande without being it.
    fn refuse_borrowed_name(&self, candidate: &Candidate) -> Result<(), Error> {
        let borrowed = candidate.definition == &CUSTOM && BUILT_IN.iter().any(|task| task.name == candidate.task);
        if !borrowed {
            return Ok(());
        }
        let reason = format!("a custom task cannot be called `{}`, which is a built-in one; rename it", candidate.task);
        Err(Error::File { file: self.label(candidate), reason })
    }

    fn refuse_missing_shards(&self, candidate: &Candidate) -> Result<(), Error> {
        let first = &self.files.list()[candidate.files[0]];
        match shard(first.name()) {
            Some(shard) if shard.count != candidate.files.len() => Err(Error::File {
                file: first.label.clone(),
                reason: format!("{} of {} parts are here; bring the others", candidate.files.len(), shard.count),
            }),
            _ => Ok(()),
        }
    }

    /// The labels file beside PIQA's `valid.jsonl` or `train.jsonl`, where file `index` is that.
    fn piqa_labels(&self, task: &str, index: usize) -> Result<Option<&File>, Error> {
        let file = &self.files.list()[index];
        let labels = PIQA_LABELS.into_iter().find(|(name, _)| task == "piqa" && file.name() == *name);
        let Some((_, labels)) = labels else { return Ok(None) };
        let beside = |other: &&File| other.name() == labels && other.folders() == file.folders();
        let found = self.files.list().iter().find(beside);
        if found.is_none() && !first_record(file)?.is_some_and(|record| record.has("label")) {
            let reason = format!("the labels are missing; put {labels} beside it");
            return Err(Error::File { file: file.label.clone(), reason });
        }
        Ok(found)
    }
}

/// The documents of a data set.
struct Read {
    documents: Vec<Document>,
    sources: Vec<String>,
    sha256: String,
}

/// Which task a file belongs to, if any, and which part of it.
fn claim(file: &File) -> Result<Option<(String, &'static Definition, Part)>, Error> {
    let name = file.name();
    let lower = name.to_ascii_lowercase();
    let Some((stem, extension)) = name.rsplit_once('.') else {
        return Ok(None);
    };
    let jsonl = extension.eq_ignore_ascii_case("jsonl");
    if !jsonl && !extension.eq_ignore_ascii_case("parquet") {
        return Ok(None);
    }
    if let Some((_, task, field, part)) = AUTHORS_FILES.iter().find(|(authors, ..)| *authors == name) {
        let agrees = match field {
            Some(field) => !holds_other_than(file, field)?,
            None => true,
        };
        if agrees {
            return Ok(built_in(task).map(|definition| (definition.name.to_owned(), definition, *part)));
        }
    }
    if let Some(definition) = BUILT_IN.into_iter().find(|definition| folders_name(file.folders(), definition.name)) {
        let ours = lower.starts_with(definition.config.split.name());
        let named = |part| Some((definition.name.to_owned(), definition, part));
        if ours {
            return Ok(named(Part::Scored));
        }
        if lower.starts_with("train") {
            return Ok(named(Part::Examples));
        }
        if lower.starts_with("test") || lower.starts_with("validation") {
            return Ok(None);
        }
    }
    let custom = jsonl && first_record(file)?.is_some_and(|record| record.has("query") && record.has("choices"));
    Ok(custom.then(|| (stem.to_owned(), &CUSTOM, Part::Scored)))
}

fn built_in(name: &str) -> Option<&'static Definition> {
    BUILT_IN.into_iter().find(|definition| definition.name == name)
}

/// Whether one of `folders` is that of the task's data set, as itself or in a Hugging Face cache
/// (`datasets--owner--name`).
fn folders_name(folders: &[String], task: &str) -> bool {
    let plain = |folder: &String| {
        let lower = folder.to_ascii_lowercase().replace('-', "_");
        lower.rsplit("__").next().unwrap_or_default().to_owned()
    };
    let names: Vec<String> = folders.iter().map(plain).collect();
    if task == "winogrande" {
        let other = names.iter().any(|name| OTHER_WINOGRANDE.contains(&name.as_str()));
        return !other && names.iter().any(|name| name == "winogrande" || name == "winogrande_xl");
    }
    names.iter().any(|name| name == task)
}

/// A file name of the form `validation-00000-of-00002.parquet`.
struct Shard<'a> {
    stem: &'a str,
    count: usize,
}

fn shard(name: &str) -> Option<Shard<'_>> {
    let (stem, _) = name.rsplit_once('.')?;
    let (numbered, count) = stem.split_once("-of-")?;
    let (stem, number) = numbered.rsplit_once('-')?;
    number.parse::<usize>().ok()?;
    // Some data sets append a hash: validation-00000-of-00001-abcdef.parquet.
    let count = count.split('-').next()?.parse().ok()?;
    Some(Shard { stem, count })
}

/// Whether two files of one folder are parts of one data set.
fn same_shards(first: &str, second: &str) -> bool {
    match (shard(first), shard(second)) {
        (Some(a), Some(b)) => {
            a.count > 1 && a.stem == b.stem && a.count == b.count && extension(first) == extension(second)
        }
        _ => false,
    }
}

fn extension(name: &str) -> Option<&str> {
    name.rsplit_once('.').map(|(_, extension)| extension)
}

/// The first record of a `.jsonl` file; none where it is empty or malformed.
fn first_record(file: &File) -> Result<Option<Record>, Error> {
    Ok(serde_json::from_slice(&file.first_line()?).ok().map(Record))
}

/// Whether the first record is one that lacks `field`. An empty or malformed file is not: it is taken for what its name
/// says, so that loading it tells what is wrong.
fn holds_other_than(file: &File, field: &str) -> Result<bool, Error> {
    Ok(first_record(file)?.is_some_and(|record| !record.has(field)))
}

fn join_labels(file: &File, labels: &File, records: &mut [(usize, Record)]) -> Result<(), Error> {
    let bytes = labels.read()?;
    let lines = text_lines(labels, &bytes)?;
    if lines.len() != records.len() {
        let reason = format!("{} labels for the {} records of {}", lines.len(), records.len(), file.label);
        return Err(Error::File { file: labels.label.clone(), reason });
    }
    for ((_, record), (line, label)) in records.iter_mut().zip(lines) {
        let label: u64 = label.trim().parse().ok().filter(|&label| label < 2).ok_or_else(|| Error::Record {
            file: labels.label.clone(),
            line,
            reason: format!("a label must be 0 or 1; found {label:?}"),
        })?;
        record.0.insert("label".to_owned(), label.into());
    }
    Ok(())
}

fn make_document(definition: &Definition, record: Record) -> Result<Document, String> {
    (definition.document)((definition.adapt)(record)?)
}
