//! The reference backend: slow, obvious, one element after another. It defines what every other backend computes.
//!
//! Every `f32` here holds a bf16 value unless it says otherwise.

use std::ops::Range;

use half::bf16;
use microscale_formats::{E8M0, quantize_block, round_to_bf16};

use crate::backend::{Attention, Backend, BlockFormat, KeyValueLayout, Linear, Rotation, TokenScore, WeightMatrix};
use crate::{Matrix, MxTensor, math};

/// Chunk of a product of two bf16 operands, along k.
pub(crate) const PLAIN_CHUNK: usize = 512;

/// The reference backend.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reference;

/// A matrix `[rows, k]` as unscaled element values and, per row and block along k, a power-of-two exponent.
#[derive(Clone, Debug)]
pub struct Factored {
    k: usize,
    values: Vec<f32>,
    /// Block size and exponents `[rows, blocks]`, `None` inside standing for a NaN scale. Plain bf16 has neither.
    blocks: Option<(usize, Vec<Option<i32>>)>,
}

/// Keys and values of one sequence as they came, `[tokens, heads · head_dim]` each.
#[derive(Clone, Debug)]
pub struct Cache {
    width: usize,
    keys: Vec<bf16>,
    values: Vec<bf16>,
}

impl Factored {
    /// `values` `[rows, k]`, quantized along k or as they are.
    fn new(values: Vec<f32>, k: usize, format: Option<BlockFormat>) -> Factored {
        let Some(format) = format else { return Factored { k, values, blocks: None } };
        let mut elements = Vec::with_capacity(values.len());
        let mut exponents = Vec::new();
        for row in values.chunks(k) {
            for block in row.chunks(format.block_size) {
                let mut codes = vec![0; block.len()];
                let scale = quantize_block(block, format.element, format.scale_rule, &mut codes);
                elements.extend(codes.iter().map(|&c| format.element.decode(c)));
                exponents.push(scale.exponent());
            }
        }
        Factored { k, values: elements, blocks: Some((format.block_size, exponents)) }
    }

    fn from_tensor(tensor: &MxTensor) -> Factored {
        let [rows, k] = [tensor.shape()[0], tensor.shape()[1]];
        let element = tensor.format().element;
        let values = (0..rows).flat_map(|i| tensor.row_codes(i)).map(|c| element.decode(c)).collect();
        let exponents = tensor.scales().iter().map(|s: &E8M0| s.exponent()).collect();
        Factored { k, values, blocks: Some((tensor.format().block_size, exponents)) }
    }

    fn rows(&self) -> usize {
        self.values.len() / self.k
    }

    fn row(&self, i: usize) -> &[f32] {
        &self.values[i * self.k..][..self.k]
    }

    /// Exponent of the block of row `i` that holds element `j`: 0 for plain bf16, `None` for NaN.
    fn exponent(&self, i: usize, j: usize) -> Option<i32> {
        self.blocks.as_ref().map_or(Some(0), |(size, e)| e[i * self.k.div_ceil(*size) + j / size])
    }
}

/// Σ over k of x[i, k]·w[j, k] in the canonical order: f32, not yet rounded to bf16.
fn dot(x: &Factored, i: usize, w: &Factored, j: usize) -> f32 {
    let plain = x.blocks.is_none() && w.blocks.is_none();
    let chunk = [&x.blocks, &w.blocks].into_iter().flatten().map(|b| b.0).min().unwrap_or(PLAIN_CHUNK);
    let mut total = 0f32;
    for start in (0..x.k).step_by(chunk) {
        let end = (start + chunk).min(x.k);
        let (a, b) = (&x.row(i)[start..end], &w.row(j)[start..end]);
        let mut sum = 0f32;
        for first in (0..a.len()).step_by(2) {
            for l in [first + 1, first] {
                if l < a.len() {
                    let (a, b) = if plain { (flush(a[l]), flush(b[l])) } else { (a[l], b[l]) };
                    sum = a.mul_add(b, sum);
                }
            }
        }
        total += match (x.exponent(i, start), w.exponent(j, start)) {
            (Some(a), Some(b)) => scale(sum, a + b),
            _ => f32::NAN,
        };
    }
    total
}

/// Subnormal bf16 counts as zero in products of bf16 with bf16: that is what the CPUs' instruction does.
fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0 } else { x }
}

/// x · 2^e, −254 ≤ e ≤ 254, rounded once.
fn scale(x: f32, e: i32) -> f32 {
    let power = f64::from_bits(((e + 1023) as u64) << 52);
    (f64::from(x) * power) as f32
}

/// The product of two matrices that fit: `[m, n]`, row-major.
pub(crate) fn product(x: &MxTensor, w: &MxTensor) -> Vec<f32> {
    let (x, w) = (Factored::from_tensor(x), Factored::from_tensor(w));
    (0..x.rows()).flat_map(|i| (0..w.rows()).map(move |j| (i, j))).map(|(i, j)| dot(&x, i, &w, j)).collect()
}

/// Softmax of a row of scores in f32, rounded to bf16. Sixteen strided lanes, folded in halves; times the reciprocal.
pub(crate) fn softmax(scores: &[f32]) -> Vec<f32> {
    let max = scores.iter().fold(f32::NEG_INFINITY, |m, &s| m.max(s));
    let e: Vec<f32> = scores.iter().map(|&s| math::exp(f64::from(s - max)) as f32).collect();
    let mut lanes = [0f32; 16];
    for (i, &e) in e.iter().enumerate() {
        lanes[i % 16] += e;
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    let reciprocal = 1.0 / lanes[0];
    e.iter().map(|&e| round_to_bf16(e * reciprocal)).collect()
}

/// Mean of squares of a row: eight lanes in four accumulators, each flushed into a second level every 16 additions.
pub(crate) fn mean_of_squares(x: &[f32]) -> f32 {
    let vectors = x.len() / 8;
    let square = |v: usize, lane: usize| x[8 * v + lane] * x[8 * v + lane];
    let mut accumulators = [[0f32; 8]; 4];
    for (a, accumulator) in accumulators.iter_mut().enumerate() {
        for (lane, accumulator) in accumulator.iter_mut().enumerate() {
            let (mut low, mut high) = (0f32, 0f32);
            for group in 0..vectors / 4 {
                low += square(4 * group + a, lane);
                if group % 16 == 15 {
                    high += low;
                    low = 0.0;
                }
            }
            *accumulator = low + high;
        }
    }
    for v in vectors / 4 * 4..vectors {
        for (lane, accumulator) in accumulators[0].iter_mut().enumerate() {
            *accumulator += square(v, lane);
        }
    }
    let mut total = x[vectors * 8..].iter().fold(0f32, |sum, x| sum + x * x);
    for lane in 0..8 {
        let [a, b, c, d] = accumulators.map(|a| a[lane]);
        total += ((a + b) + c) + d;
    }
    total / x.len() as f32
}

/// silu in f32, rounded to bf16.
pub(crate) fn silu(x: f32) -> f32 {
    round_to_bf16(x / (1.0 + math::exp(f64::from(-x)) as f32))
}

/// The score of `target` under a row of logits: log-softmax in f64 over sixteen strided lanes, folded in halves.
pub(crate) fn score(logits: &[bf16], target: u32) -> TokenScore {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, x| m.max(x.to_f32()));
    let mut lanes = [0f64; 16];
    for (i, x) in logits.iter().enumerate() {
        lanes[i % 16] += math::exp(f64::from(x.to_f32() - max));
    }
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
    }
    let chosen = logits[target as usize].to_f32();
    TokenScore {
        log_probability: f64::from(chosen) - (f64::from(max) + math::ln(lanes[0])),
        greedy: logits.iter().position(|x| x.to_f32() == max) == Some(target as usize),
    }
}

fn floats(values: &[bf16]) -> Vec<f32> {
    values.iter().map(|x| x.to_f32()).collect()
}

fn matrix(rows: usize, columns: usize, values: impl Iterator<Item = f32>) -> Matrix {
    Matrix::new(rows, columns, values.map(bf16::from_f32).collect())
}

/// Head `index` of all rows of a row-major matrix of `columns` columns.
fn head(rows: &[bf16], columns: usize, index: usize, dim: usize) -> Vec<f32> {
    rows.chunks_exact(columns).flat_map(|row| floats(&row[index * dim..][..dim])).collect()
}

/// P·V for the query at `position`, whose attention weights over the tokens up to it are `p`; `values` `[tokens, dim]`.
fn weigh(p: Vec<f32>, values: &[f32], a: &Attention) -> Vec<f32> {
    let KeyValueLayout { head_dim: dim, value: format, .. } = a.keys_values;
    let (seen, tokens) = (p.len(), values.len() / dim);
    let p = Factored::new(p, seen, a.weights);
    // Which tokens the scales of V see: the whole sequence, or in causal mode the query's past.
    let visible = if a.causal_value_blocks { seen } else { tokens };
    let feature = |f: usize| (0..visible).map(|t| values[t * dim + f]).collect();
    let transposed = (0..dim).map(|f| Factored::new(feature(f), visible, format));
    let truncated = transposed.map(|mut v| {
        // The last block may reach past the query: its later elements meet weights of zero.
        v.values.truncate(seen);
        v.k = seen;
        v
    });
    truncated.map(|v| round_to_bf16(dot(&p, 0, &v, 0))).collect()
}

impl Backend for Reference {
    type Weight = Factored;
    type Activation = Matrix;
    type Operand = Factored;
    type Cache = Cache;

    fn session<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        work()
    }

    fn passes<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
        (0..count).map(work).collect()
    }

    fn weight(&self, weight: WeightMatrix) -> Factored {
        match weight {
            WeightMatrix::Bf16(m) => Factored::new(floats(m.values()), m.columns(), None),
            WeightMatrix::Mx(tensor) => Factored::from_tensor(&tensor),
        }
    }

    fn upload(&self, matrix: Matrix) -> Matrix {
        matrix
    }

    fn download(&self, x: &Matrix) -> Matrix {
        x.clone()
    }

    fn gather(&self, x: &Matrix, rows: &[u32]) -> Matrix {
        x.gather(rows)
    }

    fn rms_norm(&self, x: &Matrix, weight: &[bf16], eps: f32) -> Matrix {
        let rows = (0..x.rows()).flat_map(|i| {
            let row = floats(x.row(i));
            let reciprocal = 1.0 / (mean_of_squares(&row) + eps).sqrt();
            row.into_iter().zip(weight).map(move |(x, w)| round_to_bf16(x * reciprocal) * w.to_f32())
        });
        matrix(x.rows(), x.columns(), rows)
    }

    fn operand(&self, x: &Matrix, format: Option<BlockFormat>) -> Factored {
        Factored::new(floats(x.values()), x.columns(), format)
    }

    fn linear<const N: usize>(&self, x: &Factored, weights: [Linear<'_, Factored>; N]) -> [Matrix; N] {
        weights.map(|Linear { weight, bias }| {
            let outputs = weight.rows();
            let each = (0..x.rows() * outputs).map(|i| {
                let (row, output) = (i / outputs, i % outputs);
                let sum = dot(x, row, weight, output);
                bias.map_or(sum, |b| sum + b[output].to_f32())
            });
            matrix(x.rows(), outputs, each)
        })
    }

    fn rope(&self, x: Matrix, rotation: &Rotation) -> Matrix {
        let dim = rotation.cos.columns();
        let each = (0..x.rows() * x.columns()).map(|i| {
            let (token, column) = (i / x.columns(), i % x.columns());
            let (start, f) = (column / dim * dim, column % dim);
            let row = x.row(token);
            let rotated = if f < dim / 2 { -row[start + f + dim / 2] } else { row[start + f - dim / 2] };
            let (cos, sin) = (rotation.cos.row(token)[f].to_f32(), rotation.sin.row(token)[f].to_f32());
            round_to_bf16(row[column].to_f32() * cos) + round_to_bf16(rotated.to_f32() * sin)
        });
        matrix(x.rows(), x.columns(), each)
    }

    fn cache(&self, layout: &KeyValueLayout) -> Cache {
        Cache { width: layout.heads * layout.head_dim, keys: Vec::new(), values: Vec::new() }
    }

    fn append(&self, caches: &mut [&mut Cache], k: &Matrix, v: &Matrix, sequences: &[Range<usize>]) {
        for (cache, rows) in caches.iter_mut().zip(sequences) {
            let rows = rows.start * cache.width..rows.end * cache.width;
            cache.keys.extend_from_slice(&k.values()[rows.clone()]);
            cache.values.extend_from_slice(&v.values()[rows]);
        }
    }

    fn attention(&self, q: &Matrix, caches: &[&Cache], sequences: &[Range<usize>], a: &Attention) -> Matrix {
        let KeyValueLayout { heads: kv_heads, head_dim: dim, key: key_format, .. } = a.keys_values;
        let group = a.heads / kv_heads;
        let root = (dim as f64).sqrt() as f32;
        let mut out = Matrix::zeros(q.rows(), q.columns());
        for (cache, rows) in caches.iter().zip(sequences) {
            let past = cache.keys.len() / cache.width - rows.len();
            for h in 0..a.heads {
                let key = Factored::new(head(&cache.keys, cache.width, h / group, dim), dim, key_format);
                let value = head(&cache.values, cache.width, h / group, dim);
                for i in rows.clone() {
                    let query = Factored::new(floats(&q.row(i)[h * dim..][..dim]), dim, a.query);
                    let score = |j| round_to_bf16(round_to_bf16(dot(&query, 0, &key, j)) / root);
                    let p = softmax(&(0..=past + i - rows.start).map(score).collect::<Vec<_>>());
                    let to = &mut out.row_mut(i)[h * dim..][..dim];
                    to.iter_mut().zip(weigh(p, &value, a)).for_each(|(to, x)| *to = bf16::from_f32(x));
                }
            }
        }
        out
    }

    fn gated(&self, gate: Matrix, up: &Matrix) -> Matrix {
        let each = gate.values().iter().zip(up.values()).map(|(g, u)| silu(g.to_f32()) * u.to_f32());
        matrix(gate.rows(), gate.columns(), each)
    }

    fn add(&self, x: Matrix, y: &Matrix) -> Matrix {
        let each = x.values().iter().zip(y.values()).map(|(x, y)| x.to_f32() + y.to_f32());
        matrix(x.rows(), x.columns(), each)
    }

    fn scores(&self, logits: &Matrix, targets: &[u32]) -> Vec<TokenScore> {
        targets.iter().enumerate().map(|(i, &t)| score(logits.row(i), t)).collect()
    }
}
