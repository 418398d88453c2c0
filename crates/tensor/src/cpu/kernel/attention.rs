//! Attention, one sequence and one key/value head at a time; scores exist for a tile of queries only.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bf16::{float, floats, round, rounded};
use super::operand::flush_subnormals;
use super::product::{GROUP, Order, ScaleRange, Scales, Side, TILE, Totals, multiply};
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
#[derive(Default)]
struct Laid<const N: usize> {
    k: usize,
    block_size: Option<usize>,
    range: Option<ScaleRange>,
    values: Vec<[f32; N]>,
    powers: Vec<[f32; N]>,
    row: Vec<f32>,
    row_powers: Vec<f32>,
}

impl<const N: usize> Laid<N> {
    /// Lays out `rows` rows of length `k` in place of what was there; `fill(row, to)` writes one. Without a format,
    /// `flush` sets subnormals to zero.
    #[inline(always)]
    fn lay(
        &mut self,
        (rows, k): (usize, usize),
        format: Option<BlockFormat>,
        flush: bool,
        fill: impl Fn(usize, &mut [f32]),
    ) {
        let quantizer = format.map(Quantizer::new);
        let blocks = quantizer.map_or(0, |q| k.div_ceil(q.block_size()));
        (self.k, self.block_size) = (k, format.map(|f| f.block_size));
        self.values.clear();
        self.values.resize(rows.div_ceil(N) * k, [0.0; N]);
        self.powers.clear();
        self.powers.resize(rows.div_ceil(N) * blocks, [1.0; N]);
        self.row.resize(k, 0.0);
        self.row_powers.resize(blocks, 0.0);
        for r in 0..rows {
            fill(r, &mut self.row);
            if let Some(quantizer) = quantizer {
                quantizer.row(&mut self.row, &mut self.row_powers);
                let to = &mut self.powers[r / N * blocks..][..blocks];
                to.iter_mut().zip(&self.row_powers).for_each(|(to, &s)| to[r % N] = s);
            } else if flush {
                flush_subnormals(&mut self.row);
            }
            let to = &mut self.values[r / N * k..][..k];
            to.iter_mut().zip(&self.row).for_each(|(to, &x)| to[r % N] = x);
        }
        self.range = Some(ScaleRange::of(self.powers.iter().flatten().copied()));
    }

    fn range(&self) -> ScaleRange {
        self.range.unwrap_or(ScaleRange::PLAIN)
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
        let finite = |rows: &[[f32; N]]| rows.as_flattened().iter().fold(true, |all, x| all & x.is_finite());
        finite(&self.values) && finite(&self.powers)
    }
}

/// The order of a product of these formats.
fn order(x: Option<BlockFormat>, w: Option<BlockFormat>, wide: bool) -> Order {
    Order { chunk: [x, w].into_iter().flatten().map(|f| f.block_size).min().unwrap_or(PLAIN_CHUNK), wide }
}

/// Buffers that one tile after another uses.
#[derive(Default)]
struct Workspace {
    queries: Laid<TILE>,
    /// Scores, then attention weights: a row of `stride` per query.
    scores: Vec<f32>,
    stride: usize,
    weights: Laid<TILE>,
    own_block: Laid<GROUP>,
}

/// A tile of consecutive queries of one head.
struct Tile {
    first: usize,
    rows: usize,
    last: usize,
}

/// All query heads of one key/value head: `[token][head of the group · head_dim]`.
#[inline(always)]
fn kv_head_attention<S: Simd>(simd: S, inputs: &Inputs<'_>) -> Vec<bf16> {
    let (a, n) = (inputs.a, inputs.tokens());
    let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
    let plain_scores = a.query.is_none() && a.key.is_none();
    let plain_mix = a.weights.is_none() && a.value.is_none();
    let (mut keys, mut values) = (Laid::<GROUP>::default(), Laid::<GROUP>::default());
    keys.lay(
        (n, dim),
        a.key,
        plain_scores,
        #[inline(always)]
        |t, to| floats(inputs.key(t), to),
    );
    values.lay(
        (dim, n),
        a.value,
        plain_mix,
        #[inline(always)]
        |f, to| {
            to.iter_mut().enumerate().for_each(|(t, to)| *to = float(inputs.value(t)[f]));
        },
    );
    let mix = Mix { inputs, values: &values, finite: values.is_finite(), plain: plain_mix };
    let mut w = Workspace { stride: n.next_multiple_of(GROUP), ..Workspace::default() };
    w.scores.resize(TILE * w.stride, 0.0);
    let mut out = vec![bf16::ZERO; n * group * dim];
    for member in 0..group {
        let head = inputs.kv_head * group + member;
        for first in (0..n).step_by(TILE) {
            let tile = Tile { first, rows: TILE.min(n - first), last: n.min(first + TILE) - 1 };
            w.queries.lay(
                (tile.rows, dim),
                a.query,
                plain_scores,
                #[inline(always)]
                |r, to| floats(inputs.query(head, first + r), to),
            );
            attention_weights(simd, &tile, &keys, a, &mut w);
            let to = &mut out[first * group * dim..];
            mix.write(
                simd,
                &tile,
                &mut w,
                #[inline(always)]
                |r, f, x| to[r * group * dim + member * dim + f] = x,
            );
        }
    }
    out
}

/// softmax(q·kᵀ/√d) of a tile into `w.scores`, each row over its own past, zero beyond it.
#[inline(always)]
fn attention_weights<S: Simd>(simd: S, tile: &Tile, keys: &Laid<GROUP>, a: &Attention<'_>, w: &mut Workspace) {
    let root = (a.head_dim as f64).sqrt() as f32;
    let order = order(a.query, a.key, w.queries.range().leaves_f32(keys.range()));
    let seen = tile.last + 1;
    for group in 0..seen.div_ceil(GROUP) {
        let mut totals: Totals = [[0.0; GROUP]; TILE];
        multiply(simd, w.queries.side(0), keys.side(group), order, 0..tile.rows, &mut totals);
        for (row, totals) in w.scores.chunks_exact_mut(w.stride).zip(&totals[..tile.rows]) {
            for (to, &total) in row[group * GROUP..][..GROUP].iter_mut().zip(totals) {
                *to = rounded(rounded(total) / root);
            }
        }
    }
    for (r, row) in w.scores.chunks_exact_mut(w.stride).take(tile.rows).enumerate() {
        let past = tile.first + r + 1;
        softmax(row, past);
        row[past..seen].fill(0.0);
    }
}

/// The product of attention weights and values.
struct Mix<'a> {
    inputs: &'a Inputs<'a>,
    values: &'a Laid<GROUP>,
    finite: bool,
    plain: bool,
}

impl Mix<'_> {
    /// Gives P·V of a tile, rounded to bf16, to `put(row, feature, value)`.
    #[inline(always)]
    fn write<S: Simd>(&self, simd: S, tile: &Tile, w: &mut Workspace, mut put: impl FnMut(usize, usize, bf16)) {
        let a = self.inputs.a;
        let seen = tile.last + 1;
        let Workspace { scores, stride, weights, own_block, .. } = w;
        weights.lay(
            (tile.rows, seen),
            a.weights,
            self.plain,
            #[inline(always)]
            |r, to| {
                to.copy_from_slice(&scores[r * *stride..][..seen]);
            },
        );
        let order = order(a.weights, a.value, weights.range().leaves_f32(self.values.range()));
        let together = self.shared_tokens(tile, order.chunk);
        for group in 0..a.head_dim.div_ceil(GROUP) {
            let mut totals: Totals = [[0.0; GROUP]; TILE];
            let (x, v) = (weights.side(0), self.values.side(group));
            multiply(simd, x.range(0, together), v.range(0, together), order, 0..tile.rows, &mut totals);
            for row in 0..tile.rows {
                let query = Query { position: tile.first + row, row, from: together, order };
                self.finish_row(simd, (x, group), query, own_block, &mut totals);
                let features = group * GROUP..a.head_dim.min((group + 1) * GROUP);
                for (f, &total) in features.zip(&totals[row]) {
                    put(row, f, round(total));
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

    /// Adds the tokens from `query.from` on up to the query's own, for one row.
    #[inline(always)]
    fn finish_row<S: Simd>(
        &self,
        simd: S,
        (x, group): (Side<'_, TILE>, usize),
        query: Query,
        own_block: &mut Laid<GROUP>,
        totals: &mut Totals,
    ) {
        let (a, Query { position, row, from, order }) = (self.inputs.a, query);
        let seen = position + 1;
        if from >= seen {
            return;
        }
        // With causal blocks, whole blocks are what they are in the sequence; the last, short one is the query's own.
        let own = match a.value {
            Some(format) if a.causal_value_blocks => (seen / format.block_size * format.block_size).max(from),
            _ => seen,
        };
        multiply(simd, x.range(from, own), self.values.side(group).range(from, own), order, row..row + 1, totals);
        if own < seen {
            let features = GROUP.min(a.head_dim - group * GROUP);
            own_block.lay(
                (features, seen - own),
                a.value,
                false,
                #[inline(always)]
                |f, to| {
                    let feature = group * GROUP + f;
                    to.iter_mut().enumerate().for_each(|(t, to)| *to = float(self.inputs.value(own + t)[feature]));
                },
            );
            // The scales of this block are not in the range that was looked at.
            let order = Order { wide: true, ..order };
            multiply(simd, x.range(own, seen), own_block.side(0), order, row..row + 1, totals);
        }
    }
}

/// One query of a tile.
#[derive(Clone, Copy)]
struct Query {
    /// Its position in the sequence.
    position: usize,
    /// Its row in the tile.
    row: usize,
    /// The tokens already added.
    from: usize,
    order: Order,
}
