//! Zero-shot evaluation of language models: what is asked, how it is scored, and what the numbers say.
//!
//! The way of the data: [`Files`] → [`Catalog`] → [`Task`] → [`Encoder`] → [`run`] → [`TaskScore`] → [`report`] and
//! [`harness`]. Tasks, requests, metrics and files are those of EleutherAI's lm-evaluation-harness. This crate names no
//! format, no device and no tensor: a row is an opaque label of a [`Scorer`](microscale_model::Scorer).
//!
//! ```no_run
//! use std::ops::ControlFlow;
//! use std::path::Path;
//!
//! use microscale_eval::harness::{HarnessRun, HarnessTask, write_harness_files};
//! use microscale_eval::{Catalog, Encoder, Files, Report, RowReport, Task, TaskScore, run};
//! use microscale_model::{Scorer, Tokenizer};
//!
//! fn evaluate(scorer: &mut dyn Scorer, tokenizer: &Tokenizer) -> Result<String, Box<dyn std::error::Error>> {
//!     let catalog = Catalog::discover(Files::open(Path::new("data"))?)?;
//!     let mut tasks = catalog.names().iter().map(|name| catalog.load(name)).collect::<Result<Vec<Task>, _>>()?;
//!     tasks.iter_mut().for_each(|task| task.limit(100.0));
//!
//!     let encoder = Encoder::new(tokenizer, 2048);
//!     let requests = tasks.iter().map(|task| encoder.encode_task(task)).collect::<Result<Vec<_>, _>>()?;
//!     let answers = run(scorer, &[0, 1], &requests, &mut |progress| {
//!         eprintln!("{} of {}", progress.requests_done, progress.requests_total);
//!         ControlFlow::Continue(()) // Break ends the run with what there is
//!     })?;
//!
//!     let mut rows = Vec::new();
//!     for row in &answers.rows {
//!         let scored = tasks.iter().zip(&row.tasks);
//!         let scores: Vec<(String, TaskScore)> =
//!             scored.map(|(task, answers)| (task.name.clone(), task.score(&answers.documents))).collect();
//!         let label = scorer.rows()[row.row].clone();
//!         rows.push(RowReport::new(label.clone(), label.clone(), scores));
//!
//!         let files: Vec<HarnessTask> = tasks
//!             .iter()
//!             .zip(&row.tasks)
//!             .map(|(task, answers)| HarnessTask { task, answers: &answers.documents })
//!             .collect();
//!         let run = HarnessRun { model_source: "microscale".into(), model_name: label, ..HarnessRun::default() };
//!         write_harness_files(Path::new("out"), &run, &files, true)?;
//!     }
//!     Ok(Report::new(serde_json::Map::new(), "manifest".into(), rows).to_text(120))
//! }
//! ```

mod catalog;
mod digest;
mod encode;
mod error;
mod files;
pub mod harness;
mod import;
mod metrics;
mod output;
pub mod python_random;
mod python_text;
mod record;
pub mod report;
mod rolling;
mod runner;
mod shots;
pub mod statistics;
pub mod store;
pub mod tasks;

pub use catalog::Catalog;
pub use encode::{Encoder, TaskRequests};
pub use error::Error;
pub use files::Files;
pub use import::{Imported, read_harness};
pub use metrics::{Estimate, TaskScore, Verdict, average};
pub use output::write_atomically;
pub use report::{Report, RowReport};
pub use rolling::rolling;
pub use runner::{Answer, Answers, Archive, Counts, Kept, Progress, RowAnswers, Run, TaskAnswers, run};
pub use tasks::{Document, Metric, Task};
