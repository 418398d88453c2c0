//! Results and samples in the files of lm-evaluation-harness 0.4.13, for the tools that read those.
//!
//! Keys, their order, strings and hashes are the harness's. What this program does not know, or what does not apply to
//! it, is null rather than invented.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::ser::Formatter;
use serde_json::{Map, Value, json};

use crate::Error;
use crate::digest::sha256;
use crate::metrics::{Estimate, TaskScore, Verdict};
use crate::output::write_atomically;
use crate::python_text::float;
use crate::runner::Answer;
use crate::tasks::{Metric, TARGET_DELIMITER, TASK_VERSION, Task};

/// What the files say of a run besides its scores.
#[derive(Clone, Debug, Default)]
pub struct HarnessRun {
    /// What ran the model, lm-eval's `--model`.
    pub model_source: String,
    /// The model, which also names the folder.
    pub model_name: String,
    /// lm-eval's `--model_args`: whatever decides the numbers.
    pub model_args: Map<String, Value>,
    /// Requests scored at a time.
    pub batch_size: Option<usize>,
    /// What computed.
    pub device: Option<String>,
    /// The limit asked for ([`Task::limit`]).
    pub limit: Option<f64>,
    /// Seeds of Python, numpy, torch and few-shot sampling in lm-eval's order, where there are such.
    pub seeds: [Option<u64>; 4],
    /// Revision of this program.
    pub git_hash: Option<String>,
    /// Start of the run, in seconds since 1970.
    pub started: f64,
    /// End of the run as ISO 8601 date and time; it names the files, with `-` for `:`.
    pub date: String,
    /// The tokenizer's EOS token and id.
    pub eos: Option<(String, u32)>,
    /// The tokenizer's BOS token and id.
    pub bos: Option<(String, u32)>,
    /// Longest input in tokens.
    pub max_length: Option<usize>,
    /// How long the run took.
    pub seconds: Option<f64>,
}

/// One task's documents with a row's answers to them.
#[derive(Clone, Copy, Debug)]
pub struct HarnessTask<'a> {
    /// The task.
    pub task: &'a Task,
    /// The answers by document ([`TaskAnswers::documents`](crate::TaskAnswers)).
    pub answers: &'a [Option<Vec<Answer>>],
}

/// Writes `results_<date>.json`, and `samples_<task>_<date>.jsonl` where `log_samples`, into a folder of `folder` named
/// by the model. Returns the paths, the results last.
///
/// # Errors
/// A file cannot be written.
pub fn write_harness_files(
    folder: &Path,
    run: &HarnessRun,
    tasks: &[HarnessTask<'_>],
    log_samples: bool,
) -> Result<Vec<PathBuf>, Error> {
    let folder = folder.join(sanitized(&run.model_name));
    let date = run.date.replace(':', "-");
    let mut paths = Vec::new();
    let mut task_hashes = Map::new();
    if log_samples {
        for task in tasks {
            let (lines, hash) = samples(task);
            let path = folder.join(format!("samples_{}_{date}.jsonl", task.task.name));
            write_atomically(&path, lines.as_bytes())?;
            paths.push(path);
            task_hashes.insert(task.task.name.clone(), hash.into());
        }
    }
    let path = folder.join(format!("results_{date}.json"));
    let text = format!("{:#}", results(run, tasks, task_hashes));
    write_atomically(&path, text.as_bytes())?;
    paths.push(path);
    Ok(paths)
}

/// The model's name as a folder: each run of characters that file systems dislike becomes two underscores.
fn sanitized(model_name: &str) -> String {
    let mut name = String::with_capacity(model_name.len());
    let mut last_replaced = false;
    for c in model_name.chars() {
        let replaced = "\"<>:/|\\?*[]".contains(c);
        match (replaced, last_replaced) {
            (false, _) => name.push(c),
            (true, false) => name.push_str("__"),
            (true, true) => {}
        }
        last_replaced = replaced;
    }
    // These would lead out of the folder.
    if ["", ".", ".."].contains(&name.as_str()) { "__".to_owned() } else { name }
}

/// The lines of a samples file and the hash over them that the results file records.
fn samples(task: &HarnessTask<'_>) -> (String, String) {
    let mut lines = String::new();
    let mut hashes = String::new();
    let verdicts = task.task.verdicts(task.answers);
    for (id, (answers, verdict)) in task.answers.iter().zip(verdicts).enumerate() {
        if let (Some(answers), Some(verdict)) = (answers, verdict) {
            let sample = sample(task.task, id, answers, verdict);
            for key in ["doc_hash", "prompt_hash", "target_hash"] {
                hashes += sample[key].as_str().unwrap_or_default();
            }
            lines += &python_json(&sample);
            lines.push('\n');
        }
    }
    (lines, sha256(&hashes))
}

fn sample(task: &Task, id: usize, answers: &[Answer], verdict: Verdict) -> Value {
    let document = &task.documents[id];
    let arguments: Map<String, Value> = (0..document.choices.len())
        .map(|choice| {
            let pair = json!({ "arg_0": document.context(choice), "arg_1": document.continuation(choice) });
            (format!("gen_args_{choice}"), pair)
        })
        .collect();
    let responses: Vec<[String; 2]> = answers
        .iter()
        .map(|answer| [float(answer.log_likelihood), if answer.greedy { "True" } else { "False" }.to_owned()])
        .collect();
    let repeats: Vec<[&[String; 2]; 1]> = responses.iter().map(|response| [response]).collect();
    let metrics: Vec<&str> = task.definition.metrics().iter().map(|metric| metric.name()).collect();
    let mut sample = json!({
        "doc_id": id,
        "doc": document.doc,
        "target": document.target,
        "arguments": arguments,
        "resps": repeats,
        "filtered_resps": responses,
        "filter": "none",
        "metrics": metrics,
        "doc_hash": sha256(&format!("{:#}", document.doc)),
        "prompt_hash": sha256(document.context(0)),
        "target_hash": sha256(&document.target),
    });
    for metric in task.definition.metrics() {
        sample[metric.name()] = f64::from(u8::from(verdict.by(*metric))).into();
    }
    sample
}

/// The content of a results file.
fn results(run: &HarnessRun, tasks: &[HarnessTask<'_>], task_hashes: Map<String, Value>) -> Value {
    // Some of the harness's maps are in the order of the run, some by name.
    let in_order = |of: &dyn Fn(&HarnessTask<'_>) -> Value| -> Map<String, Value> {
        tasks.iter().map(|task| (task.task.name.clone(), of(task))).collect()
    };
    let by_name = |of: &dyn Fn(&HarnessTask<'_>) -> Value| -> BTreeMap<String, Value> {
        tasks.iter().map(|task| (task.task.name.clone(), of(task))).collect()
    };
    let better = |task: &HarnessTask<'_>| -> Value {
        let metrics = task.task.definition.metrics().iter();
        metrics.map(|metric| (metric.name().to_owned(), true.into())).collect::<Map<_, _>>().into()
    };
    let token = |token: &Option<(String, u32)>| token.as_ref().map(|(text, id)| [text.clone(), id.to_string()]);
    json!({
        "results": in_order(&|task| scores(&task.task.name, &task.task.score(task.answers))),
        "group_subtasks": {},
        "configs": by_name(&|task| config(task.task, run)),
        "versions": by_name(&|_| TASK_VERSION.into()),
        "n-shot": by_name(&|task| task.task.shots.into()),
        "higher_is_better": by_name(&better),
        "n-samples": in_order(&|task| json!({ "original": task.task.available, "effective": task.task.score(task.answers).n })),
        "config": run_config(run),
        "git_hash": run.git_hash,
        "date": run.started,
        "pretty_env_info": null,
        "transformers_version": null,
        "lm_eval_version": null,
        "upper_git_hash": null,
        "tokenizer_pad_token": null,
        "tokenizer_eos_token": token(&run.eos),
        "tokenizer_bos_token": token(&run.bos),
        "eot_token_id": run.eos.as_ref().map(|(_, id)| *id),
        "max_length": run.max_length,
        "task_hashes": task_hashes,
        "model_source": run.model_source,
        "model_name": run.model_name,
        "model_name_sanitized": sanitized(&run.model_name),
        "system_instruction": null,
        "system_instruction_sha": null,
        "fewshot_as_multiturn": null,
        "chat_template": null,
        "chat_template_sha": null,
        "total_evaluation_time_seconds": run.seconds.map(float),
    })
}

/// `results.<task>`. A standard error over one document is the text `N/A`.
fn scores(name: &str, score: &TaskScore) -> Value {
    let mut map = Map::new();
    map.insert("name".to_owned(), name.into());
    map.insert("alias".to_owned(), name.into());
    map.insert("sample_len".to_owned(), score.n.into());
    let mut put = |metric: Metric, estimate: Estimate| {
        map.insert(format!("{},none", metric.name()), estimate.value.into());
        let stderr = estimate.stderr.map_or("N/A".into(), Value::from);
        map.insert(format!("{}_stderr,none", metric.name()), stderr);
    };
    put(Metric::Acc, score.acc);
    if let Some(estimate) = score.acc_norm {
        put(Metric::AccNorm, estimate);
    }
    map.into()
}

/// `configs.<task>`: as for a task that lm-eval reads from local files.
fn config(task: &Task, run: &HarnessRun) -> Value {
    let config = &task.definition.config;
    let loader = if task.sources.iter().any(|source| source.ends_with(".parquet")) { "parquet" } else { "json" };
    let metric = |metric: &Metric| json!({ "metric": metric.name(), "aggregation": "mean", "higher_is_better": true });
    let metrics: Vec<Value> = task.definition.metrics().iter().map(metric).collect();
    let mut metadata = Map::new();
    metadata.insert("version".to_owned(), TASK_VERSION.into());
    metadata.extend(run.model_args.clone());
    metadata.insert("data_sha256".to_owned(), task.sha256.clone().into());
    json!({
        "task": task.name,
        "dataset_path": loader,
        "dataset_kwargs": { "data_files": { config.split.name(): task.sources } },
        format!("{}_split", config.split.name()): config.split.name(),
        "doc_to_text": config.doc_to_text,
        "doc_to_target": config.doc_to_target,
        "unsafe_code": false,
        "doc_to_choice": config.doc_to_choice,
        "description": "",
        "target_delimiter": TARGET_DELIMITER,
        "fewshot_delimiter": "\n\n",
        "num_fewshot": task.shots,
        "metric_list": metrics,
        "output_type": "multiple_choice",
        "repeats": 1,
        "should_decontaminate": false,
        "metadata": metadata,
    })
}

/// `config`. Standard errors here come of a closed form, so there are no bootstrap iterations to name.
fn run_config(run: &HarnessRun) -> Value {
    json!({
        "model": run.model_source,
        "model_args": run.model_args,
        "batch_size": run.batch_size.map(|size| size.to_string()),
        "batch_sizes": [],
        "device": run.device,
        "use_cache": null,
        "limit": run.limit,
        "bootstrap_iters": null,
        "gen_kwargs": {},
        "random_seed": run.seeds[0],
        "numpy_seed": run.seeds[1],
        "torch_seed": run.seeds[2],
        "fewshot_seed": run.seeds[3],
    })
}

/// A value on one line as Python's `json.dumps(…, ensure_ascii=False)` writes it, with spaces after `,` and `:`.
fn python_json(value: &Value) -> String {
    struct Spaced;
    impl Formatter for Spaced {
        fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }
        fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    let mut bytes = Vec::new();
    // A value of texts, numbers and maps by text cannot fail to serialise into memory.
    let done = value.serialize(&mut serde_json::Serializer::with_formatter(&mut bytes, Spaced));
    debug_assert!(done.is_ok());
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_sanitized_as_the_harness_does() {
        for (name, expected) in [
            ("own/fixture", "own__fixture"),
            ("C:\\models\\[x]?", "C__models__x__"),
            ("plain-1.0", "plain-1.0"),
            ("..", "__"),
        ] {
            assert_eq!(sanitized(name), expected);
        }
    }

    #[test]
    fn json_lines_are_spaced_as_python_spaces_them() {
        let value = json!({ "a": [1, 0.5, "é\u{1}\"\u{7f}"], "b": {}, "c": [] });
        assert_eq!(python_json(&value), "{\"a\": [1, 0.5, \"é\\u0001\\\"\u{7f}\"], \"b\": {}, \"c\": []}");
    }

    #[test]
    fn a_standard_error_over_one_document_is_not_available() {
        let one = Estimate::of([true]);
        let scores = scores("t", &TaskScore { n: 1, acc: one, acc_norm: Some(one) });
        assert_eq!(
            scores.to_string(),
            r#"{"name":"t","alias":"t","sample_len":1,"acc,none":1.0,"acc_stderr,none":"N/A","acc_norm,none":1.0,"acc_norm_stderr,none":"N/A"}"#
        );
    }
}
