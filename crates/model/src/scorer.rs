//! A model and its recipes as a [`Scorer`]: all rows go through a layer together, so that its weights are read once.

use std::ops::ControlFlow;

use microscale_tensor::Backend;

use crate::llama::outside_vocabulary;
use crate::prefix::{Sharing, batches};
use crate::row_weights::{Origin, RowWeights};
use crate::shelf::Shelf;
use crate::travel::Travel;
use crate::weights::block_format;
use crate::{Error, Event, Recipe, Request, Role, Scorer, TensorSource, ValueBlocks};

/// Input tokens of a batch where no batch size is given: enough to keep every thread busy, small enough for a cache.
const BATCH_TOKENS: usize = 4096;
/// Input tokens of a chunk where layers are read as they are needed. Reading a weight then costs less than a hundredth
/// of multiplying by it, so that more would save nothing, and whoever kills the process would lose more.
const CHUNK_TOKENS: usize = 1 << 15;
/// Logits of one row in memory at a time.
const LOGITS: usize = 1 << 24;
/// Weights of a matrix up to which its product with a batch is too short to be worth sharing out among threads: then each
/// takes a batch of its own, ...
const SMALL: usize = 1 << 17;
/// ... of so many input tokens, whose activations and caches stay nearer to it, ...
const SMALL_BATCH_TOKENS: usize = 2048;
/// ... and so many batches are on their way at most.
const TOGETHER: usize = 32;

/// Scores requests under several recipes of one model.
///
/// Requests go through the model in chunks, every chunk through a layer under all recipes before the next layer is
/// asked for. If all weights fit into memory a chunk is a batch; otherwise layers are read from the source as they are
/// needed, once per chunk, and a chunk is several batches, whose activations wait between layers in memory or, where
/// that has no room, in a temporary file.
pub struct ModelScorer<'a, B: Backend> {
    backend: B,
    source: &'a (dyn TensorSource + Sync),
    recipes: Vec<Recipe>,
    names: Vec<String>,
    limits: Limits,
    memory: Option<usize>,
    share_prefixes: bool,
    /// Of the rows scored last.
    weights: Option<RowWeights<B>>,
}

/// What bounds a batch and a sequence.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sequences per batch; `None` fills a batch up to a number of tokens.
    pub batch_size: Option<usize>,
    /// Longest model input in tokens.
    pub max_length: usize,
}

impl<'a, B: Backend + Clone + 'static> ModelScorer<'a, B> {
    /// One row per recipe. `value-blocks = "auto"` means `sequence` here, where whole sequences are scored.
    pub fn new(backend: B, source: &'a (dyn TensorSource + Sync), recipes: Vec<Recipe>, limits: Limits) -> Self {
        let recipes: Vec<Recipe> = recipes.into_iter().map(Recipe::for_scoring).collect();
        let names = recipes.iter().map(|r| r.name.clone()).collect();
        ModelScorer { backend, source, recipes, names, limits, memory: None, share_prefixes: true, weights: None }
    }

    /// Bytes to stay within; what cannot be held to is refused. Without it all weights are held, whatever they take.
    pub fn memory(self, bytes: Option<usize>) -> Self {
        ModelScorer { memory: bytes, ..self }
    }

    /// Whether the common beginning of several requests is computed once, which it is by default.
    pub fn share_prefixes(self, share: bool) -> Self {
        ModelScorer { share_prefixes: share, ..self }
    }

    fn check(&self, requests: &[Request]) -> Result<(), Error> {
        let (vocabulary, longest) = (self.source.config().vocab_size, self.limits.max_length);
        for (index, request) in requests.iter().enumerate() {
            let n = request.tokens.len();
            let reason = if request.context == 0 || request.context >= n {
                format!("needs a context and a continuation; it has {n} tokens, {} of them context", request.context)
            } else if n - 1 > longest {
                format!("takes {} input tokens, the limit is {longest}; truncate it or raise --max-length", n - 1)
            } else if let Some(reason) = outside_vocabulary(&request.tokens, vocabulary) {
                reason
            } else {
                continue;
            };
            return Err(Error::Request { index, reason });
        }
        Ok(())
    }

    fn origin(&self) -> Origin<'_, B> {
        Origin { backend: &self.backend, source: self.source, recipes: &self.recipes }
    }

    /// Bytes that operations on a batch of `tokens` take beside weights and what goes from layer to layer.
    fn working_bytes(&self, tokens: usize) -> usize {
        let c = self.source.config();
        tokens * (6 * c.intermediate_size + 12 * c.hidden_size) + 16 * LOGITS
    }

    /// The weights of `rows`, and how many bytes are left for activations between layers.
    fn prepare(&mut self, rows: &[usize]) -> Result<(RowWeights<B>, usize), Error> {
        let bytes = self.origin().bytes(rows);
        let (allowed, working) = (self.memory.unwrap_or(usize::MAX), self.working_bytes(BATCH_TOKENS));
        let resident = bytes.resident.saturating_add(working) <= allowed;
        let needed = if resident { bytes.resident } else { bytes.streamed } + working;
        let room = allowed.checked_sub(needed).ok_or(Error::Memory { needed, allowed })?;
        let weights = match self.weights.take().filter(|weights| weights.rows == rows) {
            Some(weights) => weights,
            None => self.origin().load(rows, resident)?,
        };
        Ok((weights, room))
    }

    /// Up to which multiple of tokens a row's requests may share their beginnings: all of them, unless blocks of values
    /// reach over the end of what is shared.
    fn step(&self, row: usize) -> usize {
        let recipe = &self.recipes[row];
        match block_format(recipe, Role::Value) {
            Some(format) if recipe.value_blocks != ValueBlocks::Causal => format.block_size,
            _ => 1,
        }
    }

    /// Whether several batches at a time are faster than one, and `room` has place for them.
    fn is_small(&self, room: usize) -> bool {
        let c = self.source.config();
        c.hidden_size * c.intermediate_size <= SMALL && TOGETHER * self.working_bytes(SMALL_BATCH_TOKENS) <= room
    }

    /// Scores batches some at a time, each of which goes through all layers by itself.
    fn side_by_side(
        &self,
        travel: &Travel<'_, B>,
        batches: &[Vec<usize>],
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        for some in batches.chunks(TOGETHER) {
            for outcomes in self.backend.passes(some.len(), |i| travel.alone(&some[i])) {
                for outcome in outcomes? {
                    if sink(Event::Scored(outcome)).is_break() {
                        return Ok(());
                    }
                }
            }
        }
        Ok(())
    }

    /// Scores batches in chunks, each of which goes through a layer as a whole before the next layer is asked for.
    fn in_chunks(
        &self,
        travel: &Travel<'_, B>,
        batches: &[Vec<usize>],
        room: usize,
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let (weights, requests) = (travel.weights, travel.requests);
        let chunk_tokens = if weights.is_resident() { 0 } else { CHUNK_TOKENS };
        let mut waiting = batches.iter().peekable();
        while waiting.peek().is_some() {
            let mut shelf = Shelf::new(&self.backend, room);
            let (mut chunk, mut tokens) = (Vec::new(), 0);
            while let Some(batch) = waiting.next_if(|batch| {
                let most: usize = batch.iter().map(|&i| requests[i].input().len()).sum();
                tokens == 0 || tokens + most <= chunk_tokens
            }) {
                let one = travel.depart(batch, &mut shelf)?;
                tokens += one.tokens();
                chunk.push(one);
            }
            let mut passed = 0;
            let through = weights.each_layer(&self.origin(), |kinds| {
                for one in &mut chunk {
                    self.backend.session(|| travel.pass(one, kinds, &mut shelf))?;
                    passed += travel.work(one);
                    if sink(Event::Underway { tokens: passed / self.source.config().layers }).is_break() {
                        return Ok(ControlFlow::Break(()));
                    }
                }
                Ok(ControlFlow::Continue(()))
            })?;
            if through.is_break() {
                return Ok(());
            }
            for one in chunk {
                let states = travel.unload(&one, &mut shelf)?;
                for slice in travel.slices(&one) {
                    for outcome in self.backend.session(|| travel.outcomes(&one, &states, slice)) {
                        if sink(Event::Scored(outcome)).is_break() {
                            return Ok(());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

impl<B: Backend + Clone + 'static> Scorer for ModelScorer<'_, B> {
    fn rows(&self) -> &[String] {
        &self.names
    }

    fn score(
        &mut self,
        rows: &[usize],
        requests: &[Request],
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.check(requests)?;
        if rows.is_empty() || requests.is_empty() {
            return Ok(());
        }
        let (weights, room) = self.prepare(rows)?;
        let small = weights.is_resident() && self.is_small(room);
        let sharing = Sharing {
            requests: self.limits.batch_size,
            tokens: if small { SMALL_BATCH_TOKENS } else { BATCH_TOKENS },
            enabled: self.share_prefixes,
            longest: self.source.config().rope.changes_beyond().unwrap_or(usize::MAX),
        };
        let steps: Vec<usize> = rows.iter().map(|&row| self.step(row)).collect();
        let logits = if small { LOGITS / TOGETHER } else { LOGITS };
        let travel = Travel::new(self.origin(), &weights, requests, (sharing, &steps), logits);
        let batches = batches(requests, &sharing);
        if small {
            self.side_by_side(&travel, &batches, sink)?;
        } else {
            self.in_chunks(&travel, &batches, room, sink)?;
        }
        self.weights = Some(weights).filter(RowWeights::is_resident);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::Path;
    use std::sync::Mutex;

    use half::bf16;
    use microscale_tensor::Cpu;

    use super::*;
    use crate::{Config, RandomWeights};

    /// Random weights that count how often each tensor is read.
    struct Counting {
        weights: RandomWeights,
        read: Mutex<HashMap<String, usize>>,
    }

    impl TensorSource for Counting {
        fn config(&self) -> &Config {
            self.weights.config()
        }

        fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Error> {
            if let Ok(mut read) = self.read.lock() {
                *read.entry(name.to_owned()).or_default() += 1;
            }
            self.weights.read(name, shape)
        }
    }

    fn source() -> Counting {
        let json = r#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 512,
            "num_hidden_layers": 12, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": 300,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
            "tie_word_embeddings": false, "torch_dtype": "bfloat16"}"#;
        let config = Config::from_json(json.as_bytes(), Path::new("config.json")).unwrap();
        Counting { weights: RandomWeights::new(config, 3), read: Mutex::default() }
    }

    /// With less memory than the model takes, every layer is read once per chunk for all rows, and activations wait in
    /// a file where they find no room. With a little more than it takes batches go one by one, with much several at a
    /// time. The outcomes are the same.
    #[test]
    fn layers_are_read_once_per_chunk() {
        let requests: Vec<Request> = (0..200u32)
            .map(|i| Request { tokens: (0..130).map(|t| (t * 7 + i * (1 + t / 90)) % 300).collect(), context: 120 })
            .collect();
        let recipes = || ["bf16", "w6a8", "w6a6-attn6"].map(|name| Recipe::parse(name).unwrap()).to_vec();
        // What may be in memory beside what it takes to begin, with all layers or without; `None` is anything.
        let score = |memory: Option<(bool, usize)>| {
            let source = source();
            let limits = Limits { batch_size: Some(8), max_length: 512 };
            let scorer = ModelScorer::new(Cpu::new(), &source, recipes(), limits).share_prefixes(false);
            let (bytes, working) = (scorer.origin().bytes(&[0, 1, 2]), scorer.working_bytes(BATCH_TOKENS));
            let memory = memory.map(|(all, room)| if all { bytes.resident } else { bytes.streamed } + working + room);
            let mut outcomes = Vec::new();
            let mut underway = Vec::new();
            let sink = &mut |event| {
                match event {
                    Event::Scored(outcome) => outcomes.push(outcome),
                    Event::Underway { tokens } => underway.push(tokens),
                }
                ControlFlow::Continue(())
            };
            let mut scorer = scorer.memory(memory);
            scorer.score(&[0, 1, 2], &requests, sink).unwrap();
            outcomes.sort_by_key(|outcome| (outcome.request, outcome.row));
            let read = source.read.into_inner().unwrap();
            (outcomes, read["model.layers.4.mlp.up_proj.weight"], underway)
        };
        let (expected, read, underway) = score(None);
        assert_eq!((expected.len(), read), (600, 2)); // as bf16 and as FP6, which two rows share
        assert!(underway.is_empty(), "several batches at a time");
        // 200 · 129 tokens are one chunk, three of its 25 batches in memory, or none.
        for (memory, most) in [((true, 0), 8), ((false, 3 * (8 * 129) * 3 * 64 * 2), 200), ((false, 0), 200)] {
            let (found, read, underway) = score(Some(memory));
            assert!(found == expected, "{memory:?}");
            assert_eq!((read, underway.len()), (2, 25 * 12), "{memory:?}");
            assert_eq!(underway.into_iter().max(), Some(most * 130 * 3), "{memory:?}"); // a batch, or all
        }
    }

    #[test]
    fn what_cannot_be_held_to_is_refused() {
        let source = source();
        let limits = Limits { batch_size: None, max_length: 512 };
        let mut scorer = ModelScorer::new(Cpu::new(), &source, vec![Recipe::bf16()], limits).memory(Some(1000));
        let request = Request { tokens: vec![1, 2, 3], context: 1 };
        let error = scorer.score(&[0], &[request], &mut |_| ControlFlow::Continue(())).unwrap_err().to_string();
        assert!(error.contains("0.00 GB were allowed"), "{error}");
    }
}
