//! One evaluation: tasks are encoded, every row is scored with a progress bar, answers become scores.

use std::fmt::Write;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use microscale_eval::{Answers, Archive, Encoder, RowAnswers, Run, Task, TaskRequests, TaskScore};
use microscale_model::{Checkpoint, Limits, Scorer};

use crate::interrupt;

/// What a run gave, and what it took.
pub(crate) struct Evaluation {
    pub(crate) answers: Answers,
    /// Tokens of the requests scored, over all rows.
    pub(crate) tokens: usize,
    pub(crate) time: Duration,
}

/// Encodes the tasks for the model.
pub(crate) fn encode(tasks: &[Task], checkpoint: &Checkpoint, limits: &Limits) -> Result<Vec<TaskRequests>> {
    let tokenizer = checkpoint.tokenizer()?;
    let encoder = Encoder::new(&tokenizer, limits.max_length);
    let requests: Vec<TaskRequests> = tasks.iter().map(|task| encoder.encode_task(task)).collect::<Result<_, _>>()?;
    for task in requests.iter().filter(|task| task.truncated > 0) {
        eprintln!(
            "warning: {}: {} requests are longer than {} tokens and lost their beginning (see --max-length)",
            task.task, task.truncated, limits.max_length
        );
    }
    Ok(requests)
}

/// Scores all tasks under all rows of the scorer, with the other rows' divergence from the first if that is wanted.
pub(crate) fn evaluate(
    scorer: &mut dyn Scorer,
    requests: &[TaskRequests],
    divergence: bool,
    archive: Option<&mut dyn Archive>,
) -> Result<Evaluation> {
    interrupt::listen("this batch")?;
    let rows: Vec<usize> = (0..scorer.rows().len()).collect();
    let label = if let [only] = scorer.rows() { only.clone() } else { format!("{} rows", rows.len()) };
    let bar = ProgressBar::no_length();
    bar.set_style(
        ProgressStyle::with_template("{msg} [{bar:30}] {percent}% of {len} tokens, {rate} tokens/s, {eta} left")
            .context("progress bar")?
            .with_key("rate", |state: &ProgressState, to: &mut dyn Write| {
                let _ = write!(to, "{:.0}", state.per_sec()); // writing to a String cannot fail
            })
            .progress_chars("=> "),
    );
    bar.set_message(label);
    let (start, mut tokens) = (Instant::now(), 0);
    let archive = archive.map(|archive| archive as &mut dyn Archive); // for as long as the rows live
    let run = Run { rows: &rows, tasks: requests, divergence, archive };
    let answers = run.score(scorer, &mut |now| {
        if tokens == 0 {
            bar.set_length(now.tokens_total as u64);
        }
        tokens = now.tokens_done;
        bar.set_position((now.tokens_done + now.tokens_underway) as u64);
        if interrupt::requested() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    bar.finish_and_clear();
    Ok(Evaluation { answers: answers?, tokens, time: start.elapsed() })
}

/// The scores of one row, task by task; tasks of which no document was finished are left out.
pub(crate) fn scores(tasks: &[Task], row: &RowAnswers) -> Vec<(String, TaskScore)> {
    let judged = tasks.iter().zip(&row.tasks).map(|(task, row)| (task.name.clone(), task.score(&row.documents)));
    judged.filter(|(_, score)| score.n > 0).collect()
}
