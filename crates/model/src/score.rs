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

/// The score of one request under one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Index of the row in [`Scorer::rows`].
    pub row: usize,
    /// Index of the request in the slice given to [`Scorer::score`].
    pub request: usize,
    /// Summed natural-log likelihood of the continuation, in f64 over bf16 logits.
    pub log_likelihood: f64,
    /// Whether every continuation token was the most likely one (the first of equals).
    pub greedy: bool,
}

/// Scores requests under one or several rows.
///
/// A row is an opaque label to the caller; the scorer knows the recipe behind it. Outcomes do not depend on the
/// order of requests, on their company in a batch, or on the number of threads.
pub trait Scorer {
    /// The labels of the rows, in the order of their indices.
    fn rows(&self) -> &[String];

    /// Scores every request under every row of `rows` and gives each outcome to `sink`, in any order.
    ///
    /// Requests are batched in the order given, so a caller that sorts them by length wastes the least.
    /// `ControlFlow::Break` from the sink ends the call early with `Ok`.
    ///
    /// # Errors
    /// A request with an empty context or continuation, a token outside the vocabulary, too long a sequence, or a
    /// weight that cannot be read.
    fn score(
        &mut self,
        rows: &[usize],
        requests: &[Request],
        sink: &mut dyn FnMut(Outcome) -> ControlFlow<()>,
    ) -> Result<(), Error>;
}
