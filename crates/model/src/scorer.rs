//! A model and its recipes as a [`Scorer`]: all rows go through a layer together, so that its weights are read once.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};

use microscale_tensor::{Backend, Linear, Rotation};

use crate::block::{Block, Tokens, rotation};
use crate::divergence::{Scored, divergences};
use crate::llama::outside_vocabulary;
use crate::prefix::{Layout, Sharing, batches};
use crate::row_weights::{Origin, RowWeights};
use crate::shelf::{Place, Shelf};
use crate::weights::block_format;
use crate::{Divergence, Error, Event, Outcome, Recipe, Request, Role, Scorer, TensorSource, ValueBlocks};

/// Input tokens of a batch where no batch size is given: enough to keep every thread busy, small enough for a cache.
const BATCH_TOKENS: usize = 4096;
/// Input tokens of a chunk where layers are read as they are needed. Reading a weight then costs less than a hundredth
/// of multiplying by it, so that more would save nothing, and whoever kills the process would lose more.
const CHUNK_TOKENS: usize = 1 << 15;
/// Logits of one row in memory at a time.
const LOGITS: usize = 1 << 24;

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

/// Some requests on their way through the layers.
struct Travelling<B: Backend> {
    /// As they index the requests, sorted by tokens.
    requests: Vec<usize>,
    /// One for each way of sharing beginnings that a row has.
    layouts: Vec<Layout>,
    rotations: Vec<Rotation>,
    /// By row, activations `[tokens, hidden]`.
    states: Vec<Place<B>>,
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

    fn block(&self, row: usize) -> Block<'_, B> {
        Block { backend: &self.backend, config: self.source.config(), recipe: &self.recipes[row] }
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

    /// A batch before the first layer.
    fn depart(
        &self,
        weights: &RowWeights<B>,
        requests: &[Request],
        batch: &[usize],
        (steps, sharing): (&[usize], &Sharing),
        shelf: &mut Shelf<'_, B>,
    ) -> Result<Travelling<B>, Error> {
        let some: Vec<&Request> = batch.iter().map(|&i| &requests[i]).collect();
        let layouts: Vec<Layout> = steps.iter().map(|&step| Layout::new(&some, step, sharing)).collect();
        let state = |&row: &usize| {
            let tokens = &layouts[self.layout(steps, row)].batch.tokens;
            let embedded = self.backend.gather(&weights.embedding, tokens);
            shelf.put(embedded, [tokens.len(), self.source.config().hidden_size])
        };
        let states = weights.rows.iter().map(state).collect::<Result<_, _>>()?;
        let rotations = layouts.iter().map(|layout| rotation(self.source.config(), &layout.batch)).collect();
        Ok(Travelling { requests: batch.to_vec(), layouts, rotations, states })
    }

    /// Which of the layouts is a row's.
    fn layout(&self, steps: &[usize], row: usize) -> usize {
        steps.iter().position(|&step| step == self.step(row)).unwrap_or(0)
    }

    /// Takes some batches through all layers, unless `underway` ends it, which hears how many tokens' worth is done.
    fn travel(
        &self,
        weights: &RowWeights<B>,
        steps: &[usize],
        (chunk, shelf): (&mut [Travelling<B>], &mut Shelf<'_, B>),
        requests: &[Request],
        underway: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, Error> {
        let layers = self.source.config().layers;
        let mut passed = 0;
        weights.each_layer(&self.origin(), |kinds| {
            for one in chunk.iter_mut() {
                self.backend.session(|| {
                    weights.rows.iter().enumerate().try_for_each(|(position, &row)| {
                        let which = self.layout(steps, row);
                        let tokens = Tokens { batch: &one.layouts[which].batch, rotation: &one.rotations[which] };
                        let layer = weights.own(kinds, position);
                        let pass = |state: &B::Activation| self.block(row).layer(state, layer, &tokens, None);
                        shelf.replace(&mut one.states[position], pass)
                    })
                })?;
                let tokens: usize = one.requests.iter().map(|&i| requests[i].tokens.len()).sum();
                passed += tokens * weights.rows.len();
                if underway(passed / layers).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
            }
            Ok(ControlFlow::Continue(()))
        })
    }

    /// What is scored of a batch that has passed all layers: by row, the activations that continuations are predicted
    /// from, those of one request after those of another.
    fn unload(
        &self,
        weights: &RowWeights<B>,
        steps: &[usize],
        one: &Travelling<B>,
        shelf: &mut Shelf<'_, B>,
    ) -> Result<Vec<B::Activation>, Error> {
        let rows = weights.rows.iter().zip(&one.states).map(|(&row, state)| {
            let places = one.layouts[self.layout(steps, row)].places.concat();
            shelf.show(state, |state| self.backend.gather(state, &places))
        });
        rows.collect()
    }

    /// The outcomes of a batch that has been unloaded.
    fn arrive(
        &self,
        weights: &RowWeights<B>,
        steps: &[usize],
        (one, states): (&Travelling<B>, &[B::Activation]),
        requests: &[Request],
    ) -> impl Iterator<Item = Vec<Outcome>> {
        let most = (LOGITS / self.source.config().vocab_size).max(1);
        let mut slices: Vec<(Range<usize>, Range<usize>)> = Vec::new();
        let mut done = 0;
        for (i, &request) in one.requests.iter().enumerate() {
            let own = requests[request].tokens.len() - requests[request].context;
            match slices.last_mut() {
                Some((slice, rows)) if rows.len() + own <= most => (slice.end, rows.end) = (i + 1, done + own),
                _ => slices.push((i..i + 1, done..done + own)),
            }
            done += own;
        }
        slices.into_iter().map(move |(slice, rows)| {
            let of = |i: usize| &requests[one.requests[i]];
            let targets: Vec<u32> = slice.clone().flat_map(|i| &of(i).tokens[of(i).context..]).copied().collect();
            let scored: Vec<Scored> = (0..weights.rows.len())
                .map(|position| {
                    let layout = &one.layouts[self.layout(steps, weights.rows[position])];
                    let places = layout.places[slice.clone()].concat();
                    let from: Vec<(u32, u32)> = places.into_iter().zip(rows.start as u32..).collect();
                    self.backend.session(|| self.logits(weights, position, &states[position], (&from, &targets)))
                })
                .collect();
            let mut other = divergences(&scored[0], &scored[1..], &targets).into_iter();
            let mut outcomes = Vec::with_capacity(slice.len() * scored.len());
            for (position, scored) in scored.iter().enumerate() {
                let row = weights.rows[position];
                let layout = &one.layouts[self.layout(steps, row)];
                let mut apart = (position > 0).then(|| other.next().unwrap_or_default().into_iter());
                let mut scores = scored.scores.iter();
                for i in slice.clone() {
                    let own = of(i).tokens.len() - of(i).context;
                    let sum =
                        |(sum, all), s: &microscale_tensor::TokenScore| (sum + s.log_probability, all && s.greedy);
                    let (log_likelihood, greedy) = scores.by_ref().take(own).fold((0.0, true), sum);
                    let divergence = apart.as_mut().map(|apart| {
                        let mut divergence = Divergence::default();
                        for (kl, same) in apart.by_ref().take(own) {
                            divergence.kl.push(kl);
                            divergence.agreed += usize::from(same);
                        }
                        divergence
                    });
                    let (request, reused) = (one.requests[i], layout.reused[i]);
                    outcomes.push(Outcome { row, request, log_likelihood, greedy, divergence, reused });
                }
            }
            outcomes
        })
    }

    /// Logits and the scores of the targets: of each, its place in the batch and the row of `state` that is its
    /// activation after the last layer.
    fn logits(
        &self,
        weights: &RowWeights<B>,
        position: usize,
        state: &B::Activation,
        (from, targets): (&[(u32, u32)], &[u32]),
    ) -> Scored {
        let (b, block) = (&self.backend, self.block(weights.rows[position]));
        // Choices of one context share the place of their first token.
        let mut unique: Vec<u32> = Vec::new();
        let mut known: HashMap<u32, u32> = HashMap::new();
        let index: Vec<u32> = from
            .iter()
            .map(|&(place, row)| {
                *known.entry(place).or_insert_with(|| {
                    unique.push(row);
                    unique.len() as u32 - 1
                })
            })
            .collect();
        let x = b.rms_norm(&b.gather(state, &unique), &weights.norm, self.source.config().rms_norm_eps as f32);
        let head = Linear { weight: weights.head(position), bias: None };
        let [logits] = b.linear(&block.operand(&x, Role::HeadActivation), [head]);
        let logits = if unique.len() < index.len() { b.gather(&logits, &index) } else { logits };
        Scored { scores: b.scores(&logits, targets), logits: b.download(&logits) }
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
        let sharing = Sharing {
            requests: self.limits.batch_size,
            tokens: BATCH_TOKENS,
            enabled: self.share_prefixes,
            longest: self.source.config().rope.changes_beyond().unwrap_or(usize::MAX),
        };
        let mut steps: Vec<usize> = rows.iter().map(|&row| self.step(row)).collect();
        steps.sort_unstable();
        steps.dedup();
        let (weights, room) = self.prepare(rows)?;
        let chunk_tokens = if weights.is_resident() { 0 } else { CHUNK_TOKENS };
        let mut waiting = batches(requests, &sharing).into_iter().peekable();
        'all: while waiting.peek().is_some() {
            let mut shelf = Shelf::new(&self.backend, room);
            let (mut chunk, mut tokens) = (Vec::new(), 0);
            let size = |layout: &Layout| layout.batch.tokens();
            while let Some(batch) = waiting.next_if(|batch| {
                let most: usize = batch.iter().map(|&i| requests[i].input().len()).sum();
                tokens == 0 || tokens + most <= chunk_tokens
            }) {
                let one = self.depart(&weights, requests, &batch, (&steps, &sharing), &mut shelf)?;
                tokens += one.layouts.iter().map(size).max().unwrap_or(0);
                chunk.push(one);
            }
            let underway = &mut |tokens| sink(Event::Underway { tokens });
            if self.travel(&weights, &steps, (&mut chunk, &mut shelf), requests, underway)?.is_break() {
                break;
            }
            for one in chunk {
                let states = self.unload(&weights, &steps, &one, &mut shelf)?;
                for outcome in self.arrive(&weights, &steps, (&one, &states), requests).flatten() {
                    if sink(Event::Scored(outcome)).is_break() {
                        break 'all;
                    }
                }
            }
        }
        self.weights = Some(weights).filter(RowWeights::is_resident);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
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
    /// a file where they find no room; the outcomes stay what they are.
    #[test]
    fn layers_are_read_once_per_chunk() {
        let requests: Vec<Request> = (0..200u32)
            .map(|i| Request { tokens: (0..130).map(|t| (t * 7 + i * (1 + t / 90)) % 300).collect(), context: 120 })
            .collect();
        let recipes = || ["bf16", "w6a8", "w6a6-attn6"].map(|name| Recipe::parse(name).unwrap()).to_vec();
        // Of what activations between layers may take: `None` where everything may be in memory.
        let score = |room: Option<usize>| {
            let source = source();
            let limits = Limits { batch_size: Some(8), max_length: 512 };
            let scorer = ModelScorer::new(Cpu::new(), &source, recipes(), limits).share_prefixes(false);
            let fixed = scorer.origin().bytes(&[0, 1, 2]).streamed + scorer.working_bytes(BATCH_TOKENS);
            let mut outcomes = Vec::new();
            let mut underway = Vec::new();
            let sink = &mut |event| {
                match event {
                    Event::Scored(outcome) => outcomes.push(outcome),
                    Event::Underway { tokens } => underway.push(tokens),
                }
                ControlFlow::Continue(())
            };
            let mut scorer = scorer.memory(room.map(|room| fixed + room));
            scorer.score(&[0, 1, 2], &requests, sink).unwrap();
            outcomes.sort_by_key(|outcome| (outcome.request, outcome.row));
            assert_eq!(underway.len(), 25 * 12);
            let read = source.read.into_inner().unwrap();
            (outcomes, read["model.layers.4.mlp.up_proj.weight"], underway.into_iter().max())
        };
        let (resident, read, most) = score(None);
        assert_eq!((resident.len(), read), (600, 2)); // as bf16 and as FP6, which two rows share
        assert_eq!(most, Some(8 * 130 * 3)); // a batch
        // 200 · 129 tokens are one chunk, three of its 25 batches in memory, or none.
        for room in [3 * (8 * 129) * 3 * 64 * 2, 0] {
            let (streamed, read, most) = score(Some(room));
            assert!(streamed == resident, "{room}");
            assert_eq!((read, most), (2, Some(200 * 130 * 3)), "{room}");
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
