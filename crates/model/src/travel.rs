//! The way of requests through the layers of a model, in batches, all rows of a table side by side.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use microscale_tensor::{Backend, Linear, Matrix, Rotation, TokenScore};

use crate::block::{Block, Tokens, rotation};
use crate::divergence::{Scored, divergences};
use crate::prefix::{Layout, Sharing};
use crate::row_weights::{Origin, RowWeights};
use crate::shelf::{Place, Shelf};
use crate::tail::{Tail, places};
use crate::weights::Layer;
use crate::{Divergence, Error, Outcome, Request, Role};

/// What all batches of some requests share.
pub(crate) struct Travel<'a, B: Backend> {
    origin: Origin<'a, B>,
    pub(crate) weights: &'a RowWeights<B>,
    pub(crate) requests: &'a [Request],
    sharing: Sharing,
    /// Up to which multiples of tokens requests may share their beginnings, each once.
    steps: Vec<usize>,
    /// By position among the rows, which of the steps is theirs.
    own: Vec<usize>,
    /// Logits of one row in memory at a time.
    logits: usize,
}

/// A batch on its way.
pub(crate) struct Travelling<B: Backend> {
    /// As they index the requests, sorted by tokens.
    requests: Vec<usize>,
    /// One for each step up to which beginnings are shared.
    layouts: Vec<Layout>,
    rotations: Vec<Rotation>,
    /// What the last layer leaves of their rows, if not all.
    tails: Vec<Option<Tail>>,
    /// By position among the rows, activations `[tokens, hidden]`.
    states: Vec<Place<B>>,
    /// Layers behind it.
    passed: usize,
}

impl<B: Backend> Travelling<B> {
    /// Input tokens, of the row that shares least.
    pub(crate) fn tokens(&self) -> usize {
        self.layouts.iter().map(|layout| layout.batch.tokens()).max().unwrap_or(0)
    }
}

impl<'a, B: Backend> Travel<'a, B> {
    /// Of the rows that there are `weights` of, the multiples of tokens up to which they may share beginnings being
    /// `steps`, with so many logits of a row in memory at a time.
    pub(crate) fn new(
        origin: Origin<'a, B>,
        weights: &'a RowWeights<B>,
        requests: &'a [Request],
        (sharing, steps): (Sharing, &[usize]),
        logits: usize,
    ) -> Self {
        let mut each = steps.to_vec();
        each.sort_unstable();
        each.dedup();
        let own = steps.iter().map(|own| each.iter().position(|step| step == own).unwrap_or(0)).collect();
        Travel { origin, weights, requests, sharing, steps: each, own, logits }
    }

    fn layout<'t>(&self, one: &'t Travelling<B>, position: usize) -> &'t Layout {
        &one.layouts[self.own[position]]
    }

    fn block(&self, position: usize) -> Block<'_, B> {
        let Origin { backend, source, recipes } = self.origin;
        Block { backend, config: source.config(), recipe: &recipes[self.weights.rows[position]] }
    }

    /// The outcomes of a batch by itself, taken from the first layer to the last.
    ///
    /// # Errors
    /// A weight that cannot be read.
    pub(crate) fn alone(&self, batch: &[usize]) -> Result<Vec<Outcome>, Error> {
        let mut shelf = Shelf::new(self.origin.backend, usize::MAX);
        let mut one = self.depart(batch, &mut shelf)?;
        let pass = |kinds: &[Arc<Layer<B>>]| self.pass(&mut one, kinds, &mut shelf).map(ControlFlow::Continue);
        let ControlFlow::Continue(()) = self.weights.each_layer(&self.origin, pass)? else { return Ok(Vec::new()) };
        let states = self.unload(&one, &mut shelf)?;
        Ok(self.slices(&one).into_iter().flat_map(|slice| self.outcomes(&one, &states, slice)).collect())
    }

    /// A batch before the first layer.
    ///
    /// # Errors
    /// The shelf's file cannot be written.
    pub(crate) fn depart(&self, batch: &[usize], shelf: &mut Shelf<'_, B>) -> Result<Travelling<B>, Error> {
        let some: Vec<&Request> = batch.iter().map(|&i| &self.requests[i]).collect();
        let layouts: Vec<Layout> = self.steps.iter().map(|&step| Layout::new(&some, step, &self.sharing)).collect();
        let config = self.origin.source.config();
        let state = |&layout: &usize| {
            let tokens = &layouts[layout].batch.tokens;
            let embedded = self.origin.backend.gather(&self.weights.embedding, tokens);
            shelf.put(embedded, [tokens.len(), config.hidden_size])
        };
        let states = self.own.iter().map(state).collect::<Result<_, _>>()?;
        let rotations: Vec<Rotation> = layouts.iter().map(|layout| rotation(config, &layout.batch)).collect();
        let tail = |(layout, rotation): (&Layout, _)| {
            Tail::new(&layout.batch, rotation, layout.places.iter().flatten().copied())
        };
        let tails = layouts.iter().zip(&rotations).map(tail).collect();
        Ok(Travelling { requests: batch.to_vec(), layouts, rotations, tails, states, passed: 0 })
    }

    /// Takes a batch through one layer, which is there in all its kinds.
    ///
    /// # Errors
    /// The shelf's file cannot be read or written.
    pub(crate) fn pass(
        &self,
        one: &mut Travelling<B>,
        kinds: &[Arc<Layer<B>>],
        shelf: &mut Shelf<'_, B>,
    ) -> Result<(), Error> {
        one.passed += 1;
        let last = one.passed == self.origin.source.config().layers;
        for position in 0..self.weights.rows.len() {
            let which = self.own[position];
            let (batch, rotation) = (&one.layouts[which].batch, &one.rotations[which]);
            let tokens = Tokens { batch, rotation, tail: one.tails[which].as_ref().filter(|_| last) };
            let layer = self.weights.own(kinds, position);
            let pass = |state: &B::Activation| self.block(position).layer(state, layer, &tokens, None);
            shelf.replace(&mut one.states[position], pass)?;
        }
        Ok(())
    }

    /// How many tokens a batch's requests have, times the rows.
    pub(crate) fn work(&self, one: &Travelling<B>) -> usize {
        let tokens: usize = one.requests.iter().map(|&i| self.requests[i].tokens.len()).sum();
        tokens * self.weights.rows.len()
    }

    /// What is scored of a batch that has passed all layers: by position among the rows, the activations that
    /// continuations are predicted from, those of one request after those of another.
    ///
    /// # Errors
    /// The shelf's file cannot be read.
    pub(crate) fn unload(&self, one: &Travelling<B>, shelf: &mut Shelf<'_, B>) -> Result<Vec<B::Activation>, Error> {
        let rows = one.states.iter().enumerate().map(|(position, state)| {
            let rows = self.layout(one, position).places.concat();
            let places = places(one.tails[self.own[position]].as_ref(), rows);
            shelf.show(state, |state| self.origin.backend.gather(state, &places))
        });
        rows.collect()
    }

    /// A batch's requests in slices whose logits may be in memory together.
    pub(crate) fn slices(&self, one: &Travelling<B>) -> Vec<Slice> {
        let most = (self.logits / self.origin.source.config().vocab_size).max(1);
        let mut slices: Vec<Slice> = Vec::new();
        let mut done = 0;
        for (i, &request) in one.requests.iter().enumerate() {
            let own = self.requests[request].tokens.len() - self.requests[request].context;
            match slices.last_mut() {
                Some(Slice { requests, unloaded }) if unloaded.len() + own <= most => {
                    (requests.end, unloaded.end) = (i + 1, done + own);
                }
                _ => slices.push(Slice { requests: i..i + 1, unloaded: done..done + own }),
            }
            done += own;
        }
        slices
    }

    /// The outcomes of a slice of a batch that has been unloaded to `states`.
    pub(crate) fn outcomes(&self, one: &Travelling<B>, states: &[B::Activation], slice: Slice) -> Vec<Outcome> {
        let Slice { requests, unloaded } = slice;
        let of = |i: usize| &self.requests[one.requests[i]];
        let own = |i: usize| of(i).tokens.len() - of(i).context;
        let targets: Vec<u32> = requests.clone().flat_map(|i| &of(i).tokens[of(i).context..]).copied().collect();
        let score = |(position, state): (usize, &B::Activation)| {
            let places = self.layout(one, position).places[requests.clone()].concat();
            let from: Vec<(u32, u32)> = places.into_iter().zip(unloaded.start as u32..).collect();
            self.scored(position, state, (&from, &targets))
        };
        let scored: Vec<(Vec<TokenScore>, B::Activation)> = states.iter().enumerate().map(score).collect();
        let mut apart = self.divergences(&scored, &targets).into_iter();
        let mut outcomes = Vec::with_capacity(requests.len() * scored.len());
        for (position, (scores, _)) in scored.iter().enumerate() {
            let mut apart = (position > 0).then(|| apart.next().unwrap_or_default().into_iter());
            let mut scores = scores.iter();
            for i in requests.clone() {
                let sum = |(sum, all), s: &TokenScore| (sum + s.log_probability, all && s.greedy);
                let (log_likelihood, greedy) = scores.by_ref().take(own(i)).fold((0.0, true), sum);
                let divergence = apart.as_mut().map(|apart| {
                    let mut divergence = Divergence::default();
                    for (kl, same) in apart.by_ref().take(own(i)) {
                        divergence.kl.push(kl);
                        divergence.agreed += usize::from(same);
                    }
                    divergence
                });
                outcomes.push(Outcome {
                    row: self.weights.rows[position],
                    request: one.requests[i],
                    log_likelihood,
                    greedy,
                    divergence,
                    reused: self.layout(one, position).reused[i],
                });
            }
        }
        outcomes
    }

    /// By row but the first, and by token, the divergence from the first row.
    fn divergences(&self, scored: &[(Vec<TokenScore>, B::Activation)], targets: &[u32]) -> Vec<Vec<(f32, bool)>> {
        if scored.len() < 2 {
            return Vec::new();
        }
        let logits: Vec<Matrix> = scored.iter().map(|(_, logits)| self.origin.backend.download(logits)).collect();
        let each = scored.iter().zip(&logits).map(|((scores, _), logits)| Scored { logits, scores });
        let each: Vec<Scored<'_>> = each.collect();
        divergences(each[0], &each[1..], targets)
    }

    /// The scores of the targets, and the logits: of each target, its place in the batch and the row of `state` that is
    /// its activation after the last layer.
    fn scored(
        &self,
        position: usize,
        state: &B::Activation,
        (from, targets): (&[(u32, u32)], &[u32]),
    ) -> (Vec<TokenScore>, B::Activation) {
        let (b, block) = (self.origin.backend, self.block(position));
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
        let x = b.rms_norm(&b.gather(state, &unique), &self.weights.norm, block.config.rms_norm_eps as f32);
        let head = Linear { weight: self.weights.head(position), bias: None };
        let [logits] = b.linear(&block.operand(&x, Role::HeadActivation), [head]);
        let logits = if unique.len() < index.len() { b.gather(&logits, &index) } else { logits };
        (b.scores(&logits, targets), logits)
    }
}

/// Some requests of a batch whose logits are in memory together.
pub(crate) struct Slice {
    /// As the batch indexes them.
    requests: Range<usize>,
    /// Their rows of what was unloaded.
    unloaded: Range<usize>,
}
