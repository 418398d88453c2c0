//! Attention, one sequence and one key/value head at a time; scores exist for a tile of queries only.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::linear::round;
use super::operand::flush_subnormals;
use super::product::{GROUP, Order, ScaleRange, Scales, Side, TILE, Totals, multiply, multiply_row};
use super::quantize::Quantizer;
use super::rows::softmax;
use crate::cpu::simd::{Isa, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;
use crate::{Attention, BlockFormat, Matrix};

pub(in crate::cpu) fn attention(isa: Isa, q: &Matrix, k: &Matrix, v: &Matrix, a: &Attention<'_>) -> Matrix {
    assert!(
        q.columns() == a.heads * a.head_dim && k.columns() == a.kv_heads * a.head_dim && k.columns() == v.columns()
    );
    let tasks: Vec<(&Range<usize>, usize)> =
        a.sequences.iter().flat_map(|s| (0..a.kv_heads).map(move |h| (s, h))).collect();
    let results: Vec<Vec<bf16>> = tasks
        .par_iter()
        .map(|&(sequence, kv_head)| {
            let inputs = Inputs { q, k, v, a, sequence, kv_head };
            dispatch!(isa, simd => kv_head_attention(simd, &inputs))
        })
        .collect();
    let mut out = Matrix::zeros(q.rows(), q.columns());
    let width = a.heads / a.kv_heads * a.head_dim;
    for ((sequence, kv_head), result) in tasks.into_iter().zip(results) {
        for (i, row) in sequence.clone().zip(result.chunks_exact(width)) {
            out.row_mut(i)[kv_head * width..][..width].copy_from_slice(row);
        }
    }
    out
}

/// What one task reads.
struct Inputs<'a> {
    q: &'a Matrix,
    k: &'a Matrix,
    v: &'a Matrix,
    a: &'a Attention<'a>,
    sequence: &'a Range<usize>,
    kv_head: usize,
}

impl Inputs<'_> {
    fn tokens(&self) -> usize {
        self.sequence.len()
    }

    fn key(&self, token: usize) -> &[bf16] {
        let dim = self.a.head_dim;
        &self.k.row(self.sequence.start + token)[self.kv_head * dim..][..dim]
    }

    fn value(&self, token: usize) -> &[bf16] {
        let dim = self.a.head_dim;
        &self.v.row(self.sequence.start + token)[self.kv_head * dim..][..dim]
    }

    fn query(&self, head: usize, token: usize) -> &[bf16] {
        let dim = self.a.head_dim;
        &self.q.row(self.sequence.start + token)[head * dim..][..dim]
    }
}

/// Rows quantized along k and laid side by side: one side of a product, `N` rows wide.
struct Laid<const N: usize> {
    k: usize,
    block_size: Option<usize>,
    range: ScaleRange,
    values: Vec<[f32; N]>,
    powers: Vec<[f32; N]>,
}

impl<const N: usize> Laid<N> {
    /// `rows` rows of length `k`; `fill(row, to)` writes one. `flush` sets subnormals to zero.
    #[inline(always)]
    fn new(rows: usize, k: usize, format: Option<BlockFormat>, flush: bool, fill: impl Fn(usize, &mut [f32])) -> Self {
        let quantizer = format.map(Quantizer::new);
        let blocks = quantizer.map_or(0, |q| k.div_ceil(q.block_size()));
        let mut values = vec![[0f32; N]; rows.div_ceil(N) * k];
        let mut powers = vec![[1f32; N]; rows.div_ceil(N) * blocks];
        let (mut row, mut scales) = (vec![0f32; k], vec![0f32; blocks]);
        for r in 0..rows {
            fill(r, &mut row);
            if let Some(quantizer) = quantizer {
                quantizer.row(&mut row, &mut scales);
                let to = &mut powers[r / N * blocks..][..blocks];
                to.iter_mut().zip(&scales).for_each(|(to, &s)| to[r % N] = s);
            } else if flush {
                flush_subnormals(&mut row);
            }
            let to = &mut values[r / N * k..][..k];
            to.iter_mut().zip(&row).for_each(|(to, &x)| to[r % N] = x);
        }
        let range = ScaleRange::of(powers.iter().flatten().copied());
        Laid { k, block_size: format.map(|f| f.block_size), range, values, powers }
    }

    /// The side of panel `i`, elements `0..k`.
    #[inline(always)]
    fn side(&self, i: usize) -> Side<'_, N> {
        let scales = self.block_size.map(|block_size| {
            let blocks = self.k.div_ceil(block_size);
            Scales { block_size, powers: &self.powers[i * blocks..][..blocks] }
        });
        Side { values: &self.values[i * self.k..][..self.k], scales }
    }

    fn is_finite(&self) -> bool {
        let finite = |rows: &[[f32; N]]| rows.as_flattened().iter().all(|x| x.is_finite());
        finite(&self.values) && finite(&self.powers)
    }
}

/// The order of a product of these formats.
fn order(x: Option<BlockFormat>, w: Option<BlockFormat>, wide: bool) -> Order {
    Order { chunk: [x, w].into_iter().flatten().map(|f| f.block_size).min().unwrap_or(PLAIN_CHUNK), wide }
}

fn widen(from: &[bf16], to: &mut [f32]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_f32());
}

/// All query heads of one key/value head: `[token][head of the group · head_dim]`.
#[inline(always)]
fn kv_head_attention<S: Simd>(simd: S, inputs: &Inputs<'_>) -> Vec<bf16> {
    let (a, n) = (inputs.a, inputs.tokens());
    let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
    let plain_scores = a.query.is_none() && a.key.is_none();
    let plain_mix = a.weights.is_none() && a.value.is_none();
    let keys = Laid::<GROUP>::new(n, dim, a.key, plain_scores, |t, to| widen(inputs.key(t), to));
    let values = Laid::<GROUP>::new(dim, n, a.value, plain_mix, |f, to| {
        to.iter_mut().enumerate().for_each(|(t, to)| *to = inputs.value(t)[f].to_f32());
    });
    let finite = values.is_finite();
    let mut out = vec![bf16::ZERO; n * group * dim];
    for member in 0..group {
        let head = inputs.kv_head * group + member;
        for first in (0..n).step_by(TILE) {
            let tile = Tile { first, rows: TILE.min(n - first), last: n.min(first + TILE) - 1 };
            let fill = |r: usize, to: &mut [f32]| widen(inputs.query(head, first + r), to);
            let queries = Laid::<TILE>::new(tile.rows, dim, a.query, plain_scores, fill);
            let weights = attention_weights(simd, &tile, &queries, &keys, a);
            let mix = Mix { inputs, values: &values, finite, plain: plain_mix };
            mix.write(simd, &tile, &weights, |r, f| (first + r) * group * dim + member * dim + f, &mut out);
        }
    }
    out
}

/// A tile of consecutive queries.
struct Tile {
    first: usize,
    rows: usize,
    last: usize,
}

/// softmax(q·kᵀ/√d) of a tile, each row over its own past: `[query][tokens up to the tile's last]`, zero beyond.
#[inline(always)]
fn attention_weights<S: Simd>(
    simd: S,
    tile: &Tile,
    queries: &Laid<TILE>,
    keys: &Laid<GROUP>,
    a: &Attention<'_>,
) -> Vec<Vec<f32>> {
    let root = (a.head_dim as f64).sqrt() as f32;
    let order = order(a.query, a.key, queries.range.leaves_f32(keys.range));
    let seen = tile.last + 1;
    let mut scores = vec![vec![0f32; seen.next_multiple_of(GROUP)]; tile.rows];
    for group in 0..seen.div_ceil(GROUP) {
        let mut totals: Totals = [[0.0; GROUP]; TILE];
        multiply(simd, queries.side(0), keys.side(group), order, tile.rows, &mut totals);
        for (row, totals) in scores.iter_mut().zip(&totals) {
            for (to, &total) in row[group * GROUP..][..GROUP].iter_mut().zip(totals) {
                *to = round(round(total).to_f32() / root).to_f32();
            }
        }
    }
    for (r, row) in scores.iter_mut().enumerate() {
        row.truncate(seen);
        let (past, future) = row.split_at_mut(tile.first + r + 1);
        softmax(past);
        future.fill(0.0);
    }
    scores
}

/// The product of attention weights and values.
struct Mix<'a> {
    inputs: &'a Inputs<'a>,
    values: &'a Laid<GROUP>,
    finite: bool,
    plain: bool,
}

impl Mix<'_> {
    /// Writes P·V of a tile, rounded to bf16, to `out[place(row, feature)]`.
    #[inline(always)]
    fn write<S: Simd>(
        &self,
        simd: S,
        tile: &Tile,
        weights: &[Vec<f32>],
        place: impl Fn(usize, usize) -> usize,
        out: &mut [bf16],
    ) {
        let a = self.inputs.a;
        let seen = tile.last + 1;
        let p = Laid::<TILE>::new(tile.rows, seen, a.weights, self.plain, |r, to| to.copy_from_slice(&weights[r]));
        let order = order(a.weights, a.value, p.range.leaves_f32(self.values.range));
        let together = self.shared_tokens(tile, order.chunk);
        for group in 0..a.head_dim.div_ceil(GROUP) {
            let mut totals: Totals = [[0.0; GROUP]; TILE];
            let (x, w) = (p.side(0), self.values.side(group));
            multiply(simd, x.range(0, together), w.range(0, together), order, tile.rows, &mut totals);
            for row in 0..tile.rows {
                self.finish_row(simd, (x, group), order, (tile.first + row, row, together), &mut totals);
                let features = group * GROUP..a.head_dim.min((group + 1) * GROUP);
                for (f, &total) in features.zip(&totals[row]) {
                    out[place(row, f)] = round(total);
                }
            }
        }
    }

    /// How many tokens, from the first on, the whole tile may take in one product.
    ///
    /// Weights of zero make tokens past a query's own harmless, but for two cases: an infinity or NaN among the
    /// values, and causal value blocks, where the block that holds the query's token differs from query to query.
    fn shared_tokens(&self, tile: &Tile, chunk: usize) -> usize {
        let per_query_blocks = self.inputs.a.causal_value_blocks && self.inputs.a.value.is_some();
        match (self.finite, per_query_blocks) {
            (true, false) => tile.last + 1,
            (true, true) => {
                let block = self.inputs.a.value.map_or(chunk, |f| f.block_size).max(chunk);
                (tile.first + 1) / block * block
            }
            (false, _) => 0,
        }
    }

    /// Adds the tokens from `from` on up to the query's own, for one row.
    #[inline(always)]
    fn finish_row<S: Simd>(
        &self,
        simd: S,
        (x, group): (Side<'_, TILE>, usize),
        order: Order,
        (position, row, from): (usize, usize, usize),
        totals: &mut Totals,
    ) {
        let (a, seen) = (self.inputs.a, position + 1);
        if from >= seen {
            return;
        }
        // With causal blocks, whole blocks are what they are in the sequence; the last, short one is the query's own.
        let own = match a.value {
            Some(format) if a.causal_value_blocks => (seen / format.block_size * format.block_size).max(from),
            _ => seen,
        };
        multiply_row(simd, x.range(from, own), self.values.side(group).range(from, own), order, row, totals);
        if own < seen {
            let features = GROUP.min(a.head_dim - group * GROUP);
            let block = Laid::<GROUP>::new(features, seen - own, a.value, false, |f, to| {
                let feature = group * GROUP + f;
                to.iter_mut().enumerate().for_each(|(t, to)| *to = self.inputs.value(own + t)[feature].to_f32());
            });
            let order = Order { wide: true, ..order };
            multiply_row(simd, x.range(own, seen), block.side(0), order, row, totals);
        }
    }
}
