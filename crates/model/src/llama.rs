//! The forward pass of LLaMA, as the paper has it, in the order of operations of Hugging Face's eager mode.
//!
//! Every tensor between operations is bf16; which of them are quantized on the way, the recipe says. Shapes: `[tokens,
//! features]`, the tokens of all sequences of a batch one after another, never padded.

use std::ops::Range;

use half::bf16;
use microscale_tensor::{Attention, Backend, Matrix, Rotation, math};

use crate::weights::{Ends, Layer, LayerSource, Projection, Reader, Resident, block_format};
use crate::{Checkpoint, Config, Error, Recipe, Role, ValueBlocks};

/// A model in the formats of one recipe.
pub struct Llama<B: Backend> {
    backend: B,
    config: Config,
    recipe: Recipe,
    ends: Ends<B>,
    layers: Box<dyn LayerSource<B>>,
}

/// Several sequences, concatenated.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    tokens: Vec<u32>,
    sequences: Vec<Range<usize>>,
}

impl Batch {
    /// Appends a sequence and returns the rows of its tokens.
    pub fn push(&mut self, tokens: &[u32]) -> Range<usize> {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.sequences.push(rows.clone());
        rows
    }
}

impl<B: Backend + 'static> Llama<B> {
    /// Reads the checkpoint and quantizes its weights, all of them into memory.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn load(backend: B, checkpoint: &Checkpoint, recipe: &Recipe) -> Result<Self, Error> {
        let reader = Reader { backend: &backend, checkpoint, recipe };
        let (ends, layers) = (reader.ends()?, Box::new(Resident::load(&reader)?));
        Ok(Llama { config: checkpoint.config().clone(), recipe: recipe.clone(), ends, layers, backend })
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

    /// Logits `[rows, vocabulary]` of the rows asked for.
    ///
    /// # Errors
    /// An empty batch, a token outside the vocabulary, or a weight that cannot be read.
    pub fn forward(&self, batch: &Batch, rows: &[u32]) -> Result<B::Activation, Error> {
        self.check(batch)?;
        let b = &self.backend;
        let rotation = self.rotation(&batch.sequences);
        let mut x = b.gather(&self.ends.embedding, &batch.tokens);
        for i in 0..self.config.layers {
            let layer = self.layers.layer(i)?;
            x = self.attention(&x, &layer, &rotation, &batch.sequences);
            x = self.mlp(&x, &layer);
        }
        let x = b.rms_norm(&b.gather(&x, rows), &self.ends.norm, self.config.rms_norm_eps as f32);
        Ok(b.linear(&self.operand(&x, Role::HeadActivation), &self.ends.head, None))
    }

    /// x + o_proj(attention(q, k, v)) with q, k, v from the norm of x.
    fn attention(
        &self,
        x: &B::Activation,
        layer: &Layer<B>,
        rotation: &Rotation,
        sequences: &[Range<usize>],
    ) -> B::Activation {
        let (b, c) = (&self.backend, &self.config);
        let h = b.rms_norm(x, &layer.input_norm, c.rms_norm_eps as f32);
        let h = self.operand(&h, Role::ProjectionActivation); // quantized once for q, k and v
        let q = b.rope(&self.project(&h, &layer.q), rotation);
        let k = b.rope(&self.project(&h, &layer.k), rotation);
        let v = self.project(&h, &layer.v);
        let mixed = b.attention(
            &q,
            &k,
            &v,
            &Attention {
                heads: c.heads,
                kv_heads: c.kv_heads,
                head_dim: c.head_dim,
                sequences,
                query: block_format(&self.recipe, Role::Query),
                key: block_format(&self.recipe, Role::Key),
                value: block_format(&self.recipe, Role::Value),
                weights: block_format(&self.recipe, Role::AttentionWeights),
                causal_value_blocks: self.recipe.value_blocks == ValueBlocks::Causal,
            },
        );
        b.add(x, &self.project(&self.operand(&mixed, Role::ProjectionActivation), &layer.o))
    }

    /// x + down(silu(gate) · up) with gate and up from the norm of x.
    fn mlp(&self, x: &B::Activation, layer: &Layer<B>) -> B::Activation {
        let b = &self.backend;
        let h = b.rms_norm(x, &layer.post_attention_norm, self.config.rms_norm_eps as f32);
        let h = self.operand(&h, Role::MlpActivation); // quantized once for gate and up
        let h = b.gated(&self.project(&h, &layer.gate), &self.project(&h, &layer.up));
        b.add(x, &self.project(&self.operand(&h, Role::MlpActivation), &layer.down))
    }

    fn operand(&self, x: &B::Activation, role: Role) -> B::Operand {
        self.backend.operand(x, block_format(&self.recipe, role))
    }

    fn project(&self, x: &B::Operand, projection: &Projection<B>) -> B::Activation {
        self.backend.linear(x, &projection.weight, projection.bias.as_deref())
    }

    /// Cosines and sines of every token's position in its sequence.
    fn rotation(&self, sequences: &[Range<usize>]) -> Rotation {
        let dim = self.config.head_dim;
        let tokens = sequences.last().map_or(0, |s| s.end);
        let (mut cos, mut sin) = (Matrix::zeros(tokens, dim), Matrix::zeros(tokens, dim));
        let mut longest: Option<&Range<usize>> = None;
        let one_for_all_lengths = self.config.rope.changes_beyond().is_none();
        for sequence in sequences {
            let shared = if one_for_all_lengths { longest.filter(|l| l.len() >= sequence.len()) } else { None };
            if let Some(other) = shared {
                // Positions count from 0 in every sequence: the rows are those of a longer one.
                let from = other.start * dim..(other.start + sequence.len()) * dim;
                cos.values_mut().copy_within(from.clone(), sequence.start * dim);
                sin.values_mut().copy_within(from, sequence.start * dim);
                continue;
            }
            let frequencies = self.config.rope.inverse_frequencies(dim, sequence.len());
            for (position, row) in sequence.clone().enumerate() {
                for (f, inverse) in frequencies.inverse.iter().enumerate() {
                    let (s, c) = math::sin_cos(position as f32 * inverse);
                    let round = |x: f32| bf16::from_f32(x * frequencies.attention_factor);
                    for column in [f, f + dim / 2] {
                        cos.row_mut(row)[column] = round(c);
                        sin.row_mut(row)[column] = round(s);
                    }
                }
            }
            longest = Some(sequence);
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

/// What to say of a sequence with a token that the vocabulary does not have.
pub(crate) fn outside_vocabulary(tokens: &[u32], vocabulary: usize) -> Option<String> {
    let token = tokens.iter().find(|&&t| t as usize >= vocabulary)?;
    Some(format!("token {token} is outside the vocabulary of {vocabulary}; is this the model's tokenizer?"))
}
