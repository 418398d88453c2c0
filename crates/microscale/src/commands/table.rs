//! `microscale table`: the accuracy table.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use microscale_eval::report::{Column, Report, RowReport};
use microscale_eval::statistics::Paired;
use microscale_eval::tasks::TASK_VERSION;
use microscale_eval::{RowAnswers, Task, read_harness};
use microscale_formats::{E2M1, E3M2, E4M3, ElementFormat, INT8};
use microscale_model::{Checkpoint, Recipe, Role};
use serde_json::{Map, Value, json};

use crate::arguments::{Format, Table};
use crate::engine::{self, Engine};
use crate::evaluation::{self, Evaluation};
use crate::store::Keeper;
use crate::{output, sources, usage};

/// The rows without `--recipe`: those of the published table, and for the demo world the span from INT8 to FP4.
const PUBLISHED_ROWS: [&str; 4] = ["w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6"];
const DEMO_ROWS: [&str; 6] = ["int8", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6", "w4a4"];

pub(crate) fn run(arguments: &Table) -> Result<ExitCode> {
    let engine = Engine::new(arguments.scoring.threads)?;
    let value_blocks = arguments.scoring.value_blocks;
    let asked = arguments.recipe.iter().map(|name| engine::recipe(name, value_blocks)).collect::<Result<Vec<_>>>()?;
    let shown = columns_shown(&arguments.columns)?;
    let checkpoint = sources::model(arguments.model.as_deref())?;
    let asked = if asked.is_empty() && checkpoint.quantization().is_none() {
        let usual: &[&str] = if sources::is_demo(arguments.model.as_deref()) { &DEMO_ROWS } else { &PUBLISHED_ROWS };
        usual.iter().map(|name| engine::recipe(name, value_blocks)).collect::<Result<_>>()?
    } else {
        asked
    };
    let recipes = engine::rows(&checkpoint, asked, value_blocks)?;
    let tasks = sources::tasks(&arguments.tasks, sources::is_demo(arguments.model.as_deref()))?;
    engine::warn_of_length(&arguments.scoring, &checkpoint);
    let limits = engine::limits(&arguments.scoring, &checkpoint);
    let requests = evaluation::encode(&tasks, &checkpoint, &limits)?;
    let divergence = shown.iter().any(|column| column.needs_divergence());
    let evaluation = {
        let mut scorer = engine.scorer(&checkpoint, recipes.clone(), &arguments.scoring);
        let keeper = Keeper::open(&arguments.keeping, &checkpoint, &recipes)?;
        keeper.run(|archive| evaluation::evaluate(scorer.as_mut(), &requests, divergence, archive), &tasks)?
    };
    let manifest = Manifest {
        engine: &engine,
        checkpoint: &checkpoint,
        recipes: &recipes,
        tasks: &tasks,
        evaluation: &evaluation,
    };
    let mut report = report(&manifest, &evaluation.answers.rows, arguments.margin / 100.0);
    if report.rows.is_empty() && !evaluation.answers.complete {
        eprintln!("interrupted before a document was finished");
        return Ok(ExitCode::FAILURE);
    }
    report.shown = shown;
    report.manifest.insert("margin".to_owned(), json!(report.margin));
    for folder in &arguments.import {
        let first = evaluation.answers.rows.first();
        let row = imported(folder, &report, first, &tasks)?;
        report.rows.push(row);
    }
    output::emit(&render(&report, arguments.format)?, arguments.output.as_deref())?;
    if evaluation.answers.complete {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("interrupted: the table covers the documents that were finished, the longest first");
    Ok(ExitCode::FAILURE)
}

fn render(report: &Report, format: Format) -> Result<String> {
    Ok(match format {
        Format::Text => report.to_text(terminal_width()),
        Format::Markdown => report.to_markdown(),
        Format::Csv => report.to_csv(),
        Format::Json => serde_json::to_string_pretty(&report.to_json())? + "\n",
    })
}

/// The terminal's width, or enough for everything where there is none.
fn terminal_width() -> usize {
    console::Term::stdout().size_checked().map_or(200, |(_, columns)| usize::from(columns))
}

/// The columns asked for, or the usual ones.
fn columns_shown(names: &[String]) -> Result<Vec<Column>> {
    if names.is_empty() {
        return Ok(Column::DEFAULT.to_vec());
    }
    let known = || Column::ALL.map(Column::name).join(", ");
    let column = |name: &String| {
        Column::from_name(name.trim()).ok_or_else(|| usage(anyhow!("--columns knows {}, not {name}", known())))
    };
    names.iter().map(column).collect()
}

/// The table, each row set against the first over the documents both have answered.
fn report(manifest: &Manifest<'_>, answers: &[RowAnswers], margin: f64) -> Report {
    let first = answers.first();
    let rows = answers.iter().filter_map(|answers| {
        let recipe = &manifest.recipes[answers.row];
        let scores = evaluation::scores(manifest.tasks, answers);
        if scores.is_empty() {
            return None; // an interrupted run did not get here
        }
        let mut row = RowReport::new(recipe.name.clone(), manifest.checkpoint.name().to_owned(), scores);
        row.columns = columns(recipe);
        row.roles = roles(recipe);
        let first = first.filter(|first| first.row != answers.row);
        row.paired = first.and_then(|first| Paired::of(manifest.tasks, [first, answers], margin, SEED as u32));
        Some(row)
    });
    let rows: Vec<RowReport> = rows.collect();
    let counts = |row: &RowReport| row.tasks.iter().map(|(name, score)| (name.clone(), score.n)).collect::<Vec<_>>();
    let complete = rows.first().map(counts);
    let mut report = Report::new(manifest.fields(), manifest.line(), rows);
    report.margin = margin;
    for row in &mut report.rows {
        if complete.as_ref() != Some(&counts(row)) {
            row.delta = None; // other documents: nothing to compare
        }
    }
    report
}

/// The row of a folder that lm-eval wrote.
fn imported(folder: &Path, report: &Report, first: Option<&RowAnswers>, tasks: &[Task]) -> Result<RowReport> {
    let imported = read_harness(folder, tasks)?;
    let mut row = RowReport::new("imported".to_owned(), imported.name, imported.scores);
    let head = report.rows.first();
    row.columns = head.map_or(vec![], |head| head.columns.iter().map(|(name, _)| (name.clone(), "–".into())).collect());
    row.paired = first.and_then(|first| Paired::of(tasks, [first, &imported.answers], report.margin, SEED as u32));
    row.delta = row.paired.as_ref().map(|paired| paired.average.difference);
    Ok(row)
}

/// The published table's format columns.
fn columns(recipe: &Recipe) -> Vec<(String, String)> {
    let heads = [
        ("ProjW", Role::ProjectionWeight),
        ("ProjA", Role::ProjectionActivation),
        ("MlpW", Role::MlpWeight),
        ("MlpA", Role::MlpActivation),
        ("Query", Role::Query),
        ("Key", Role::Key),
        ("Value", Role::Value),
        ("Atten W", Role::AttentionWeights),
    ];
    let value = |role| match recipe.format(role) {
        Some(format) => short(format),
        None if matches!(role, Role::Query | Role::Key | Role::Value | Role::AttentionWeights) => "–".to_owned(),
        None => "bf16".to_owned(),
    };
    heads.into_iter().map(|(head, role)| (head.to_owned(), value(role))).collect()
}

/// A format as the published table writes it; those it does not have by their name.
fn short(format: ElementFormat) -> String {
    match format {
        E4M3 => "FP8".to_owned(),
        E3M2 => "FP6".to_owned(),
        E2M1 => "FP4".to_owned(),
        INT8 => "INT8".to_owned(),
        other => other.name().trim_start_matches("fp").to_uppercase().replace('_', " "),
    }
}

/// What each role holds, for the manifest.
pub(crate) fn roles(recipe: &Recipe) -> Map<String, Value> {
    let name = |role: Role| recipe.format(role).map_or("bf16", ElementFormat::name);
    Role::ALL.into_iter().map(|role| (role.key().to_owned(), json!(name(role)))).collect()
}

/// Everything that decides the numbers.
struct Manifest<'a> {
    engine: &'a Engine,
    checkpoint: &'a Checkpoint,
    recipes: &'a [Recipe],
    tasks: &'a [Task],
    evaluation: &'a Evaluation,
}

impl Manifest<'_> {
    fn fields(&self) -> Map<String, Value> {
        let tasks = self.tasks.iter().map(|t| {
            (
                t.name.clone(),
                json!({"version": TASK_VERSION, "documents": t.documents.len(), "of": t.available, "sha256": t.sha256}),
            )
        });
        let quantized: Vec<&Recipe> = self.recipes.iter().filter(|r| !r.is_bf16()).collect();
        let per_recipe = |value: &dyn Fn(&Recipe) -> Value| -> Value {
            let values: Vec<Value> = quantized.iter().map(|r| value(r)).collect();
            match values.first() {
                Some(first) if values.iter().all(|v| v == first) => first.clone(),
                None => Value::Null,
                _ => quantized.iter().zip(values).map(|(r, v)| (r.name.clone(), v)).collect::<Map<_, _>>().into(),
            }
        };
        let counts = self.evaluation.answers.counts;
        let fields = [
            ("microscale", json!(env!("CARGO_PKG_VERSION"))),
            ("model", json!(self.checkpoint.name())),
            ("model_sha256", json!(self.checkpoint.hash())),
            ("tasks", Value::Object(tasks.collect())),
            ("shots", json!(self.shots())),
            ("block_size", per_recipe(&|r| json!(r.block_size))),
            ("scale_rule", per_recipe(&|r| json!(r.scale_rule.name()))),
            ("value_blocks", per_recipe(&|r| json!(r.value_blocks.name()))),
            ("instruction_set", json!(self.engine.isa().name())),
            ("threads", json!(self.engine.threads())),
            ("seed", json!(SEED)),
            ("scored", json!(counts.scored)),
            ("reused", json!(counts.reused)),
            ("repeated", json!(counts.repeated)),
            ("input_tokens", json!(counts.input_tokens)),
            ("shared_tokens", json!(counts.shared_tokens)),
            ("seconds", json!(self.evaluation.time.as_secs_f64())),
            ("tokens", json!(self.evaluation.tokens)),
            ("tokens_per_second", json!(self.tokens_per_second())),
            ("complete", json!(self.evaluation.answers.complete)),
        ];
        fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }

    fn line(&self) -> String {
        let fields = self.fields();
        let say = |key: &str| match &fields[key] {
            Value::String(s) => s.clone(),
            other => other.to_string(),
        };
        let quantized = self.recipes.iter().any(|r| !r.is_bf16());
        let blocks = if quantized {
            format!(
                "; blocks of {}, scale rule {}, value blocks {}",
                say("block_size"),
                say("scale_rule"),
                say("value_blocks")
            )
        } else {
            String::new()
        };
        let hash: String = self.checkpoint.hash().chars().take(12).collect();
        let tasks: Vec<String> = self.tasks.iter().map(|t| format!("{} v{TASK_VERSION:.1}", t.name)).collect();
        let rows: Vec<&str> = self.recipes.iter().map(|r| r.name.as_str()).collect();
        format!(
            "rows {}; model {} ({hash}); {}; {}-shot{blocks}; {}, {} threads; seed {}; scored {}, reused {}; {:.1} s, {:.0} tokens/s",
            rows.join(", "),
            self.checkpoint.name(),
            tasks.join(", "),
            self.shots(),
            say("instruction_set"),
            say("threads"),
            SEED,
            say("scored"),
            say("reused"),
            self.evaluation.time.as_secs_f64(),
            self.tokens_per_second(),
        )
    }

    fn shots(&self) -> usize {
        self.tasks.first().map_or(0, |task| task.shots)
    }

    fn tokens_per_second(&self) -> f64 {
        self.evaluation.tokens as f64 / self.evaluation.time.as_secs_f64().max(1e-9)
    }
}

/// lm-eval's default seed, and that of the bootstrap.
pub(crate) const SEED: u64 = 1234;
