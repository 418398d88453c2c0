//! Where models and task data come from: this binary, a folder, or the hub.

use std::cell::RefCell;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{ProgressBar, ProgressStyle};
use microscale::demo;
use microscale::hub::{self, Settings};
use microscale_eval::{Catalog, Files, Task};
use microscale_model::Checkpoint;

use crate::arguments::Tasks;
use crate::commands::table::SEED;
use crate::usage;

/// The model an argument names; without one, the demo model.
pub(crate) fn model(argument: Option<&str>) -> Result<Checkpoint> {
    let Some(argument) = argument.filter(|_| !is_demo(argument)) else { return Ok(demo::checkpoint()?) };
    let path = Path::new(argument);
    if path.exists() {
        return Ok(Checkpoint::open(path)?);
    }
    if hub::looks_like_hub_id(argument) {
        let folder = hub::model(argument, &Settings::from_env()?, &Bars::default())?;
        return Ok(Checkpoint::open(&folder)?.with_name(argument));
    }
    bail!("{argument}: no such folder, and no hub id (owner/name) either; give a Hugging Face model folder")
}

/// Whether an argument means the demo model; a folder of that name is `./demo`.
pub(crate) fn is_demo(argument: Option<&str>) -> bool {
    argument.is_none_or(|a| a == demo::NAME)
}

/// The tasks asked for, loaded and cut to `--limit`.
pub(crate) fn tasks(arguments: &Tasks, demo_model: bool) -> Result<Vec<Task>> {
    let asked: Vec<&str> = arguments.tasks.iter().map(|name| name.trim()).filter(|name| !name.is_empty()).collect();
    let files = match &arguments.data {
        Some(folder) => Files::open(folder)?,
        None if demo_model => demo::tasks(),
        None => download(&asked, arguments.num_fewshot > 0)?,
    };
    let catalog = Catalog::discover(files)?;
    let names = catalog.names();
    let asked: Vec<&str> = if asked.is_empty() { names.iter().map(String::as_str).collect() } else { asked };
    if asked.is_empty() {
        let place = arguments.data.as_deref().unwrap_or(Path::new(demo::NAME)).display();
        return Err(usage(anyhow!(
            "{place} holds no task data that I know: files of the authors' releases, <task>/**/test*.parquet and \
             validation*.parquet (or .jsonl), or NAME.jsonl of {{query, choices, gold}}"
        )));
    }
    asked
        .iter()
        .map(|name| {
            let mut task = catalog.load(name).map_err(|e| unknown_task(e, name, &names))?;
            if let Some(limit) = arguments.limit {
                task.limit(limit);
            }
            if arguments.num_fewshot > 0 {
                task.add_shots(&catalog.examples(name)?, arguments.num_fewshot as usize, SEED as u32)?;
            }
            Ok(task)
        })
        .collect()
}

/// A task that no file holds is wrong usage, and the names there are help.
fn unknown_task(error: microscale_eval::Error, name: &str, names: &[String]) -> anyhow::Error {
    if names.iter().any(|n| n == name) {
        return error.into();
    }
    usage(anyhow!(error).context(format!("the data holds the tasks {}", names.join(", "))))
}

/// The data sets of the tasks asked for, or of all five, from the hub, with their training splits for `examples`.
fn download(asked: &[&str], examples: bool) -> Result<Files> {
    let known: Vec<&str> = hub::tasks().collect();
    if let Some(name) = asked.iter().find(|name| !known.contains(name)) {
        return Err(usage(anyhow!(
            "{name} is not on the hub; give its folder with --data (the hub has {})",
            known.join(", ")
        )));
    }
    let wanted = if asked.is_empty() { &known[..] } else { asked };
    let (settings, bars) = (Settings::from_env()?, Bars::default());
    let mut files = Vec::new();
    for task in wanted {
        let found = hub::dataset(task, &settings, &bars);
        let advice = || format!("{task}: give its folder with --data, or let it be downloaded");
        files.extend(found.with_context(advice)?);
        if examples {
            files.extend(hub::examples(task, &settings, &bars).with_context(advice)?);
        }
    }
    Ok(Files::from_paths("hub", files))
}

/// One progress bar at a time on standard error.
#[derive(Default)]
struct Bars {
    current: RefCell<Option<(String, ProgressBar)>>,
}

impl hub::Progress for Bars {
    fn file(&self, name: &str, done: u64, total: u64) {
        let mut current = self.current.borrow_mut();
        if current.as_ref().is_none_or(|(file, _)| file != name) {
            let bar = ProgressBar::new(total);
            let style =
                ProgressStyle::with_template("{msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left");
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
            bar.set_message(name.to_owned());
            *current = Some((name.to_owned(), bar));
        }
        if let Some((_, bar)) = current.as_ref() {
            bar.set_position(done);
            if done == total {
                bar.finish_and_clear();
            }
        }
    }

    fn note(&self, line: &str) {
        eprintln!("note: {line}");
    }
}
