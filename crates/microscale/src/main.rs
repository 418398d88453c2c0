//! The `microscale` command.

mod allocator;
mod arguments;
mod commands;
mod engine;
mod evaluation;
mod interrupt;
mod machine;
mod output;
mod quality;
mod sources;
mod store;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

use arguments::Command;

/// An error in what was asked for rather than in doing it: exit code 2.
#[derive(Debug)]
struct Usage(anyhow::Error);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&one_line(&self.0))
    }
}

impl std::error::Error for Usage {}

/// Marks an error as one of usage.
fn usage(error: impl Into<anyhow::Error>) -> anyhow::Error {
    Usage(error.into()).into()
}

/// An error with its causes, those left out that the message before them already tells.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        told if told.contains(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
}

fn main() -> ExitCode {
    let result = match arguments::Arguments::parse().command {
        Command::Table(arguments) => commands::table::run(&arguments),
        Command::Eval(arguments) => commands::eval::run(&arguments),
        Command::Perplexity(arguments) => commands::perplexity::run(&arguments),
        Command::Runs(arguments) => commands::runs::run(&arguments),
        Command::Generate(arguments) => commands::generate::run(&arguments),
        Command::Bench(arguments) => commands::bench::run(&arguments),
        Command::Logits(arguments) => commands::logits::run(&arguments),
        Command::Quantize(arguments) => commands::quantize::run(&arguments),
        Command::Convert(arguments) => commands::convert::run(&arguments),
        Command::Dequantize(arguments) => commands::dequantize::run(&arguments),
        Command::Compare(arguments) => commands::compare::run(&arguments),
        Command::Conform(arguments) => commands::conform::run(&arguments),
        Command::Recipes(arguments) => commands::recipes::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Doctor => commands::doctor::run(),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}
