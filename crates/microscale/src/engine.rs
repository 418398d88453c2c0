//! The one place that chooses what the model runs on.

use anyhow::{Context, Result};
use microscale::bench::Peaks;
use microscale_model::{Checkpoint, Limits, Llama, ModelScorer, Recipe, Scorer, TensorSource, ValueBlocks};
use microscale_tensor::{Cpu, Isa, peaks};

use crate::arguments::{Scoring, ValueBlocksArgument};
use crate::{machine, usage};

/// Device and limits, from the command line and the environment.
pub(crate) struct Engine {
    cpu: Cpu,
    threads: usize,
}

impl Engine {
    /// Reads `MICROSCALE_ISA` and sets up the threads. Called once.
    pub(crate) fn new(threads: Option<u32>) -> Result<Engine> {
        let isa = isa()?;
        let threads = threads.map_or(0, |n| n as usize); // 0: as rayon sees fit
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().context("cannot start threads")?;
        Ok(Engine { cpu: Cpu::with_isa(isa), threads: rayon::current_num_threads() })
    }

    pub(crate) fn isa(&self) -> Isa {
        self.cpu.isa()
    }

    pub(crate) fn threads(&self) -> usize {
        self.threads
    }

    /// A scorer with one row per recipe.
    pub(crate) fn scorer<'a>(
        &self,
        checkpoint: &'a Checkpoint,
        recipes: Vec<Recipe>,
        scoring: &Scoring,
    ) -> Box<dyn Scorer + 'a> {
        let memory = scoring.memory.or_else(|| machine::memory().map(|memory| memory.available / 10 * 9));
        let scorer = ModelScorer::new(self.cpu, checkpoint, recipes, limits(scoring, checkpoint));
        Box::new(scorer.memory(memory).share_prefixes(!scoring.no_prefix_sharing))
    }

    /// A model in the formats of a recipe.
    pub(crate) fn load(&self, source: &dyn TensorSource, recipe: &Recipe) -> Result<Llama<Cpu>> {
        Ok(Llama::load(self.cpu, source, recipe)?)
    }

    /// What the machine can do at most on these threads.
    pub(crate) fn peaks(&self) -> Result<Peaks> {
        let read = peaks::read_bandwidth(self.isa()).context("cannot measure how fast memory is read")?;
        Ok(Peaks { read, products: peaks::products(self.isa()) })
    }
}

/// The instruction set of `MICROSCALE_ISA`, else the best there is.
pub(crate) fn isa() -> Result<Isa> {
    match std::env::var("MICROSCALE_ISA") {
        Ok(name) => Isa::from_name(&name).context("MICROSCALE_ISA").map_err(usage),
        Err(_) => Ok(Isa::best()),
    }
}

/// A recipe by name, file or text, with the command line's `--value-blocks`.
pub(crate) fn recipe(argument: &str, value_blocks: Option<ValueBlocksArgument>) -> Result<Recipe> {
    let recipe = Recipe::parse(argument).map_err(usage)?;
    for warning in recipe.warnings() {
        eprintln!("warning: recipe {}: {warning}", recipe.name);
    }
    Ok(with_value_blocks(recipe, value_blocks))
}

/// The recipe to run a model in: the one asked for, else that of a quantized model, else bf16.
pub(crate) fn recipe_for(
    checkpoint: &Checkpoint,
    asked: Option<Recipe>,
    value_blocks: Option<ValueBlocksArgument>,
) -> Result<Recipe> {
    let own = || checkpoint.quantization().map_or_else(Recipe::bf16, |quantization| quantization.recipe.clone());
    let recipe = asked.unwrap_or_else(|| with_value_blocks(own(), value_blocks));
    checkpoint.check_recipe(&recipe).map_err(usage)?;
    Ok(recipe)
}

/// The rows of a comparison, each once: bf16, then the recipes asked for. A quantized model has no bf16 row: its own recipe
/// is the first that it can show, and the only one unless others are asked for.
///
/// # Errors
/// Of a quantized model, a recipe with other weights.
pub(crate) fn rows(
    checkpoint: &Checkpoint,
    asked: Vec<Recipe>,
    value_blocks: Option<ValueBlocksArgument>,
) -> Result<Vec<Recipe>> {
    if checkpoint.quantization().is_some() {
        let asked = if asked.is_empty() { vec![recipe_for(checkpoint, None, value_blocks)?] } else { asked };
        asked.iter().try_for_each(|recipe| checkpoint.check_recipe(recipe)).map_err(usage)?;
        return Ok(distinct(Vec::new(), asked));
    }
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

fn with_value_blocks(mut recipe: Recipe, value_blocks: Option<ValueBlocksArgument>) -> Recipe {
    recipe.value_blocks = match value_blocks {
        None => recipe.value_blocks,
        Some(ValueBlocksArgument::Auto) => ValueBlocks::Auto,
        Some(ValueBlocksArgument::Sequence) => ValueBlocks::Sequence,
        Some(ValueBlocksArgument::Causal) => ValueBlocks::Causal,
    };
    recipe
}

/// A warning where the command line exceeds what the model was made for.
pub(crate) fn warn_of_length(scoring: &Scoring, checkpoint: &Checkpoint) {
    let (own, asked) = (checkpoint.config().max_position_embeddings, limits(scoring, checkpoint).max_length);
    if asked > own {
        eprintln!("warning: --max-length {asked} is beyond the {own} positions {} was made for", checkpoint.name());
    }
}

/// Batch size and longest input.
pub(crate) fn limits(scoring: &Scoring, checkpoint: &Checkpoint) -> Limits {
    let own = checkpoint.config().max_position_embeddings;
    let max_length = scoring.max_length.map_or(own, |n| n as usize);
    Limits { batch_size: scoring.batch_size.map(|n| n as usize), max_length }
}
