//! Our files against those that lm_eval 0.4.13 itself wrote about the same rows (fixtures/make_fixtures.py).

use std::fs;
use std::path::{Path, PathBuf};

use microscale_eval::harness::{HarnessRun, HarnessTask, write_harness_files};
use microscale_eval::{Answer, Catalog, Files, Task};
use serde_json::{Map, Value};

const TASKS: [&str; 5] = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// The tasks from the Parquet fixtures with the log-likelihoods that the harness logged.
fn tasks_and_answers() -> Vec<(Task, Vec<Option<Vec<Answer>>>)> {
    let catalog = Catalog::discover(Files::open(&fixtures().join("hub")).unwrap()).unwrap();
    assert_eq!(catalog.names(), TASKS);
    TASKS
        .map(|name| {
            let mut task = catalog.load(name).unwrap();
            task.name = format!("{name}_fixture");
            let lines = fs::read_to_string(fixtures().join(format!("harness/{name}.jsonl"))).unwrap();
            let answers = lines.lines().map(|line| {
                let sample: Value = serde_json::from_str(line).unwrap();
                let responses = sample["filtered_resps"].as_array().unwrap().iter().map(|response| Answer {
                    log_likelihood: response[0].as_str().unwrap().parse().unwrap(),
                    greedy: response[1] == "True",
                });
                Some(responses.collect())
            });
            (task, answers.collect())
        })
        .into()
}

fn run() -> HarnessRun {
    let mut model_args = Map::new();
    model_args.insert("pretrained".to_owned(), "own/fixture".into());
    HarnessRun {
        model_source: "dummy".to_owned(),
        model_name: "own/fixture".to_owned(),
        model_args,
        seeds: [Some(0), Some(1234), Some(1234), Some(1234)],
        date: "2026-11-23T14:36:16.5".to_owned(),
        ..HarnessRun::default()
    }
}

#[test]
fn samples_are_the_harnesss_in_every_byte() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = tasks_and_answers();
    let tasks: Vec<HarnessTask> = tasks.iter().map(|(task, answers)| HarnessTask { task, answers }).collect();
    let paths = write_harness_files(folder.path(), &run(), &tasks, true).unwrap();
    assert_eq!(paths.len(), 6);
    for (name, path) in TASKS.iter().zip(&paths) {
        let file = format!("own__fixture/samples_{name}_fixture_2026-11-23T14-36-16.5.jsonl");
        assert_eq!(path, &folder.path().join(file));
        let expected = fs::read_to_string(fixtures().join(format!("harness/{name}.jsonl"))).unwrap();
        assert_eq!(fs::read_to_string(path).unwrap(), expected, "{name}");
    }
}

#[test]
fn results_are_the_harnesss() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = tasks_and_answers();
    let tasks: Vec<HarnessTask> = tasks.iter().map(|(task, answers)| HarnessTask { task, answers }).collect();
    let paths = write_harness_files(folder.path(), &run(), &tasks, true).unwrap();
    let path = &paths[5];
    assert!(path.ends_with("own__fixture/results_2026-11-23T14-36-16.5.json"));
    let ours: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let expected: Value = serde_json::from_slice(&fs::read(fixtures().join("harness/results.json")).unwrap()).unwrap();
    let same = [
        "results",
        "group_subtasks",
        "versions",
        "n-shot",
        "higher_is_better",
        "n-samples",
        "task_hashes",
        "model_name",
    ];
    for key in same {
        // Compared as text, so that the order of keys counts.
        assert_eq!(ours[key].to_string(), expected[key].to_string(), "{key}");
    }
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let without_tokenizer: Vec<String> = keys(&ours)
        .into_iter()
        .filter(|key| !key.starts_with("tokenizer_") && key != "eot_token_id" && key != "max_length")
        .collect();
    assert_eq!(without_tokenizer, keys(&expected));
    assert_eq!(keys(&ours["config"]), keys(&expected["config"]));
    for (task, config) in ours["configs"].as_object().unwrap() {
        let theirs = &expected["configs"][task];
        for key in ["task", "description", "target_delimiter", "fewshot_delimiter", "num_fewshot", "metric_list"] {
            assert_eq!(config[key], theirs[key], "{task} {key}");
        }
        for key in ["doc_to_text", "doc_to_target", "doc_to_choice"] {
            assert!(theirs[key] == "(function)" || config[key] == theirs[key], "{task} {key}");
        }
        assert_eq!(config["metadata"]["version"], theirs["metadata"]["version"]);
    }
}

#[test]
fn without_samples_there_are_no_hashes() {
    let folder = tempfile::tempdir().unwrap();
    let tasks = tasks_and_answers();
    let tasks: Vec<HarnessTask> = tasks.iter().map(|(task, answers)| HarnessTask { task, answers }).collect();
    let paths = write_harness_files(folder.path(), &run(), &tasks, false).unwrap();
    assert_eq!(paths.len(), 1);
    let results: Value = serde_json::from_slice(&fs::read(&paths[0]).unwrap()).unwrap();
    assert_eq!(results["task_hashes"], Value::Object(Map::new()));
}
