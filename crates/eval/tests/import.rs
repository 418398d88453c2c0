//! lm-eval's own files as a row.

use std::path::{Path, PathBuf};

use microscale_eval::harness::{HarnessRun, HarnessTask, write_harness_files};
use microscale_eval::statistics::Paired;
use microscale_eval::{Answer, Catalog, Files, RowAnswers, Task, TaskAnswers, read_harness};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn tasks() -> Vec<Task> {
    let catalog = Catalog::discover(Files::open(&fixtures().join("hub")).unwrap()).unwrap();
    catalog.names().iter().map(|name| catalog.load(name).unwrap()).collect()
}

/// Answers that prefer one choice, of one document another.
fn answers(tasks: &[Task], other: usize) -> RowAnswers {
    let document = |(i, document): (usize, &microscale_eval::Document)| {
        let best = if i == 1 { other } else { document.gold };
        let choice = |c| Answer { log_likelihood: if c == best { -1.25 } else { -90.5 }, greedy: c == best };
        Some((0..document.choices.len()).map(choice).collect())
    };
    let row = |task: &Task| TaskAnswers {
        task: task.name.clone(),
        documents: task.documents.iter().enumerate().map(document).collect(),
        divergence: Default::default(),
    };
    RowAnswers { row: 0, tasks: tasks.iter().map(row).collect() }
}

#[test]
fn what_the_harness_writes_is_read_back() {
    let (tasks, folder) = (tasks(), tempfile::tempdir().unwrap());
    let row = answers(&tasks, 0);
    let files: Vec<HarnessTask<'_>> =
        tasks.iter().zip(&row.tasks).map(|(task, row)| HarnessTask { task, answers: &row.documents }).collect();
    let run = HarnessRun { model_name: "m".into(), date: "2026-01-02T03:04:05".into(), ..HarnessRun::default() };
    write_harness_files(folder.path(), &run, &files, true).unwrap();
    let folder = folder.path().join("m");
    let imported = read_harness(&folder, &tasks).unwrap();
    assert_eq!((imported.name.as_str(), imported.scores.len()), ("m", 5));
    assert_eq!(imported.answers.tasks, row.tasks);
    let paired = Paired::of(&tasks, [&answers(&tasks, 1), &imported.answers], 0.01, 1).unwrap();
    assert!(paired.average.flips.gained + paired.average.flips.lost > 0);
    // Another prompt is no answer to this one.
    let sample = folder.join("samples_piqa_2026-01-02T03-04-05.jsonl");
    let text = std::fs::read_to_string(&sample).unwrap().replacen("Question:", "Q:", 1);
    std::fs::write(&sample, text).unwrap();
    let error = read_harness(&folder, &tasks).unwrap_err().to_string();
    assert!(error.contains("samples_piqa") && error.contains("--num-fewshot"), "{error}");
    // Without samples the results count.
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().unwrap() == "jsonl" {
            std::fs::remove_file(path).unwrap();
        }
    }
    let imported = read_harness(&folder, &tasks).unwrap();
    assert_eq!(imported.scores[0].1, tasks[0].score(&row.tasks[0].documents));
    assert!(Paired::of(&tasks, [&row, &imported.answers], 0.01, 1).is_none());
    assert!(read_harness(&fixtures(), &tasks).unwrap_err().to_string().contains("results_*.json"));
}

/// Samples that lm-eval 0.4.13 itself wrote.
#[test]
fn the_harnesss_own_samples_are_read() {
    let (tasks, folder) = (tasks(), tempfile::tempdir().unwrap());
    for task in &tasks {
        let from = fixtures().join(format!("harness/{}.jsonl", task.name));
        std::fs::copy(from, folder.path().join(format!("samples_{}_2026-01-01.jsonl", task.name))).unwrap();
    }
    let imported = read_harness(folder.path(), &tasks).unwrap();
    assert!(imported.answers.tasks.iter().flat_map(|task| &task.documents).all(Option::is_some));
}
