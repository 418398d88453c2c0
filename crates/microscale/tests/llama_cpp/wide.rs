//! The forward pass with the roundings that llama.cpp has: activations, softmax and logits in f32, what enters a product
//! with a bf16 weight in bf16, queries, keys, values and attention weights in f16.
//!
//! Sums are taken in f64, whose order does not matter here. Models without biases and of the default rope only.

use half::{bf16, f16};
use microscale::model::{Checkpoint, Config, Error, TensorSource};
use microscale::tensor::math;

/// A matrix `[rows, columns]`.
struct Weight {
    columns: usize,
    values: Vec<f32>,
}

struct Layer {
    input_norm: Vec<f32>,
    q: Weight,
    k: Weight,
    v: Weight,
    o: Weight,
    post_attention_norm: Vec<f32>,
    gate: Weight,
    up: Weight,
    down: Weight,
}

/// A model whose activations are f32.
pub(crate) struct Wide {
    config: Config,
    embedding: Weight,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Weight,
    frequencies: Vec<f32>,
}

/// Keys and values `[tokens][kv_heads · head_dim]` of every layer.
type Cache = Vec<Vec<[Vec<f32>; 2]>>;

impl Weight {
    fn times(&self, x: &[f32]) -> Vec<f32> {
        let x: Vec<f32> = x.iter().map(|&x| bf16::from_f32(x).to_f32()).collect();
        self.values.chunks_exact(self.columns).map(|row| dot(row, &x)).collect()
    }
}

impl Wide {
    pub(crate) fn new(checkpoint: &Checkpoint) -> Result<Wide, Error> {
        let config = checkpoint.config().clone();
        let Config { hidden_size: hidden, intermediate_size: inner, head_dim, .. } = config;
        let read = |name: &str, shape: &[usize]| -> Result<Vec<f32>, Error> {
            Ok(checkpoint.read(name, shape)?.iter().map(|x| x.to_f32()).collect())
        };
        let weight = |name: &str, rows: usize, columns: usize| -> Result<Weight, Error> {
            Ok(Weight { columns, values: read(name, &[rows, columns])? })
        };
        let layer = |i: usize| -> Result<Layer, Error> {
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            let (queries, keys) = (config.heads * head_dim, config.kv_heads * head_dim);
            Ok(Layer {
                input_norm: read(&name("input_layernorm"), &[hidden])?,
                q: weight(&name("self_attn.q_proj"), queries, hidden)?,
                k: weight(&name("self_attn.k_proj"), keys, hidden)?,
                v: weight(&name("self_attn.v_proj"), keys, hidden)?,
                o: weight(&name("self_attn.o_proj"), hidden, queries)?,
                post_attention_norm: read(&name("post_attention_layernorm"), &[hidden])?,
                gate: weight(&name("mlp.gate_proj"), inner, hidden)?,
                up: weight(&name("mlp.up_proj"), inner, hidden)?,
                down: weight(&name("mlp.down_proj"), hidden, inner)?,
            })
        };
        Ok(Wide {
            embedding: weight("model.embed_tokens.weight", config.vocab_size, hidden)?,
            layers: (0..config.layers).map(layer).collect::<Result<_, _>>()?,
            norm: read("model.norm.weight", &[hidden])?,
            head: weight(checkpoint.head(), config.vocab_size, hidden)?,
            frequencies: config.rope.inverse_frequencies(head_dim, 0).inverse,
            config,
        })
    }

    /// The `count` most likely tokens after `prompt`, one after another.
    pub(crate) fn greedy(&self, prompt: &[u32], count: usize) -> Vec<u32> {
        let mut cache = vec![Vec::new(); self.layers.len()];
        let mut tokens = prompt.to_vec();
        for position in 0..prompt.len() + count - 1 {
            let logits = self.step(&mut cache, tokens[position], position);
            if position + 1 == tokens.len() {
                tokens.push(largest(&logits) as u32);
            }
        }
        tokens.split_off(prompt.len())
    }

    /// The logits after one more token.
    fn step(&self, cache: &mut Cache, token: u32, position: usize) -> Vec<f32> {
        let columns = self.embedding.columns;
        let mut x = self.embedding.values[token as usize * columns..][..columns].to_vec();
        for (layer, cache) in self.layers.iter().zip(cache) {
            let h = self.normed(&x, &layer.input_norm);
            let (q, k) = (self.turned(layer.q.times(&h), position), self.turned(layer.k.times(&h), position));
            cache.push([halves(k), halves(layer.v.times(&h))]);
            add(&mut x, &layer.o.times(&self.attended(&halves(q), cache)));
            let h = self.normed(&x, &layer.post_attention_norm);
            let gated: Vec<f32> = layer.gate.times(&h).iter().map(|&g| g / (1.0 + exp(-g))).collect();
            let h: Vec<f32> = gated.iter().zip(layer.up.times(&h)).map(|(g, u)| g * u).collect();
            add(&mut x, &layer.down.times(&h));
        }
        self.head.times(&self.normed(&x, &self.norm))
    }

    fn normed(&self, x: &[f32], weight: &[f32]) -> Vec<f32> {
        let mean = dot(x, x) / x.len() as f32;
        let factor = 1.0 / (mean + self.config.rms_norm_eps as f32).sqrt();
        x.iter().zip(weight).map(|(x, w)| x * factor * w).collect()
    }

    /// Every head with its halves turned by the position.
    fn turned(&self, mut x: Vec<f32>, position: usize) -> Vec<f32> {
        for head in x.chunks_exact_mut(self.config.head_dim) {
            let (low, high) = head.split_at_mut(self.frequencies.len());
            for ((a, b), frequency) in low.iter_mut().zip(high).zip(&self.frequencies) {
                let (sin, cos) = math::sin_cos(position as f32 * frequency);
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
        x
    }

    fn attended(&self, q: &[f32], cache: &[[Vec<f32>; 2]]) -> Vec<f32> {
        let (dim, group) = (self.config.head_dim, self.config.heads / self.config.kv_heads);
        let mut out = Vec::new();
        for (i, q) in q.chunks_exact(dim).enumerate() {
            let from = i / group * dim;
            let scores: Vec<f32> = cache.iter().map(|[k, _]| dot(q, &k[from..][..dim]) / (dim as f32).sqrt()).collect();
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let e: Vec<f32> = scores.iter().map(|s| exp(s - max)).collect();
            let sum: f32 = e.iter().sum();
            let weights = halves(e.iter().map(|e| e / sum).collect());
            out.extend((from..from + dim).map(|j| {
                weights.iter().zip(cache).map(|(w, [_, v])| f64::from(*w) * f64::from(v[j])).sum::<f64>() as f32
            }));
        }
        out
    }
}

/// The index of the largest number, of equals the first.
pub(crate) fn largest(x: &[f32]) -> usize {
    (0..x.len()).rev().max_by(|&a, &b| x[a].total_cmp(&x[b])).unwrap()
}

fn exp(x: f32) -> f32 {
    math::exp(f64::from(x)) as f32
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(*a) * f64::from(*b);
        }
    }
    lanes.iter().sum::<f64>() as f32
}

fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn halves(mut x: Vec<f32>) -> Vec<f32> {
    x.iter_mut().for_each(|x| *x = f16::from_f32(*x).to_f32());
    x
}
