//! `microscale quantize`: a model or a file of tensors, in MX formats.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use microscale_formats::BLOCK;
use microscale_model::{Checkpoint, Contents, FileQuantization, ModelOutput, quantize_file, quantize_model, report};
use microscale_tensor::BlockFormat;

use crate::arguments::{Quantize, ReportForm};
use crate::engine::{self, Engine};
use crate::{output, quality, sources, transfer, usage};

pub(crate) fn run(arguments: &Quantize) -> Result<ExitCode> {
    let source = Path::new(&arguments.source);
    match (&arguments.recipe, source.is_file()) {
        (Some(recipe), false) => model(arguments, recipe),
        (None, true) => file(arguments, source),
        (Some(_), true) => Err(usage(anyhow!("{} is a file: give --format, not --recipe", source.display()))),
        (None, false) if source.exists() || !arguments.source.ends_with(".safetensors") => {
            Err(usage(anyhow!("{} is a model: give --recipe, not --format", source.display())))
        }
        (None, false) => Err(anyhow!("{}: no such file", source.display())),
    }
}

fn model(arguments: &Quantize, recipe: &str) -> Result<ExitCode> {
    Engine::new(arguments.writing.threads)?;
    let mut recipe = engine::recipe(recipe, None)?;
    recipe.scale_rule = arguments.scale_rule.unwrap_or(recipe.scale_rule);
    recipe.block_size = arguments.block_size.map_or(recipe.block_size, |n| n as usize);
    let checkpoint = sources::model(Some(&arguments.source))?;
    let options = ModelOutput {
        shard_size: arguments.writing.shard_size,
        ties: arguments.ties,
        allow_not_finite: arguments.allow_nonfinite,
    };
    let code = transfer::run("quantizing", &arguments.output, |progress| {
        quantize_model(&checkpoint, &recipe, &arguments.output, &options, progress)
    })?;
    let Some(form) = arguments.report.filter(|_| code == ExitCode::SUCCESS) else { return Ok(code) };
    let made = Checkpoint::open(&arguments.output)?;
    print(form, &Contents::of_model(&checkpoint), &Contents::of_model(&made))
}

/// Reports what quantization cost.
fn print(form: ReportForm, original: &Contents<'_>, made: &Contents<'_>) -> Result<ExitCode> {
    let tensors = report(original, made)?;
    let text = match form {
        ReportForm::Table => quality::table(&tensors),
        ReportForm::Json => quality::json(&tensors),
    };
    output::emit(&text, None)?;
    Ok(ExitCode::SUCCESS)
}

fn file(arguments: &Quantize, source: &Path) -> Result<ExitCode> {
    Engine::new(arguments.writing.threads)?;
    let format = BlockFormat {
        element: arguments.format.ok_or_else(|| usage(anyhow!("give --format")))?,
        block_size: arguments.block_size.map_or(BLOCK, |n| n as usize),
        scale_rule: arguments.scale_rule.unwrap_or_default(),
    };
    let expressions = &arguments.tensor;
    let select = |name: &str| expressions.is_empty() || expressions.iter().any(|e| e.is_match(name));
    let options = FileQuantization { format, ties: arguments.ties, unpacked: arguments.unpacked, select: &select };
    let code = transfer::run("quantizing", &arguments.output, |progress| {
        quantize_file(source, &arguments.output, &options, progress)
    })?;
    match arguments.report {
        Some(form) if code == ExitCode::SUCCESS => {
            print(form, &Contents::of_file(source)?, &Contents::of_file(&arguments.output)?)
        }
        _ => Ok(code),
    }
}
