//! `microscale bench`: how fast a model runs.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail};
use microscale::bench::{Entry, Machine, Peaks, Plan, Report, Run, Watch, measure};
use microscale_model::{Checkpoint, Config, PackedSize, RandomWeights, Recipe, Shape, TensorSource};

use super::inspect::size;
use crate::arguments::{Bench, Format};
use crate::engine::{self, Engine};
use crate::{machine, output, sources, usage};

/// What is measured where nothing else is asked for.
const RECIPE: &str = "w6a8";
const PREFILL: usize = 512;
const DECODE: usize = 64;
/// Of the random weights.
const SEED: u64 = 1;

pub(crate) fn run(arguments: &Bench) -> Result<ExitCode> {
    let engine = Engine::new(arguments.threads)?;
    let asked = asked(arguments)?;
    let subject = Subject::new(arguments)?;
    let recipes = recipes(asked, &subject)?;
    let plan = plan(arguments, subject.source().config())?;
    recipes.iter().try_for_each(|recipe| check_memory(&subject, recipe))?;
    let mut results = Vec::new();
    for recipe in &recipes {
        results.extend(measured(&engine, &subject, recipe, &plan, arguments.step)?);
    }
    let machine = Machine { cpu: machine::cpu(), isa: engine.isa().name().to_owned(), threads: engine.threads() };
    let report = Report { machine, results };
    let text = match arguments.format {
        Format::Text => report.to_text(),
        Format::Markdown => report.to_markdown(),
        Format::Csv => report.to_csv(),
        Format::Json => serde_json::to_string_pretty(&report.to_json())? + "\n",
    };
    output::emit(&text, arguments.output.as_deref())?;
    Ok(ExitCode::SUCCESS)
}

/// The model to measure.
enum Subject {
    Checkpoint(Box<Checkpoint>),
    Random(&'static str, RandomWeights),
}

impl Subject {
    fn new(arguments: &Bench) -> Result<Subject> {
        let Some(name) = &arguments.shape else {
            return Ok(Subject::Checkpoint(Box::new(sources::model(arguments.model.as_deref())?)));
        };
        let shape = Shape::named(name).ok_or_else(|| {
            usage(anyhow!("--shape: no model {name:?} is known, but {}", Shape::ALL.map(|shape| shape.name).join(", ")))
        })?;
        Ok(Subject::Random(shape.name, RandomWeights::new(shape.config(), SEED)))
    }

    fn name(&self) -> &str {
        match self {
            Subject::Checkpoint(checkpoint) => checkpoint.name(),
            Subject::Random(name, _) => name,
        }
    }

    fn source(&self) -> &dyn TensorSource {
        match self {
            Subject::Checkpoint(checkpoint) => checkpoint.as_ref(),
            Subject::Random(_, weights) => weights,
        }
    }
}

/// The recipes of the command line.
fn asked(arguments: &Bench) -> Result<Vec<Recipe>> {
    let named = arguments.recipe.iter().map(|name| engine::recipe(name, None)?.for_generation().map_err(usage));
    named.collect()
}

/// Those, or the usual one, or that of a quantized model.
fn recipes(asked: Vec<Recipe>, subject: &Subject) -> Result<Vec<Recipe>> {
    let stored = match subject {
        Subject::Checkpoint(checkpoint) => checkpoint.quantization().map(|quantization| quantization.recipe.clone()),
        Subject::Random(..) => None,
    };
    let recipes = match (asked.is_empty(), stored) {
        (false, _) => asked,
        (true, stored) => {
            let recipe = stored.map_or_else(|| Recipe::parse(RECIPE), Ok)?;
            vec![recipe.for_generation().map_err(usage)?]
        }
    };
    recipes.iter().try_for_each(|recipe| subject.source().check_recipe(recipe)).map_err(usage)?;
    Ok(recipes)
}

/// What to measure: what is asked for, or a usual prompt and a usual answer as far as the model has positions.
fn plan(arguments: &Bench, config: &Config) -> Result<Plan> {
    let positions = config.max_position_embeddings;
    let context = arguments.context as usize;
    let counts = |list: &[u32]| list.iter().map(|&n| n as usize).collect::<Vec<_>>();
    let mut plan = Plan {
        prefill: counts(&arguments.prefill),
        decode: counts(&arguments.decode),
        context,
        repetitions: arguments.repetitions as usize,
    };
    if plan.prefill.is_empty() && plan.decode.is_empty() {
        plan.prefill.push(PREFILL.min(positions));
        plan.decode.push(DECODE.min(positions.saturating_sub(context)).max(1));
    }
    match plan.runs().into_iter().find(|run| run.context + run.tokens > positions) {
        None => Ok(plan),
        Some(run) => Err(usage(anyhow!("{run}: the model has {positions} positions; ask for fewer tokens"))),
    }
}

/// Whether the model will fit the memory there is: packed, and beside it the largest matrix as bf16.
fn check_memory(subject: &Subject, recipe: &Recipe) -> Result<()> {
    let packed = PackedSize::of(subject.source().config(), recipe);
    let needed = packed.total_bytes() + 2 * packed.largest_matrix;
    if let Some(memory) = machine::memory().filter(|memory| memory.available < needed) {
        bail!(
            "{} under {} takes {} of memory, and {} while it is loaded; {} are available. Choose a smaller model or recipe",
            subject.name(),
            recipe.name,
            size(packed.total_bytes()),
            size(needed),
            size(memory.available)
        );
    }
    Ok(())
}

/// Loads the model under a recipe, times it and lets go of it.
fn measured(engine: &Engine, subject: &Subject, recipe: &Recipe, plan: &Plan, step: bool) -> Result<Vec<Entry>> {
    let counted = machine::reset_peak_memory();
    let start = Instant::now();
    let model = engine.load(subject.source(), recipe)?;
    let load_s = start.elapsed().as_secs_f64();
    eprintln!("{}, {}: loaded in {load_s:.1} s", subject.name(), recipe.name);
    let title = format!("{}, {}", subject.name(), recipe.name);
    let mut watcher = Watcher { engine, title, step, latest: None, memory: None };
    let timings = measure(&model, recipe, plan, &mut watcher)?;
    let peak_memory_bytes = watcher.memory.filter(|_| counted);
    let entry = |timing| Entry {
        model: subject.name().to_owned(),
        recipe: recipe.name.clone(),
        timing,
        load_s,
        peak_memory_bytes,
    };
    Ok(timings.into_iter().map(entry).collect())
}

/// Measures the machine between repetitions, and writes of each.
struct Watcher<'a> {
    engine: &'a Engine,
    title: String,
    /// Whether a repetition waits for a line of standard input.
    step: bool,
    /// Peaks after the repetition before.
    latest: Option<Peaks>,
    /// The most the process held, measuring not counted.
    memory: Option<u64>,
}

impl Watcher<'_> {
    fn peaks(&mut self) -> Result<Peaks> {
        self.memory = self.memory.max(machine::peak_memory());
        let peaks = self.engine.peaks();
        machine::reset_peak_memory();
        peaks
    }
}

impl Watch for Watcher<'_> {
    type Error = anyhow::Error;

    fn before(&mut self) -> Result<Peaks> {
        let latest = self.latest.take().filter(|_| !self.step);
        if self.step && std::io::stdin().read_line(&mut String::new()).context("standard input")? == 0 {
            self.step = false; // nobody is there any more
        }
        latest.map_or_else(|| self.peaks(), Ok)
    }

    fn after(&mut self, run: Run, seconds: f64) -> Result<Peaks> {
        let peaks = self.peaks()?;
        eprintln!("{}: {run}: {:.1} tokens/s", self.title, run.tokens as f64 / seconds);
        self.latest = Some(peaks);
        Ok(peaks)
    }
}
