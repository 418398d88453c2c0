//! Where models and task data come from: this binary, a folder, or the hub.

use std::path::Path;

use anyhow::{Context, Result, bail};
use microscale::demo;
use microscale_eval::{Catalog, Files, Task};
use microscale_model::Checkpoint;

use crate::arguments::Tasks;
use crate::usage;

/// The model an argument names; without one, the demo model.
pub(crate) fn model(argument: Option<&str>) -> Result<Checkpoint> {
    let Some(argument) = argument.filter(|_| !is_demo(argument)) else { return Ok(demo::checkpoint()?) };
    let path = Path::new(argument);
    if path.exists() {
        return Ok(Checkpoint::open(path)?);
    }
    bail!("{argument}: no such folder; give a Hugging Face model folder")
}

/// Whether an argument means the demo model; a folder of that name is `./demo`.
pub(crate) fn is_demo(argument: Option<&str>) -> bool {
    argument.is_none_or(|a| a == demo::NAME)
}

/// The tasks asked for, loaded and cut to `--limit`.
pub(crate) fn tasks(arguments: &Tasks, demo_model: bool) -> Result<Vec<Task>> {
    let files = match &arguments.data {
        Some(folder) => Files::open(folder)?,
        None if demo_model => demo::tasks(),
        None => bail!("no task data; give its folder with --data"),
    };
    let catalog = Catalog::discover(files)?;
    let names = if arguments.tasks.is_empty() { catalog.names() } else { arguments.tasks.clone() };
    if names.is_empty() {
        let place = arguments.data.as_deref().unwrap_or(Path::new("demo")).display();
        return Err(usage(anyhow::anyhow!("{place} holds no task files that I know; see `microscale table --help`")));
    }
    names
        .iter()
        .map(|name| {
            let mut task = catalog.load(name.trim()).with_context(|| format!("task {name}"))?;
            if let Some(limit) = arguments.limit {
                task.limit(limit);
            }
            Ok(task)
        })
        .collect()
}
