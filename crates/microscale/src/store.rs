//! The store of scores: where it lies, and what a run keeps in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use microscale_eval::store::{Recorder, RunKey, Store, StoredTask};
use microscale_eval::{Archive, Task};
use microscale_model::{Checkpoint, Recipe};
use microscale_tensor::NUMERICS;
use serde_json::json;

use crate::arguments::Keeping;
use crate::commands::table::roles;
use crate::evaluation::Evaluation;
use crate::usage;

/// The file a command's store is in.
pub(crate) fn path(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        return Ok(path.to_owned());
    }
    let folder = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = folder("XDG_DATA_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| folder("HOME").map(|home| home.join(".local/share")));
    let data = data.ok_or_else(|| usage(anyhow!("the user's data folder is unknown; give --store FILE")))?;
    Ok(data.join("microscale/runs.sqlite"))
}

/// Keeps what a command scores, or nothing.
pub(crate) struct Keeper {
    store: Option<Store>,
    keys: Vec<RunKey>,
}

impl Keeper {
    /// Opens the store, if there is to be one, for rows of these recipes. One that was not asked for and cannot be
    /// opened is a warning.
    pub(crate) fn open(keeping: &Keeping, checkpoint: &Checkpoint, recipes: &[Recipe]) -> Result<Keeper> {
        let opened = match (keeping.no_store, &keeping.store) {
            (true, _) => None,
            (false, Some(path)) => Some(Store::open(path)?),
            (false, None) => match path(None).and_then(|path| Ok(Store::open(&path)?)) {
                Ok(store) => Some(store),
                Err(error) => {
                    eprintln!("warning: scores are not kept: {error}");
                    None
                }
            },
        };
        let keys =
            if opened.is_some() { recipes.iter().map(|recipe| key(checkpoint, recipe)).collect() } else { vec![] };
        Ok(Keeper { store: opened, keys })
    }

    /// Does `work` with the store as its archive and keeps what came of the tasks.
    pub(crate) fn run(
        &self,
        work: impl FnOnce(Option<&mut dyn Archive>) -> Result<Evaluation>,
        tasks: &[Task],
    ) -> Result<Evaluation> {
        let Some(store) = &self.store else { return work(None) };
        let mut recorder = Recorder::new(store, &self.keys)?;
        let evaluation = work(Some(&mut recorder))?;
        recorder.write().context("the scores are not kept")?;
        let runs = recorder.runs().to_vec();
        drop(recorder);
        for row in &evaluation.answers.rows {
            for (task, answers) in tasks.iter().zip(&row.tasks) {
                let stored = StoredTask::of(task, &answers.documents);
                if stored.documents.iter().any(Option::is_some) {
                    store.save_task(runs[row.row], &stored)?;
                }
            }
        }
        Ok(evaluation)
    }
}

/// What decides the scores of a model under a recipe, beside the requests.
fn key(checkpoint: &Checkpoint, recipe: &Recipe) -> RunKey {
    let formats = if recipe.is_bf16() {
        json!("bf16")
    } else {
        json!({
            "roles": roles(recipe),
            "block_size": recipe.block_size,
            "scale_rule": recipe.scale_rule.name(),
            "value_blocks": recipe.value_blocks.name(),
        })
    };
    RunKey {
        model: checkpoint.name().to_owned(),
        model_sha256: checkpoint.hash(),
        recipe: recipe.name.clone(),
        formats: formats.to_string(),
        numerics: NUMERICS,
    }
}
