//! `microscale perplexity`: how well a model predicts a text, in windows that overlap or not.

use std::fmt::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow};
use microscale_eval::statistics::DivergenceSummary;
use microscale_eval::{RowAnswers, TaskRequests, rolling};
use microscale_model::Recipe;
use serde_json::{Value, json};

use crate::arguments::{Format, Perplexity};
use crate::engine::{self, Engine};
use crate::store::Keeper;
use crate::{evaluation, output, sources, usage};

/// Tokens per window where none are asked for and the model could take more.
const WINDOW: usize = 2048;

/// What is measured under every recipe.
struct Text {
    tokens: usize,
    bytes: usize,
}

pub(crate) fn run(arguments: &Perplexity) -> Result<ExitCode> {
    let engine = Engine::new(arguments.scoring.threads)?;
    let value_blocks = arguments.scoring.value_blocks;
    let asked = arguments.recipe.iter().map(|name| engine::recipe(name, value_blocks)).collect::<Result<Vec<_>>>()?;
    let file = arguments.file.display();
    let text = std::fs::read_to_string(&arguments.file).with_context(|| format!("cannot read {file}"))?;
    let checkpoint = sources::model(Some(&arguments.model))?;
    let recipes = engine::rows(&checkpoint, asked, value_blocks)?;
    engine::warn_of_length(&arguments.scoring, &checkpoint);
    let longest = engine::limits(&arguments.scoring, &checkpoint).max_length;
    let window = arguments.window.map_or(longest.min(WINDOW), |n| n as usize);
    let stride = arguments.stride.map_or(window, |n| n as usize);
    if window > longest || stride > window {
        let reason = "--stride is at most --window, and that at most the model's input";
        return Err(usage(anyhow!("{reason}: {stride}, {window} and {longest} tokens")));
    }
    let tokenizer = checkpoint.tokenizer()?;
    let prefix = tokenizer.bos().or(tokenizer.eos()).context("the tokenizer has neither a BOS nor an EOS token")?;
    let mut tokens = tokenizer.encode(&text, false)?;
    if tokens.first() == Some(&prefix) {
        tokens.remove(0);
    }
    if tokens.is_empty() {
        return Err(anyhow!("{file} holds no text"));
    }
    let measured = Text { tokens: tokens.len(), bytes: text.len() };
    let windows = rolling(&tokens, prefix, window, stride).into_iter().map(|request| vec![request]).collect();
    let requests = [TaskRequests { task: "text".to_owned(), documents: windows, truncated: 0 }];
    let mut scorer = engine.scorer(&checkpoint, recipes.clone(), &arguments.scoring);
    let keeper = Keeper::open(&arguments.keeping, &checkpoint, &recipes)?;
    let evaluation = keeper.run(|archive| evaluation::evaluate(scorer.as_mut(), &requests, true, archive), &[])?;
    if !evaluation.answers.complete {
        eprintln!("interrupted: the same command goes on where this one ended");
        return Ok(ExitCode::FAILURE);
    }
    let rows: Vec<Value> =
        evaluation.answers.rows.iter().map(|row| measure(&recipes[row.row], row, &measured)).collect();
    let report = json!({
        "model": checkpoint.name(), "model_sha256": checkpoint.hash(), "tokens": measured.tokens,
        "bytes": measured.bytes, "window": window, "stride": stride, "rows": rows,
    });
    output::emit(&render(&report, arguments.format)?, arguments.output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// One row of the report.
fn measure(recipe: &Recipe, row: &RowAnswers, text: &Text) -> Value {
    let answers = row.tasks.iter().flat_map(|task| task.documents.iter().flatten().flatten());
    let nats = -answers.map(|answer| answer.log_likelihood).sum::<f64>();
    let divergence = DivergenceSummary::of(row.tasks.iter().map(|task| &task.divergence));
    json!({
        "recipe": recipe.name,
        "log_likelihood": -nats,
        "perplexity": microscale_tensor::math::exp(nats / text.tokens as f64),
        "bits_per_byte": nats / std::f64::consts::LN_2 / text.bytes as f64,
        "kl_mean": divergence.map(|d| d.mean),
        "kl_p99": divergence.map(|d| d.p99),
        "top1_agreement": divergence.map(|d| d.agreement),
    })
}

const COLUMNS: [&str; 6] = ["recipe", "perplexity", "bits_per_byte", "kl_mean", "kl_p99", "top1_agreement"];

fn render(report: &Value, format: Format) -> Result<String> {
    let rows = report["rows"].as_array().map_or(&[][..], Vec::as_slice);
    let lines = |cell: &dyn Fn(&Value) -> String| -> Vec<Vec<String>> {
        rows.iter().map(|row| COLUMNS.iter().map(|&column| cell(&row[column])).collect()).collect()
    };
    let short = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => format!("{:.5}", number.as_f64().unwrap_or(f64::NAN)),
        _ => "–".to_owned(),
    };
    let full = |value: &Value| value.as_str().map_or(value.to_string(), str::to_owned).replace("null", "");
    let mut text = String::new();
    match format {
        Format::Json => text = serde_json::to_string_pretty(report)? + "\n",
        Format::Csv => {
            writeln!(text, "{}", COLUMNS.join(","))?;
            lines(&full).iter().try_for_each(|cells| writeln!(text, "{}", cells.join(",")))?;
        }
        Format::Markdown => {
            writeln!(text, "| {} |\n|:--{}|", COLUMNS.join(" | "), "|--:".repeat(COLUMNS.len() - 1))?;
            lines(&short).iter().try_for_each(|cells| writeln!(text, "| {} |", cells.join(" | ")))?;
        }
        Format::Text => {
            text += &super::runs::table(&COLUMNS, lines(&short), 1);
            let [tokens, bytes, window, stride] = ["tokens", "bytes", "window", "stride"].map(|key| &report[key]);
            writeln!(text, "{tokens} tokens, {bytes} bytes; windows of {window} tokens, {stride} of them predicted")?;
        }
    }
    Ok(text)
}
