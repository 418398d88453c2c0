//! A checkpoint and its recipes as a [`Scorer`].

use std::ops::ControlFlow;

use microscale_tensor::Backend;

use crate::llama::{Batch, Llama, outside_vocabulary};
use crate::{Checkpoint, Error, Outcome, Recipe, Request, Scorer};

/// Input tokens of a batch where no batch size is given: enough to keep every thread busy, small enough for a cache.
const BATCH_TOKENS: usize = 4096;

/// Scores requests under several recipes of one checkpoint, one recipe after another.
pub struct ModelScorer<'a, B: Backend> {
    backend: B,
    checkpoint: &'a Checkpoint,
    recipes: Vec<Recipe>,
    names: Vec<String>,
    limits: Limits,
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
    pub fn new(backend: B, checkpoint: &'a Checkpoint, recipes: Vec<Recipe>, limits: Limits) -> Self {
        let recipes: Vec<Recipe> = recipes.into_iter().map(Recipe::for_scoring).collect();
        let names = recipes.iter().map(|r| r.name.clone()).collect();
        ModelScorer { backend, checkpoint, recipes, names, limits }
    }

    fn check(&self, requests: &[Request]) -> Result<(), Error> {
        let (vocabulary, longest) = (self.checkpoint.config().vocab_size, self.limits.max_length);
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

    /// Where the batch that begins at request `start` ends.
    fn batch_end(&self, requests: &[Request], start: usize) -> usize {
        if let Some(size) = self.limits.batch_size {
            return (start + size.max(1)).min(requests.len());
        }
        let mut tokens = 0;
        let fits = requests[start..].iter().take_while(|r| {
            tokens += r.tokens.len();
            tokens <= BATCH_TOKENS
        });
        start + fits.count().max(1)
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
        sink: &mut dyn FnMut(Outcome) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        self.check(requests)?;
        for &row in rows {
            let model = Llama::load(self.backend.clone(), self.checkpoint, &self.recipes[row])?;
            let mut start = 0;
            while start < requests.len() {
                let end = self.batch_end(requests, start);
                for (i, (log_likelihood, greedy)) in score_batch(&model, &requests[start..end])?.into_iter().enumerate()
                {
                    if sink(Outcome { row, request: start + i, log_likelihood, greedy }).is_break() {
                        return Ok(());
                    }
                }
                start = end;
            }
        }
        Ok(())
    }
}

/// Log-likelihood and greediness of each request, from one forward pass.
fn score_batch<B: Backend>(model: &Llama<B>, requests: &[Request]) -> Result<Vec<(f64, bool)>, Error> {
    let (mut batch, mut rows, mut targets) = (Batch::default(), Vec::new(), Vec::new());
    for request in requests {
        let inputs = batch.push(&request.tokens[..request.tokens.len() - 1]);
        rows.extend(inputs.skip(request.context - 1).map(|row| row as u32));
        targets.extend_from_slice(&request.tokens[request.context..]);
    }
    let logits = model.forward(&batch, &rows)?;
    let mut scores = model.backend().scores(&logits, &targets).into_iter();
    Ok(requests
        .iter()
        .map(|request| {
            let scores = scores.by_ref().take(request.tokens.len() - request.context);
            scores.fold((0.0, true), |(sum, all), s| (sum + s.log_probability, all && s.greedy))
        })
        .collect())
}
