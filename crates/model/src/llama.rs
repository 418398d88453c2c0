//! The forward pass of LLaMA, as the paper has it, in the order of operations of Hugging Face's eager mode.
//!
//! Every tensor between operations is bf16; which of them are quantized on the way, the recipe says. Shapes: `[tokens,
//! features]`, the tokens of all sequences of a batch one after another, never padded.

use std::collections::HashMap;
use std::ops::Range;

use half::bf16;
use microscale_tensor::{Attention, Backend, KeyValueLayout, Linear, Matrix, Rotation, math};

use crate::weights::{Ends, Layer, LayerSource, Reader, Resident, TensorSource, block_format};
use crate::{Config, Error, Recipe, Role, ValueBlocks};

/// A model in the formats of one recipe.
pub struct Llama<B: Backend> {
    backend: B,
    config: Config,
    recipe: Recipe,
    ends: Ends<B>,
    layers: Box<dyn LayerSource<B> + Sync>,
}

/// Several sequences, concatenated, each beginning at a position of its own.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<u32>,
    /// Rows of each sequence.
    sequences: Vec<Range<usize>>,
    /// Position of each sequence's first token.
    positions: Vec<usize>,
}

impl Batch {
    /// Appends a sequence that begins at position 0 and returns the rows of its tokens.
    pub fn push(&mut self, tokens: &[u32]) -> Range<usize> {
        self.push_at(0, tokens)
    }

    /// Appends the tokens that follow `position` others and returns their rows.
    pub fn push_at(&mut self, position: usize, tokens: &[u32]) -> Range<usize> {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.sequences.push(rows.clone());
        self.positions.push(position);
        rows
    }
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
        let layout = self.attention_options().keys_values;
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

    /// The forward pass. The caches of a layer are those of a growing sequence, or made anew for whole sequences.
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
        let rotation = self.rotation(batch);
        let options = self.attention_options();
        let mut x = b.gather(&self.ends.embedding, &batch.tokens);
        for i in 0..self.config.layers {
            let layer = self.layers.layer(i)?;
            let mut fresh: Vec<B::Cache> = Vec::new();
            let caches = match &mut held {
                Some(layers) => std::slice::from_mut(&mut layers[i]),
                None => {
                    fresh.extend(batch.sequences.iter().map(|_| b.cache(&options.keys_values)));
                    fresh.as_mut_slice()
                }
            };
            x = self.attention(&x, &layer, Positions { rotation: &rotation, batch, options: &options }, caches);
            x = self.mlp(&x, &layer);
        }
        let x = b.rms_norm(&b.gather(&x, rows), &self.ends.norm, self.config.rms_norm_eps as f32);
        let [logits] =
            b.linear(&self.operand(&x, Role::HeadActivation), [Linear { weight: &self.ends.head, bias: None }]);
        Ok(logits)
    }

    /// x + o_proj(attention(q, k, v)) with q, k, v from the norm of x.
    fn attention(
        &self,
        x: &B::Activation,
        layer: &Layer<B>,
        Positions { rotation, batch, options }: Positions<'_>,
        caches: &mut [B::Cache],
    ) -> B::Activation {
        let b = &self.backend;
        let h = b.rms_norm(x, &layer.input_norm, self.config.rms_norm_eps as f32);
        let h = self.operand(&h, Role::ProjectionActivation); // quantized once for q, k and v
        let [q, k, v] = b.linear(&h, [layer.q.linear(), layer.k.linear(), layer.v.linear()]);
        let (q, k) = (b.rope(&q, rotation), b.rope(&k, rotation));
        b.append(&mut caches.iter_mut().collect::<Vec<_>>(), &k, &v, &batch.sequences);
        let mixed = b.attention(&q, &caches.iter().collect::<Vec<_>>(), &batch.sequences, options);
        let [out] = b.linear(&self.operand(&mixed, Role::ProjectionActivation), [layer.o.linear()]);
        b.add(x, &out)
    }

    /// x + down(silu(gate) · up) with gate and up from the norm of x.
    fn mlp(&self, x: &B::Activation, layer: &Layer<B>) -> B::Activation {
        let b = &self.backend;
        let h = b.rms_norm(x, &layer.post_attention_norm, self.config.rms_norm_eps as f32);
        let h = self.operand(&h, Role::MlpActivation); // quantized once for gate and up
        let [gate, up] = b.linear(&h, [layer.gate.linear(), layer.up.linear()]);
        let h = b.gated(&gate, &up);
        let [out] = b.linear(&self.operand(&h, Role::MlpActivation), [layer.down.linear()]);
        b.add(x, &out)
    }

    fn operand(&self, x: &B::Activation, role: Role) -> B::Operand {
        self.backend.operand(x, block_format(&self.recipe, role))
    }

    fn attention_options(&self) -> Attention {
        let format = |role| block_format(&self.recipe, role);
        Attention {
            heads: self.config.heads,
            keys_values: KeyValueLayout {
                heads: self.config.kv_heads,
                head_dim: self.config.head_dim,
                key: format(Role::Key),
                value: format(Role::Value),
            },
            query: format(Role::Query),
            weights: format(Role::AttentionWeights),
            causal_value_blocks: self.recipe.value_blocks == ValueBlocks::Causal,
        }
    }

    /// Cosines and sines of every token's position in its sequence.
    fn rotation(&self, batch: &Batch) -> Rotation {
        let dim = self.config.head_dim;
        let tokens = batch.tokens.len();
        let (mut cos, mut sin) = (Matrix::zeros(tokens, dim), Matrix::zeros(tokens, dim));
        let rope = &self.config.rope;
        let mut first_row: HashMap<usize, usize> = HashMap::new();
        for (rows, &first) in batch.sequences.iter().zip(&batch.positions) {
            let length = first + rows.len();
            let frequencies = rope.inverse_frequencies(dim, length);
            // Frequencies that depend on the length belong to this sequence alone.
            if rope.changes_beyond().is_some() {
                first_row.clear();
            }
            for (row, position) in rows.clone().zip(first..length) {
                if let Some(&other) = first_row.get(&position) {
                    cos.values_mut().copy_within(other * dim..(other + 1) * dim, row * dim);
                    sin.values_mut().copy_within(other * dim..(other + 1) * dim, row * dim);
                    continue;
                }
                first_row.insert(position, row);
                for (f, inverse) in frequencies.inverse.iter().enumerate() {
                    let (s, c) = math::sin_cos(position as f32 * inverse);
                    let round = |x: f32| bf16::from_f32(x * frequencies.attention_factor);
                    for column in [f, f + dim / 2] {
                        cos.row_mut(row)[column] = round(c);
                        sin.row_mut(row)[column] = round(s);
                    }
                }
            }
        }
        Rotation { cos, sin }
    }

    fn check(&self, batch: &Batch) -> Result<(), Error> {
        let vocabulary = self.config.vocab_size;
        for (index, sequence) in batch.sequences.iter().enumerate() {
            let tokens = &batch.tokens[sequence.clone()];
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

/// Where the tokens of a pass stand, and what attention does with them.
#[derive(Clone, Copy)]
struct Positions<'a> {
    rotation: &'a Rotation,
    batch: &'a Batch,
    options: &'a Attention,
}

/// What to say of a sequence with a token that the vocabulary does not have.
pub(crate) fn outside_vocabulary(tokens: &[u32], vocabulary: usize) -> Option<String> {
    let token = tokens.iter().find(|&&t| t as usize >= vocabulary)?;
    Some(format!("token {token} is outside the vocabulary of {vocabulary}; is this the model's tokenizer?"))
}
