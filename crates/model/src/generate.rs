//! Greedy decoding: a model continues a prompt, one token after another.

use half::bf16;
use microscale_tensor::Backend;

use crate::llama::{KeyValueCache, Llama, outside_vocabulary};
use crate::{Config, Error};

/// The tokens a model continues a prompt with, each the most likely one (of equals the first), as an iterator.
///
/// The first step takes in the whole prompt, each later one the token before. The iterator ends at an
/// end-of-sequence token, which it does not give out, or where the model has no more positions;
/// [`end`](Self::end) says which. It may be dropped at any time.
pub struct Generation<'a, B: Backend> {
    model: &'a Llama<B>,
    cache: KeyValueCache<B>,
    /// What the model has yet to take in: the prompt, then the token chosen last.
    next: Vec<u32>,
    end_tokens: Vec<u32>,
    end: Option<End>,
    failed: bool,
}

/// Why a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The model chose this end-of-sequence token.
    Token(u32),
    /// The sequence is as long as the model was made for.
    Positions,
}

impl<'a, B: Backend> Generation<'a, B> {
    /// Will continue `prompt` until one of `end_tokens`; nothing is computed yet.
    ///
    /// The model's recipe should be one [for generation](crate::Recipe::for_generation).
    ///
    /// # Errors
    /// As [`check_prompt`].
    pub fn new(model: &'a Llama<B>, prompt: &[u32], end_tokens: &[u32]) -> Result<Self, Error> {
        check_prompt(model.config(), prompt)?;
        Ok(Generation {
            model,
            cache: model.cache(),
            next: prompt.to_vec(),
            end_tokens: end_tokens.to_vec(),
            end: None,
            failed: false,
        })
    }

    /// Why it ended; `None` while it goes on, or after an error.
    pub fn end(&self) -> Option<End> {
        self.end
    }

    /// The most likely token after those that wait to be taken in.
    fn step(&mut self) -> Result<u32, Error> {
        let logits = self.model.extend(&mut self.cache, &self.next)?;
        let logits = self.model.backend().download(&logits);
        most_likely(logits.values()).ok_or_else(|| {
            let reason = format!(
                "after {} tokens no logit is a number; the recipe's formats overflow on this model",
                self.cache.tokens()
            );
            Error::Generation { reason }
        })
    }
}

impl<B: Backend> Iterator for Generation<'_, B> {
    type Item = Result<u32, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.end.is_some() || self.failed {
            return None;
        }
        if self.cache.tokens() + self.next.len() > self.model.config().max_position_embeddings {
            self.end = Some(End::Positions);
            return None;
        }
        match self.step() {
            Ok(token) if self.end_tokens.contains(&token) => {
                self.end = Some(End::Token(token));
                None
            }
            Ok(token) => {
                self.next = vec![token];
                Some(Ok(token))
            }
            Err(error) => {
                self.failed = true;
                Some(Err(error))
            }
        }
    }
}

/// Whether a model of this shape can continue a prompt; asked before its weights are read, this saves the wait.
///
/// # Errors
/// A prompt without tokens, with more than the model has positions, or with one outside the vocabulary.
pub fn check_prompt(config: &Config, prompt: &[u32]) -> Result<(), Error> {
    let positions = config.max_position_embeddings;
    let reason = if prompt.is_empty() {
        "the prompt has no tokens; give it at least one word".to_owned()
    } else if prompt.len() > positions {
        format!("the prompt has {} tokens, the model {positions} positions; shorten the prompt", prompt.len())
    } else if let Some(reason) = outside_vocabulary(prompt, config.vocab_size) {
        reason
    } else {
        return Ok(());
    };
    Err(Error::Generation { reason })
}

/// Index of the largest logit, of equals the first; `None` if none is a number.
fn most_likely(logits: &[bf16]) -> Option<u32> {
    let mut best: Option<(u32, f32)> = None;
    for (token, logit) in (0..).zip(logits.iter().map(|x| x.to_f32())) {
        if !logit.is_nan() && best.is_none_or(|(_, highest)| logit > highest) {
            best = Some((token, logit));
        }
    }
    best.map(|(token, _)| token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_the_largest_logits_wins() {
        let choose = |logits: &[f32]| most_likely(&logits.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>());
        assert_eq!(choose(&[-1.0, 3.0, 3.0, 2.0]), Some(1));
        assert_eq!(choose(&[f32::NAN, -5.0, f32::NAN]), Some(1));
        assert_eq!(choose(&[0.0, -0.0]), Some(0));
        assert_eq!(choose(&[f32::NEG_INFINITY, f32::NEG_INFINITY]), Some(0));
        assert_eq!(choose(&[f32::NAN; 3]), None);
    }
}
