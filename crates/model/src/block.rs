//! One layer of a LLaMA under one recipe: attention and MLP, as the paper has them, in the order of operations of
//! Hugging Face's eager mode.

use std::collections::HashMap;

use half::bf16;
use microscale_tensor::{Attention, Backend, KeyValueLayout, Matrix, Rotation, math};

use crate::batch::{Batch, Sequence};
use crate::tail::Tail;
use crate::weights::{Layer, block_format};
use crate::{Config, Recipe, Role, ValueBlocks};

/// What computes a layer: where, of which shape, in which formats.
pub(crate) struct Block<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) config: &'a Config,
    pub(crate) recipe: &'a Recipe,
}

/// The tokens of a pass, and where they stand.
pub(crate) struct Tokens<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) rotation: &'a Rotation,
    /// The rows to go on with, in the last layer, if not all.
    pub(crate) tail: Option<&'a Tail>,
}

impl<B: Backend> Block<'_, B> {
    /// Activations `[tokens, hidden]` before a layer to those after it, of the rows to go on with; `held` is the cache of
    /// the one growing sequence in the batch.
    pub(crate) fn layer(
        &self,
        x: &B::Activation,
        layer: &Layer<B>,
        tokens: &Tokens<'_>,
        held: Option<&mut B::Cache>,
    ) -> B::Activation {
        let x = self.attention(x, layer, tokens, held);
        self.mlp(&x, layer)
    }

    /// x + o_proj(attention(q, k, v)) with q, k, v from the norm of x.
    fn attention(
        &self,
        x: &B::Activation,
        layer: &Layer<B>,
        &Tokens { batch, rotation, tail }: &Tokens<'_>,
        held: Option<&mut B::Cache>,
    ) -> B::Activation {
        let b = self.backend;
        let h = b.rms_norm(x, &layer.input_norm, self.config.rms_norm_eps as f32);
        let all = self.operand(&h, Role::ProjectionActivation); // quantized once for q, k and v
        let (q, k, v) = match tail {
            None => {
                let [q, k, v] = b.linear(&all, [layer.q.linear(), layer.k.linear(), layer.v.linear()]);
                (b.rope(q, rotation), k, v)
            }
            Some(tail) => {
                let [k, v] = b.linear(&all, [layer.k.linear(), layer.v.linear()]);
                let own = self.operand(&b.gather(&h, &tail.rows), Role::ProjectionActivation);
                let [q] = b.linear(&own, [layer.q.linear()]);
                (b.rope(q, &tail.rotation), k, v)
            }
        };
        let k = b.rope(k, rotation);
        let (options, rows) = (self.attention_options(), batch.rows());
        let queries = tail.map_or(&rows, |tail| &tail.sequences);
        let mixed = match held {
            Some(cache) => {
                b.append(&mut [&mut *cache], &k, &v, &rows);
                b.attention(&q, &[&*cache], queries, &options)
            }
            None => {
                let caches = self.caches(batch, &k, &v, &options.keys_values);
                b.attention(&q, &caches.iter().collect::<Vec<_>>(), queries, &options)
            }
        };
        let [out] = b.linear(&self.operand(&mixed, Role::ProjectionActivation), [layer.o.linear()]);
        match tail {
            None => b.add(out, x),
            Some(tail) => b.add(out, &b.gather(x, &tail.rows)),
        }
    }

    /// The keys and values of every sequence, one that follows another with a copy of that one's before its own.
    fn caches(&self, batch: &Batch, k: &B::Activation, v: &B::Activation, layout: &KeyValueLayout) -> Vec<B::Cache> {
        let b = self.backend;
        let mut caches: Vec<Option<B::Cache>> = batch.sequences.iter().map(|_| None).collect();
        for depth in 0..=batch.sequences.iter().map(|s| s.depth).max().unwrap_or(0) {
            let here: Vec<usize> = (0..caches.len()).filter(|&i| batch.sequences[i].depth == depth).collect();
            let fork = |after: Option<usize>| after.and_then(|i| caches[i].clone()).unwrap_or_else(|| b.cache(layout));
            let mut fresh: Vec<B::Cache> = here.iter().map(|&i| fork(batch.sequences[i].after)).collect();
            let rows: Vec<_> = here.iter().map(|&i| batch.sequences[i].rows.clone()).collect();
            b.append(&mut fresh.iter_mut().collect::<Vec<_>>(), k, v, &rows);
            here.into_iter().zip(fresh).for_each(|(i, cache)| caches[i] = Some(cache));
        }
        caches.into_iter().flatten().collect()
    }

    /// x + down(silu(gate) · up) with gate and up from the norm of x.
    fn mlp(&self, x: &B::Activation, layer: &Layer<B>) -> B::Activation {
        let b = self.backend;
        let h = b.rms_norm(x, &layer.post_attention_norm, self.config.rms_norm_eps as f32);
        let h = self.operand(&h, Role::MlpActivation); // quantized once for gate and up
        let [gate, up] = b.linear(&h, [layer.gate.linear(), layer.up.linear()]);
        let h = b.gated(gate, &up);
        let [out] = b.linear(&self.operand(&h, Role::MlpActivation), [layer.down.linear()]);
        b.add(out, x)
    }

    pub(crate) fn operand(&self, x: &B::Activation, role: Role) -> B::Operand {
        self.backend.operand(x, block_format(self.recipe, role))
    }

    pub(crate) fn attention_options(&self) -> Attention {
        let format = |role| block_format(self.recipe, role);
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
}

/// Cosines and sines of every token's position in its sequence.
pub(crate) fn rotation(config: &Config, batch: &Batch) -> Rotation {
    let dim = config.head_dim;
    let tokens = batch.tokens.len();
    let (mut cos, mut sin) = (Matrix::zeros(tokens, dim), Matrix::zeros(tokens, dim));
    let rope = &config.rope;
    let mut first_row: HashMap<usize, usize> = HashMap::new();
    for Sequence { rows, position: first, .. } in &batch.sequences {
        let first = *first;
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
