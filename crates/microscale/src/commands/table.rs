//! `microscale table`: the accuracy table.

use std::process::ExitCode;

use anyhow::Result;
use microscale_eval::report::{Report, RowReport};
use microscale_eval::tasks::TASK_VERSION;
use microscale_eval::{RowAnswers, Task};
use microscale_formats::{E2M1, E3M2, E4M3, ElementFormat, INT8};
use microscale_model::{Checkpoint, Recipe, Role};
use serde_json::{Map, Value, json};

use crate::arguments::{Format, Table};
use crate::engine::{self, Engine};
use crate::evaluation::{self, Evaluation};
use crate::{output, sources, usage};

/// The rows without `--recipe`: those of the published table, and for the demo world the span from INT8 to FP4.
const PUBLISHED_ROWS: [&str; 4] = ["w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6"];
const DEMO_ROWS: [&str; 6] = ["int8", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6", "w4a4"];

pub(crate) fn run(arguments: &Table) -> Result<ExitCode> {
    let engine = Engine::new(arguments.scoring.threads)?;
    let value_blocks = arguments.scoring.value_blocks;
    let asked = arguments.recipe.iter().map(|name| engine::recipe(name, value_blocks)).collect::<Result<Vec<_>>>()?;
    let checkpoint = sources::model(arguments.model.as_deref())?;
    let recipes = rows(arguments, asked, &checkpoint)?;
    let tasks = sources::tasks(&arguments.tasks, sources::is_demo(arguments.model.as_deref()))?;
    let limits = engine::limits(&arguments.scoring, &checkpoint);
    let requests = evaluation::encode(&tasks, &checkpoint, &limits)?;
    let evaluation = {
        let mut scorer = engine.scorer(&checkpoint, recipes.clone(), limits);
        evaluation::evaluate(scorer.as_mut(), &requests)?
    };
    let manifest = Manifest {
        engine: &engine,
        checkpoint: &checkpoint,
        recipes: &recipes,
        tasks: &tasks,
        evaluation: &evaluation,
    };
    let report = report(&manifest, &evaluation.answers.rows);
    output::emit(&render(&report, arguments.format)?, arguments.output.as_deref())?;
    if evaluation.answers.complete {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("interrupted: the table covers the documents that were finished, the longest first");
    Ok(ExitCode::FAILURE)
}

/// bf16 first, then the recipes asked for or the usual ones, each once. A quantized model has no bf16 row: its own recipe
/// is the first that it can show, and the only one unless others are asked for.
fn rows(arguments: &Table, asked: Vec<Recipe>, checkpoint: &Checkpoint) -> Result<Vec<Recipe>> {
    let value_blocks = arguments.scoring.value_blocks;
    if checkpoint.quantization().is_some() {
        let own = || engine::recipe_for(checkpoint, None, value_blocks);
        let asked = if asked.is_empty() { vec![own()?] } else { asked };
        asked.iter().try_for_each(|recipe| checkpoint.check_recipe(recipe)).map_err(usage)?;
        return Ok(distinct(Vec::new(), asked));
    }
    let defaults: &[&str] = if sources::is_demo(arguments.model.as_deref()) { &DEMO_ROWS } else { &PUBLISHED_ROWS };
    let usual = || defaults.iter().map(|name| engine::recipe(name, value_blocks)).collect::<Result<Vec<_>>>();
    let asked = if asked.is_empty() { usual()? } else { asked };
    let asked = asked.into_iter().filter(|recipe| !recipe.is_bf16()).collect();
    Ok(distinct(vec![Recipe::bf16().for_scoring()], asked))
}

/// The rows, and after them those of the others that are not among them yet.
fn distinct(mut rows: Vec<Recipe>, others: Vec<Recipe>) -> Vec<Recipe> {
    for recipe in others.into_iter().map(Recipe::for_scoring) {
        match rows.iter().find(|row| row.same_formats(&recipe)) {
            Some(twin) => {
                eprintln!("warning: recipe {} is {} again and gets no row of its own", recipe.name, twin.name)
            }
            None => rows.push(recipe),
        }
    }
    rows
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

fn report(manifest: &Manifest<'_>, answers: &[RowAnswers]) -> Report {
    let rows = answers.iter().filter_map(|answers| {
        let recipe = &manifest.recipes[answers.row];
        let scores = evaluation::scores(manifest.tasks, answers);
        if scores.is_empty() {
            return None; // an interrupted run did not get here
        }
        let mut row = RowReport::new(recipe.name.clone(), manifest.checkpoint.name().to_owned(), scores);
        row.columns = columns(recipe);
        row.roles = roles(recipe);
        Some(row)
    });
    let rows: Vec<RowReport> = rows.collect();
    let counts = |row: &RowReport| row.tasks.iter().map(|(name, score)| (name.clone(), score.n)).collect::<Vec<_>>();
    let complete = rows.first().map(counts);
    let mut report = Report::new(manifest.fields(), manifest.line(), rows);
    for row in &mut report.rows {
        if complete.as_ref() != Some(&counts(row)) {
            row.delta = None; // other documents: nothing to compare
        }
    }
    report
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
        let fields = [
            ("microscale", json!(env!("CARGO_PKG_VERSION"))),
            ("model", json!(self.checkpoint.name())),
            ("model_sha256", json!(self.checkpoint.hash())),
            ("tasks", Value::Object(tasks.collect())),
            ("shots", json!(0)),
            ("block_size", per_recipe(&|r| json!(r.block_size))),
            ("scale_rule", per_recipe(&|r| json!(r.scale_rule.name()))),
            ("value_blocks", per_recipe(&|r| json!(r.value_blocks.name()))),
            ("instruction_set", json!(self.engine.isa().name())),
            ("threads", json!(self.engine.threads())),
            ("seed", json!(SEED)),
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
            "rows {}; model {} ({hash}); {}; 0-shot{blocks}; {}, {} threads; seed {}; {:.1} s, {:.0} tokens/s",
            rows.join(", "),
            self.checkpoint.name(),
            tasks.join(", "),
            say("instruction_set"),
            say("threads"),
            SEED,
            self.evaluation.time.as_secs_f64(),
            self.tokens_per_second(),
        )
    }

    fn tokens_per_second(&self) -> f64 {
        self.evaluation.tokens as f64 / self.evaluation.time.as_secs_f64().max(1e-9)
    }
}

/// lm-eval's default seed. Zero-shot runs draw nothing from it; it is stated so that files compare.
pub(crate) const SEED: u64 = 1234;
