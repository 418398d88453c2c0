//! The seam between a model and what judges it: token sequences go in, log-likelihoods come out.

use std::ops::ControlFlow;

use crate::Error;

/// One continuation to score: log P(`tokens[context..]` | `tokens[..context]`), summed over the continuation.
///
/// `1 ≤ context < tokens.len()`; the tokens are ids of the model's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Context ids followed by continuation ids.
    pub tokens: Vec<u32>,
    /// How many of `tokens` are context.
    pub context: usize,
}

impl Request {
    /// What the model is given: all tokens but the last, which is only a target.
    pub fn input(&self) -> &[u32] {
        &self.tokens[..self.tokens.len().saturating_sub(1)]
    }
}

/// How a row's distributions over the vocabulary differ from the first row's, at the tokens of a continuation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Divergence {
    /// Kullback-Leibler divergence in nats, of the row from the first one, for each token.
    pub kl: Vec<f32>,
    /// At how many of the tokens both find the same token most likely (of equals the first).
    pub agreed: usize,
}

/// The score of one request under one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Index of the row in [`Scorer::rows`].
    pub row: usize,
    /// Index of the request in the slice given to [`Scorer::score`].
    pub request: usize,
    /// Summed natural-log likelihood of the continuation, in f64 over bf16 logits.
    pub log_likelihood: f64,
    /// Whether every continuation token was the most likely one (the first of equals).
    pub greedy: bool,
    /// Beside the first of the rows scored together; none for that row itself.
    pub divergence: Option<Divergence>,
    /// Tokens of the input that were computed for another request.
    pub reused: usize,
}

/// What a scorer tells while it works.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A request has been scored under a row.
    Scored(Outcome),
    /// Requests on their way have come this much further: what is done of the computation of those that have no
    /// outcome yet, in input tokens times rows.
    Underway {
        /// Tokens' worth of work, over all requests that have no outcome yet.
        tokens: usize,
    },
}

/// Scores requests under one or several rows.
///
/// A row is an opaque label to the caller; the scorer knows the recipe behind it. Outcomes do not depend on the
/// order of requests, on their company in a batch, or on the number of threads.
pub trait Scorer {
    /// The labels of the rows, in the order of their indices.
    fn rows(&self) -> &[String];

    /// Scores every request under every row of `rows` and gives each outcome to `sink`, in any order; in between it
    /// may say how far it is.
    ///
    /// Requests that begin alike are scored together; otherwise they are taken in about the order given, and a request
    /// gets its outcomes under all rows before most later ones have any. `ControlFlow::Break` from the sink ends the
    /// call early with `Ok`.
    ///
    /// # Errors
    /// A request with an empty context or continuation, a token outside the vocabulary, too long a sequence, or a
    /// weight that cannot be read.
    fn score(
        &mut self,
        rows: &[usize],
        requests: &[Request],
        sink: &mut dyn FnMut(Event) -> ControlFlow<()>,
    ) -> Result<(), Error>;
}
