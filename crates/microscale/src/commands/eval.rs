//! `microscale eval`: one recipe, in lm-eval's results and samples files.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use microscale_eval::harness::{HarnessRun, HarnessTask, write_harness_files};
use microscale_model::{Checkpoint, Recipe};
use serde_json::{Map, Value, json};

use crate::arguments::Eval;
use crate::commands::table::{SEED, roles};
use crate::engine::{self, Engine};
use crate::evaluation::{self, Evaluation};
use crate::store::Keeper;
use crate::{output, sources};

pub(crate) fn run(arguments: &Eval) -> Result<ExitCode> {
    let engine = Engine::new(arguments.scoring.threads)?;
    let value_blocks = arguments.scoring.value_blocks;
    let asked = arguments.recipe.as_deref().map(|name| engine::recipe(name, value_blocks)).transpose()?;
    let checkpoint = sources::model(Some(&arguments.model))?;
    let recipe = engine::recipe_for(&checkpoint, asked, value_blocks)?.for_scoring();
    let tasks = sources::tasks(&arguments.tasks, sources::is_demo(Some(&arguments.model)))?;
    engine::warn_of_length(&arguments.scoring, &checkpoint);
    let limits = engine::limits(&arguments.scoring, &checkpoint);
    let requests = evaluation::encode(&tasks, &checkpoint, &limits)?;
    let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let evaluation = {
        let mut scorer = engine.scorer(&checkpoint, vec![recipe.clone()], &arguments.scoring);
        let keeper = Keeper::open(&arguments.keeping, &checkpoint, std::slice::from_ref(&recipe))?;
        keeper.run(|archive| evaluation::evaluate(scorer.as_mut(), &requests, false, archive), &tasks)?
    };
    let row = evaluation.answers.rows.first().context("one row was asked for")?;
    let files: Vec<HarnessTask<'_>> =
        tasks.iter().zip(&row.tasks).map(|(task, row)| HarnessTask { task, answers: &row.documents }).collect();
    let run = HarnessRun {
        batch_size: limits.batch_size,
        limit: arguments.tasks.limit,
        started: started.as_secs_f64(),
        max_length: Some(limits.max_length),
        ..described(&engine, &checkpoint, &recipe, &evaluation)?
    };
    let paths = write_harness_files(&arguments.output, &run, &files, arguments.samples)?;
    let lines: String = paths.iter().map(|path| format!("{}\n", path.display())).collect();
    output::emit(&lines, None)?;
    if evaluation.answers.complete {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("interrupted: the files cover the documents that were finished, the longest first");
    Ok(ExitCode::FAILURE)
}

/// What the results file says of model, recipe and machine.
fn described(engine: &Engine, checkpoint: &Checkpoint, recipe: &Recipe, evaluation: &Evaluation) -> Result<HarnessRun> {
    let tokenizer = checkpoint.tokenizer()?;
    let special = |id: Option<u32>| id.and_then(|id| tokenizer.token(id).map(|token| (token, id)));
    let arguments: [(&str, Value); 9] = [
        ("pretrained", json!(checkpoint.name())),
        ("model_sha256", json!(checkpoint.hash())),
        ("recipe", json!(recipe.name)),
        ("roles", Value::Object(roles(recipe))),
        ("block_size", json!(recipe.block_size)),
        ("scale_rule", json!(recipe.scale_rule.name())),
        ("value_blocks", json!(recipe.value_blocks.name())),
        ("instruction_set", json!(engine.isa().name())),
        ("threads", json!(engine.threads())),
    ];
    Ok(HarnessRun {
        model_source: "microscale".to_owned(),
        model_name: checkpoint.name().to_owned(),
        model_args: arguments.into_iter().map(|(k, v)| (k.to_owned(), v)).collect::<Map<_, _>>(),
        device: Some("cpu".to_owned()),
        seeds: [None, None, None, Some(SEED)],
        date: chrono::Utc::now().format("%Y-%m-%dT%H:%M:%S%.6f").to_string(),
        eos: special(tokenizer.eos()),
        bos: special(tokenizer.bos()),
        seconds: Some(evaluation.time.as_secs_f64()),
        ..HarnessRun::default()
    })
}
