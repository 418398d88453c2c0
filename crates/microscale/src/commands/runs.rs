//! `microscale runs`: what the store holds.

use std::process::ExitCode;

use anyhow::{Result, bail};
use chrono::DateTime;
use comfy_table::{CellAlignment, Table, TableStyle};
use microscale_eval::average;
use microscale_eval::statistics::{Comparison, Flips};
use microscale_eval::store::{Store, StoredRun, StoredTask};
use microscale_eval::tasks::title;
use serde_json::{Value, json};

use crate::arguments::{Runs, RunsAction};
use crate::commands::table::SEED;
use crate::{output, store};

pub(crate) fn run(arguments: &Runs) -> Result<ExitCode> {
    let path = store::path(arguments.store.as_deref())?;
    if !path.exists() {
        bail!("{}: no runs are kept here yet; `table` and `eval` make it, or give --store FILE", path.display());
    }
    let store = Store::open(&path)?;
    match &arguments.action {
        RunsAction::List => output::emit(&list(&store.runs()?), None)?,
        RunsAction::Show { run } => output::emit(&show(&store.run(*run)?, &store.tasks(*run)?), None)?,
        RunsAction::Compare { first, second, margin } => {
            let [a, b] = [store.run(*first)?, store.run(*second)?];
            let tasks = [store.tasks(*first)?, store.tasks(*second)?];
            output::emit(&compare([&a, &b], &tasks, margin / 100.0)?, None)?;
        }
        RunsAction::Export { run, output } => {
            let text = serde_json::to_string(&export(&store.run(*run)?, &store.tasks(*run)?))? + "\n";
            output::emit(&text, output.as_deref())?;
        }
        RunsAction::Delete { run } => {
            store.delete(*run)?;
            eprintln!("deleted run {run} from {}", store.path().display());
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A table without rules; columns after the first `left` are numbers.
pub(crate) fn table(heads: &[&str], rows: Vec<Vec<String>>, left: usize) -> String {
    let mut table = Table::new();
    let heads: Vec<String> = heads.iter().map(|&head| head.to_owned()).collect();
    table.load_style(TableStyle::new()).set_header(heads);
    rows.into_iter().for_each(|row| {
        table.add_row(row);
    });
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if index >= left {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.to_string().lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

fn list(runs: &[StoredRun]) -> String {
    let row = |run: &StoredRun| {
        vec![
            run.id.to_string(),
            run.key.model.clone(),
            run.key.model_sha256.chars().take(12).collect(),
            run.key.recipe.clone(),
            date(run.used),
            run.scores.to_string(),
        ]
    };
    table(&["run", "model", "hash", "recipe", "used", "scores"], runs.iter().map(row).collect(), 5)
}

fn date(seconds: i64) -> String {
    DateTime::from_timestamp(seconds, 0).map_or(String::new(), |date| date.format("%Y-%m-%d %H:%M").to_string())
}

fn percent(value: f64) -> String {
    format!("{:.2}", 100.0 * value)
}

fn describe(run: &StoredRun) -> String {
    let hash: String = run.key.model_sha256.chars().take(12).collect();
    format!("run {}: {} ({hash}), {}, numerics {}", run.id, run.key.model, run.key.recipe, run.key.numerics)
}

fn show(run: &StoredRun, tasks: &[StoredTask]) -> String {
    let row = |task: &StoredTask| {
        let score = task.score();
        let norm = score.acc_norm.map_or(String::new(), |norm| percent(norm.value));
        let documents = format!("{} of {}", score.n, task.available);
        vec![title(&task.task).to_owned(), task.shots.to_string(), documents, percent(score.acc.value), norm]
    };
    let rows = table(&["task", "shots", "documents", "acc", "acc_norm"], tasks.iter().map(row).collect(), 1);
    let scores: Vec<_> = tasks.iter().map(StoredTask::score).collect();
    let mean = if scores.is_empty() { String::new() } else { format!("average {}\n", percent(average(&scores).value)) };
    format!("{}\n{}\n{rows}{mean}", describe(run), run.key.formats)
}

fn compare(runs: [&StoredRun; 2], tasks: &[Vec<StoredTask>; 2], margin: f64) -> Result<String> {
    let mut rows = Vec::new();
    let (mut flips, mut gold): (Vec<Flips>, Vec<f64>) = (Vec::new(), Vec::new());
    for first in &tasks[0] {
        for (own, changes) in tasks[1].iter().filter_map(|second| first.paired(second)) {
            rows.push(comparison(title(&first.task), &Comparison::of(&[own], &changes, margin, SEED as u32)));
            flips.push(own);
            gold.extend(changes);
        }
    }
    if flips.is_empty() {
        bail!("runs {} and {} have no documents in common", runs[0].id, runs[1].id);
    }
    rows.push(comparison("average", &Comparison::of(&flips, &gold, margin, SEED as u32)));
    let heads = ["task", "documents", "Δ (%)", "95 %", "gained", "lost", "McNemar p", "TOST p", "gold Δ", "verdict"];
    let text = table(&heads, rows, 1);
    Ok(format!("{}\nbeside {}; margin {} points\n{text}", describe(runs[1]), describe(runs[0]), 100.0 * margin))
}

fn comparison(name: &str, c: &Comparison) -> Vec<String> {
    vec![
        name.to_owned(),
        c.documents.to_string(),
        format!("{:+.2}", 100.0 * c.difference),
        format!("[{:+.2}, {:+.2}]", 100.0 * c.interval[0], 100.0 * c.interval[1]),
        c.flips.gained.to_string(),
        c.flips.lost.to_string(),
        format!("{:.4}", c.p),
        format!("{:.4}", c.equivalence.t),
        format!("{:+.4}", c.gold.value),
        c.conclusion.text(),
    ]
}

fn export(run: &StoredRun, tasks: &[StoredTask]) -> Value {
    let tasks = tasks.iter().map(|task| {
        let documents = task.documents.iter().enumerate().filter_map(|(id, document)| {
            let (verdict, gold) = document.as_ref()?;
            Some(json!({"doc_id": id, "acc": verdict.acc, "acc_norm": verdict.acc_norm, "gold_log_likelihood": gold}))
        });
        json!({
            "task": task.task,
            "data_sha256": task.data_sha256,
            "shots": task.shots,
            "available": task.available,
            "documents": documents.collect::<Vec<_>>(),
        })
    });
    json!({
        "run": run.id,
        "model": run.key.model,
        "model_sha256": run.key.model_sha256,
        "recipe": run.key.recipe,
        "formats": run.key.formats,
        "numerics": run.key.numerics,
        "tasks": tasks.collect::<Vec<_>>(),
    })
}
