//! How fast a model runs: tokens per second of prefill and decode, set against what the machine can do.
//!
//! Prefill is a prompt taken in at once, of which only the last position's logits are computed. Decode is tokens taken
//! in one at a time. Which tokens does not matter to the speed, so they are made up; none is chosen from the logits.

mod report;

use std::fmt;
use std::ops::Range;
use std::time::Instant;

use microscale_model::{Config, Error, KeyValueCache, Llama, PackedSize, Recipe};
use microscale_tensor::Backend;

pub use report::{Entry, Machine, Peaks, Report};

/// What to measure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Lengths of prompts.
    pub prefill: Vec<usize>,
    /// Numbers of tokens to decode.
    pub decode: Vec<usize>,
    /// Tokens that are there before the first one is decoded.
    pub context: usize,
    /// How often each is timed, after an untimed warm-up.
    pub repetitions: usize,
}

/// The two ways in which tokens are taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// All at once.
    Prefill,
    /// One after another.
    Decode,
}

impl Phase {
    /// The name reports use.
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

/// One thing to be timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// How the tokens are taken in.
    pub phase: Phase,
    /// How many there are.
    pub tokens: usize,
    /// How many are there before them.
    pub context: usize,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.phase.name(), self.tokens)?;
        if self.context > 0 { write!(f, " after {}", self.context) } else { Ok(()) }
    }
}

impl Plan {
    /// What is timed, in order.
    pub fn runs(&self) -> Vec<Run> {
        let prefill = self.prefill.iter().map(|&tokens| Run { phase: Phase::Prefill, tokens, context: 0 });
        let decode = self.decode.iter().map(|&tokens| Run { phase: Phase::Decode, tokens, context: self.context });
        prefill.chain(decode).collect()
    }
}

/// A run once.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Repetition {
    /// How long it took.
    pub seconds: f64,
    /// What the machine could do just before and just after: the mean of both. Where others use the machine too, that changes
    /// within seconds.
    pub peaks: Peaks,
}

/// How long a run took, and what was done in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Timing {
    /// What was timed.
    pub run: Run,
    /// In the order they were taken.
    pub repetitions: Vec<Repetition>,
    /// Bytes of packed weights that a pass reads at least once, per token of the pass. The embedding, of which a token
    /// reads one row, and the keys and values are not counted.
    pub bytes_per_token: f64,
    /// Floating-point operations per token, on average over the run.
    pub operations_per_token: f64,
    /// Bits per weight of the matrices, scales included.
    pub bits_per_weight: f64,
}

/// Says what the machine can do, before and after every repetition, and hears of each.
pub trait Watch {
    /// What measuring may end with.
    type Error: From<Error>;

    /// A repetition is about to begin.
    ///
    /// # Errors
    /// Peaks that cannot be measured.
    fn before(&mut self) -> Result<Peaks, Self::Error>;

    /// A repetition of this run took so many seconds.
    ///
    /// # Errors
    /// Peaks that cannot be measured.
    fn after(&mut self, run: Run, seconds: f64) -> Result<Peaks, Self::Error>;
}

/// Times all runs of a plan on one model, each a number of times.
///
/// # Errors
/// A run without tokens, or one longer than the model's rotary embedding allows; those of `watch`.
pub fn measure<B: Backend, W: Watch>(
    model: &Llama<B>,
    recipe: &Recipe,
    plan: &Plan,
    watch: &mut W,
) -> Result<Vec<Timing>, W::Error> {
    let (config, size) = (model.config(), PackedSize::of(model.config(), recipe));
    let mut timings = Vec::new();
    for run in plan.runs() {
        if run.tokens == 0 {
            let reason = format!("{run}: there is nothing to time without a token");
            return Err(Error::Generation { reason }.into());
        }
        // One step of a decode is as good a warm-up as all.
        let warm_up = if run.phase == Phase::Decode { Run { tokens: 1, ..run } } else { run };
        time(model, warm_up)?;
        let mut repetitions = Vec::new();
        for _ in 0..plan.repetitions {
            let before = watch.before()?;
            let seconds = time(model, run)?;
            repetitions.push(Repetition { seconds, peaks: before.mean(watch.after(run, seconds)?) });
        }
        timings.push(Timing {
            run,
            repetitions,
            bytes_per_token: (size.layer_bytes + size.head_bytes) as f64 / tokens_per_pass(run),
            operations_per_token: operations(config, &size, run) / run.tokens as f64,
            bits_per_weight: size.bits_per_weight(),
        });
    }
    Ok(timings)
}

/// Seconds that one run takes on a fresh cache, its context not counted.
fn time<B: Backend>(model: &Llama<B>, run: Run) -> Result<f64, Error> {
    let tokens = some_tokens(model.config(), run.context + run.tokens);
    let (context, tokens) = tokens.split_at(run.context);
    let mut cache = model.cache();
    if !context.is_empty() {
        take_in(model, &mut cache, context)?;
    }
    let start = Instant::now();
    match run.phase {
        Phase::Prefill => take_in(model, &mut cache, tokens)?,
        Phase::Decode => tokens.chunks(1).try_for_each(|token| take_in(model, &mut cache, token))?,
    }
    Ok(start.elapsed().as_secs_f64())
}

/// One pass. Its logits are fetched, as whoever decodes must, and so that a device that works on its own is waited for.
fn take_in<B: Backend>(model: &Llama<B>, cache: &mut KeyValueCache<B>, tokens: &[u32]) -> Result<(), Error> {
    let logits = model.extend(cache, tokens)?;
    std::hint::black_box(model.backend().download(&logits));
    Ok(())
}

/// Tokens spread over the vocabulary.
fn some_tokens(config: &Config, count: usize) -> Vec<u32> {
    (0..count).map(|i| ((i * 7919 + 13) % config.vocab_size) as u32).collect()
}

/// Tokens that share a reading of the weights.
fn tokens_per_pass(run: Run) -> f64 {
    match run.phase {
        Phase::Prefill => run.tokens as f64,
        Phase::Decode => 1.0,
    }
}

/// Multiplications and additions of a run: in every weight that a token meets, and in attention's two products. Of the last
/// layer all tokens of a pass meet those for keys and values, its last token alone the others.
fn operations(config: &Config, size: &PackedSize, run: Run) -> f64 {
    let (tokens, layers) = (run.tokens as f64, config.layers as f64);
    let passes = tokens / tokens_per_pass(run); // each computes one position's logits
    let keys_and_values = (2 * config.kv_heads * config.head_dim * config.hidden_size) as f64;
    let others = size.layer_weights as f64 / layers - keys_and_values;
    let weights = layers * keys_and_values * tokens + others * ((layers - 1.0) * tokens + passes);
    // The query at position p meets p + 1 keys and as many values.
    let pairs = |positions: Range<usize>| positions.map(|position| (position + 1) as f64).sum::<f64>();
    let all = run.context..run.context + run.tokens;
    let last = if run.phase == Phase::Prefill { all.end - 1..all.end } else { all.clone() };
    let attention = 2.0 * (config.heads * config.head_dim) as f64 * ((layers - 1.0) * pairs(all) + pairs(last));
    2.0 * (weights + size.head_weights as f64 * passes + attention)
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_model::Shape;

    #[test]
    fn operations_are_counted_by_hand() {
        let config = Shape::named("llama-3.2-1b").unwrap().config();
        let size = PackedSize::of(&config, &Recipe::bf16());
        let count = |phase, tokens, context| operations(&config, &size, Run { phase, tokens, context });
        let (layers, head) = (16.0 * (2.0 * 2048.0 * (2048.0 + 512.0) + 3.0 * 8192.0 * 2048.0), 128_256.0 * 2048.0);
        let pair = 16.0 * 2048.0 * 4.0; // layers, width of all heads, two products of two operations
        // Tokens 1 and 2 have keys and values in the last layer, and nothing else.
        let skipped = 2.0 * (2.0 * 2048.0 * 2048.0 + 3.0 * 8192.0 * 2048.0);
        let prefill = 2.0 * (3.0 * layers - skipped + head) + (6.0 - 3.0 / 16.0) * pair;
        assert_eq!(count(Phase::Prefill, 3, 0), prefill);
        assert_eq!(count(Phase::Decode, 3, 0), 2.0 * 3.0 * (layers + head) + 6.0 * pair);
        assert_eq!(count(Phase::Decode, 1, 99), 2.0 * (layers + head) + 100.0 * pair);
    }

    #[test]
    fn a_plan_is_prompts_then_decoding() {
        let plan = Plan { prefill: vec![128, 512], decode: vec![64], context: 10, repetitions: 1 };
        let runs: Vec<String> = plan.runs().iter().map(Run::to_string).collect();
        assert_eq!(runs, ["prefill 128", "prefill 512", "decode 64 after 10"]);
    }
}
