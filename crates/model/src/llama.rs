//! The forward pass of LLaMA, as the paper has it, in the order of operations of Hugging Face's eager mode.
//!
//! Every tensor between operations is bf16; which of them are quantized on the way, the recipe says. Shapes: `[tokens,
//! features]`, the tokens of all sequences of a batch one after another, never padded.

use microscale_tensor::{Backend, Linear, Matrix};

use crate::batch::Batch;
use crate::block::{Block, Tokens, rotation};
use crate::tail::{Tail, places};
use crate::weights::{Ends, LayerSource, Reader, Resident, TensorSource};
use crate::{Config, Error, Recipe, Role};

/// A model in the formats of one recipe.
pub struct Llama<B: Backend> {
    backend: B,
    config: Config,
    recipe: Recipe,
    ends: Ends<B>,
    layers: Box<dyn LayerSource<B> + Sync>,
}

/// The keys and values of a sequence that is still growing, for every layer.
pub struct KeyValueCache<B: Backend> {
    layers: Vec<B::Cache>,
    tokens: usize,
}

impl<B: Backend> KeyValueCache<B> {
    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

impl<B: Backend + 'static> Llama<B> {
    /// Reads the tensors of a checkpoint or another source and quantizes the weights, all of them into memory.
    ///
    /// # Errors
    /// A tensor that cannot be read, or weights that are not to be had in the recipe's formats.
    pub fn load(backend: B, source: &dyn TensorSource, recipe: &Recipe) -> Result<Self, Error> {
        source.check_recipe(recipe)?;
        let reader = Reader { backend: &backend, source, recipe };
        let (ends, layers) = (reader.ends()?, Box::new(Resident::load(&reader)?));
        Ok(Llama { config: source.config().clone(), recipe: recipe.clone(), ends, layers, backend })
    }
}

impl<B: Backend> Llama<B> {
    /// The backend it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The model's shape.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// bf16 logits `[tokens, vocabulary]` of one sequence.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, or a weight that cannot be read.
    pub fn logits(&self, tokens: &[u32]) -> Result<Matrix, Error> {
        let mut batch = Batch::default();
        let rows = batch.push(tokens).map(|row| row as u32).collect::<Vec<_>>();
        Ok(self.backend.download(&self.forward(&batch, &rows)?))
    }

    /// Logits `[rows, vocabulary]` of the rows asked for, of whole sequences.
    ///
    /// # Errors
    /// An empty batch, a token outside the vocabulary, or a weight that cannot be read.
    pub fn forward(&self, batch: &Batch, rows: &[u32]) -> Result<B::Activation, Error> {
        self.pass(batch, rows, None)
    }

    /// A cache for one growing sequence.
    pub fn cache(&self) -> KeyValueCache<B> {
        let layout = self.block().attention_options().keys_values;
        let layers = (0..self.config.layers).map(|_| self.backend.cache(&layout)).collect();
        KeyValueCache { layers, tokens: 0 }
    }

    /// Takes in the tokens that follow those of the cache and returns the logits `[1, vocabulary]` of the last.
    ///
    /// With causal value blocks the bits are those of [`forward`](Self::forward) over the whole sequence.
    ///
    /// # Errors
    /// No tokens, a token outside the vocabulary, a weight that cannot be read, or rotary frequencies that would be
    /// others for a sequence this long.
    pub fn extend(&self, cache: &mut KeyValueCache<B>, tokens: &[u32]) -> Result<B::Activation, Error> {
        if let Some(limit) = self.config.rope.changes_beyond().filter(|&n| cache.tokens + tokens.len() > n) {
            let reason = format!(
                "the model's rotary frequencies depend on the length beyond {limit} tokens, so a sequence cannot grow past it"
            );
            return Err(Error::Request { index: 0, reason });
        }
        let mut batch = Batch::default();
        let rows = batch.push_at(cache.tokens, tokens);
        let last = rows.end.saturating_sub(1) as u32;
        let logits = self.pass(&batch, &[last], Some(&mut cache.layers))?;
        cache.tokens += tokens.len();
        Ok(logits)
    }

    /// The forward pass. The caches are those of a growing sequence, or made anew for whole sequences.
    fn pass(&self, batch: &Batch, rows: &[u32], held: Option<&mut Vec<B::Cache>>) -> Result<B::Activation, Error> {
        self.check(batch)?;
        self.backend.session(|| self.layer_by_layer(batch, rows, held))
    }

    fn layer_by_layer(
        &self,
        batch: &Batch,
        rows: &[u32],
        mut held: Option<&mut Vec<B::Cache>>,
    ) -> Result<B::Activation, Error> {
        let b = &self.backend;
        let block = self.block();
        let rotation = &rotation(&self.config, batch);
        let tail = Tail::new(batch, rotation, rows.iter().copied());
        let mut x = b.gather(&self.ends.embedding, &batch.tokens);
        for i in 0..self.config.layers {
            let cache = held.as_mut().map(|layers| &mut layers[i]);
            let tail = tail.as_ref().filter(|_| i + 1 == self.config.layers);
            x = block.layer(&x, &*self.layers.layer(i)?, &Tokens { batch, rotation, tail }, cache);
        }
        let places = places(tail.as_ref(), rows.iter().copied());
        let x = b.rms_norm(&b.gather(&x, &places), &self.ends.norm, self.config.rms_norm_eps as f32);
        let [logits] =
            b.linear(&block.operand(&x, Role::HeadActivation), [Linear { weight: &self.ends.head, bias: None }]);
        Ok(logits)
    }

    fn block(&self) -> Block<'_, B> {
        Block { backend: &self.backend, config: &self.config, recipe: &self.recipe }
    }

    fn check(&self, batch: &Batch) -> Result<(), Error> {
        let vocabulary = self.config.vocab_size;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let tokens = &batch.tokens[sequence.rows.clone()];
            if tokens.is_empty() {
                return Err(Error::Request { index, reason: "has no tokens".into() });
            }
            if let Some(reason) = outside_vocabulary(tokens, vocabulary) {
                return Err(Error::Request { index, reason });
            }
        }
        if batch.sequences.is_empty() {
            return Err(Error::Request { index: 0, reason: "the batch holds no sequence".into() });
        }
        Ok(())
    }
}

/// What to say of a sequence with a token that the vocabulary does not have.
pub(crate) fn outside_vocabulary(tokens: &[u32], vocabulary: usize) -> Option<String> {
    let token = tokens.iter().find(|&&t| t as usize >= vocabulary)?;
    Some(format!("token {token} is outside the vocabulary of {vocabulary}; is this the model's tokenizer?"))
}
