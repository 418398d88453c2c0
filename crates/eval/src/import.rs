//! Results and samples of lm-evaluation-harness as a row: another engine's answers to the same requests.

use std::fs;
use std::path::Path;

use microscale_model::Divergence;
use serde_json::Value;

use crate::Error;
use crate::metrics::{Estimate, TaskScore};
use crate::runner::{Answer, RowAnswers, TaskAnswers};
use crate::tasks::{Document, Metric, Task};

/// Another engine's run.
#[derive(Clone, Debug, PartialEq)]
pub struct Imported {
    /// The model's name, or the folder's.
    pub name: String,
    /// Scores by task, of the tasks it has.
    pub scores: Vec<(String, TaskScore)>,
    /// Its answers by document, in the order of the tasks asked for; without any where it has no samples of a task.
    pub answers: RowAnswers,
}

/// Reads the newest `results_*.json` and `samples_<task>_*.jsonl` of a folder, for the tasks given. Samples count before
/// results, which have no documents to compare.
///
/// # Errors
/// A file that cannot be read; samples of other documents or prompts than the tasks'; neither results nor samples.
pub fn read_harness(folder: &Path, tasks: &[Task]) -> Result<Imported, Error> {
    let files = names(folder)?;
    let newest = |prefix: &str, suffix: &str| {
        let dated = |name: &&String| {
            let rest = name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(suffix));
            rest.is_some_and(|date| date.starts_with(|c: char| c.is_ascii_digit()))
        };
        files.iter().filter(dated).max().map(|name| folder.join(name))
    };
    let results = match newest("results_", ".json") {
        Some(path) => parse(&path, &read(&path)?, 0)?,
        None => Value::Null,
    };
    let mut imported = Imported {
        name: results["model_name"].as_str().map_or_else(|| folder.display().to_string(), str::to_owned),
        scores: Vec::new(),
        answers: RowAnswers { row: usize::MAX, tasks: Vec::new() },
    };
    for task in tasks {
        let documents = match newest(&format!("samples_{}_", task.name), ".jsonl") {
            Some(path) => samples(&path, task)?,
            None => vec![None; task.documents.len()],
        };
        let score = task.score(&documents);
        let score = if score.n > 0 { Some(score) } else { reported(&results, task) };
        imported.scores.extend(score.map(|score| (task.name.clone(), score)));
        let divergence = Divergence::default();
        imported.answers.tasks.push(TaskAnswers { task: task.name.clone(), documents, divergence });
    }
    if imported.scores.is_empty() {
        let reason = "no results_*.json or samples_<task>_*.jsonl of the tasks of this table; give the folder that \
                      lm-eval wrote them to";
        return Err(Error::File { file: folder.display().to_string(), reason: reason.to_owned() });
    }
    Ok(imported)
}

fn names(folder: &Path) -> Result<Vec<String>, Error> {
    let error = |source| Error::Read { path: folder.to_owned(), source };
    let entries = fs::read_dir(folder).map_err(error)?;
    entries.map(|entry| Ok(entry.map_err(error)?.file_name().to_string_lossy().into_owned())).collect()
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })
}

fn parse(path: &Path, text: &str, line: usize) -> Result<Value, Error> {
    serde_json::from_str(text).map_err(|e| record(path, line, format!("no JSON: {e}")))
}

fn record(path: &Path, line: usize, reason: String) -> Error {
    Error::Record { file: path.display().to_string(), line: line + 1, reason }
}

/// What a results file says of a task.
fn reported(results: &Value, task: &Task) -> Option<TaskScore> {
    let own = &results["results"][&task.name];
    let estimate = |metric: Metric| {
        let value = own[format!("{},none", metric.name())].as_f64()?;
        Some(Estimate { value, stderr: own[format!("{}_stderr,none", metric.name())].as_f64() })
    };
    let n = results["n-samples"][&task.name]["effective"].as_u64()? as usize;
    let has_norm = task.definition.metrics().contains(&Metric::AccNorm);
    Some(TaskScore { n, acc: estimate(Metric::Acc)?, acc_norm: estimate(Metric::AccNorm).filter(|_| has_norm) })
}

/// The answers of a samples file, by document of the task.
fn samples(path: &Path, task: &Task) -> Result<Vec<Option<Vec<Answer>>>, Error> {
    let mut documents = vec![None; task.documents.len()];
    for (line, text) in read(path)?.lines().enumerate().filter(|(_, text)| !text.trim().is_empty()) {
        let sample = parse(path, text, line)?;
        let id = sample["doc_id"].as_u64().ok_or_else(|| record(path, line, "`doc_id` is missing".to_owned()))?;
        // The table may have been limited to fewer.
        if let Some(document) = task.documents.get(id as usize) {
            documents[id as usize] = Some(answers(&sample, document).map_err(|reason| record(path, line, reason))?);
        }
    }
    Ok(documents)
}

/// The answers of one sample, whose prompts must be the document's.
fn answers(sample: &Value, document: &Document) -> Result<Vec<Answer>, String> {
    let responses = sample["filtered_resps"].as_array().ok_or("`filtered_resps` is missing")?;
    if responses.len() != document.choices.len() {
        return Err(format!("{} responses to {} choices", responses.len(), document.choices.len()));
    }
    let arguments = &sample["arguments"];
    for choice in 0..responses.len() {
        // A map of maps, in older files a list of pairs.
        let named = &arguments[format!("gen_args_{choice}")];
        let pair = if named.is_null() {
            [&arguments[choice][0], &arguments[choice][1]]
        } else {
            [&named["arg_0"], &named["arg_1"]]
        };
        let own = [document.context(choice).to_owned(), document.continuation(choice)];
        if pair.map(Value::as_str) != [Some(own[0].as_str()), Some(own[1].as_str())] {
            return Err(format!(
                "choice {choice} was asked as {} {}, here it is {:?} {:?}; the same data and --num-fewshot are needed",
                pair[0], pair[1], own[0], own[1]
            ));
        }
    }
    let answer = |response: &Value| {
        let number = |value: &Value| value.as_f64().or_else(|| value.as_str()?.parse().ok());
        let greedy = |value: &Value| value.as_bool().unwrap_or(value.as_str() == Some("True"));
        let log_likelihood = number(&response[0]).ok_or_else(|| format!("{response} is no response"))?;
        Ok(Answer { log_likelihood, greedy: greedy(&response[1]) })
    };
    responses.iter().map(answer).collect()
}
