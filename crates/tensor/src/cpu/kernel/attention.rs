//! Attention, a tile of queries of one key/value head at a time; scores exist for that tile only.

mod columns;
mod mix;
mod queries;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::cache::{Cache, Head, Values};
use super::extent::{Extent, ratio};
use super::linear::FEW;
use super::operand::{Tile, Uses, step_of, write_pairs};
use super::product::{HALF, Order, Totals, multiply, multiply_tiles};
use super::quantize::Quantizer;
use super::scores::{Root, Straight};
use super::sides::{PANEL, STEP, TILE, WPanel, XTile};
use super::softmax::{Weights, softmax};
use crate::cpu::simd::tiles::{Configured, Tiles};
use crate::cpu::simd::{Isa, LANES, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;
use crate::spare::{Reusable, Spare, capacity};
use crate::{Attention, BlockFormat, Matrix};
use columns::Columns;
use mix::{Mix, OwnBlock};
use queries::Queries;

/// Scores that a task of many has.
const TASK_SCORES: usize = 16 << 10;
/// Scores that are worth handing to another thread, which waits for work while a pass runs.
const FEW_SCORES: usize = 1 << 10;

/// Appends the rows `sequences[i]` to `caches[i]`.
pub(in crate::cpu) fn append(isa: Isa, caches: &mut [&mut Cache], k: &Matrix, v: &Matrix, sequences: &[Range<usize>]) {
    let mut heads = Vec::new();
    for (cache, rows) in caches.iter_mut().zip(sequences) {
        let (dim, first) = (cache.layout.head_dim, cache.tokens);
        assert_eq!(k.columns(), cache.layout.heads * dim, "keys of the cache's heads");
        assert_eq!(v.columns(), cache.layout.heads * dim, "values of the cache's heads");
        cache.tokens += rows.len();
        heads.extend(cache.heads.iter_mut().enumerate().map(|(h, head)| (head, h * dim..(h + 1) * dim, first, rows)));
    }
    let least = (8192 * sequences.len() / (k.values().len() / heads.len().max(1) * sequences.len()).max(1)).max(1);
    heads.into_par_iter().with_min_len(least).for_each(|(head, columns, first, rows)| {
        dispatch!(isa, simd => {
            head.append(
                simd,
                first,
                rows.len(),
                #[inline(always)] |i| &k.row(rows.start + i)[columns.clone()],
                #[inline(always)] |i| &v.row(rows.start + i)[columns.clone()],
            );
        });
    });
}

pub(in crate::cpu) fn attention(
    isa: Isa,
    q: &Matrix,
    caches: &[&Cache],
    sequences: &[Range<usize>],
    a: &Attention,
) -> Matrix {
    let layout = a.keys_values;
    let (group, dim) = (a.heads / layout.heads, layout.head_dim);
    assert_eq!(q.columns(), a.heads * dim, "queries of the heads");
    let root = Root::of(dim);
    let [query, weights] = [a.query, a.weights].map(|format| format.map(Quantizer::new));
    let mut tasks = Vec::new();
    for (cache, rows) in caches.iter().zip(sequences) {
        assert!(
            cache.layout == layout && cache.tokens >= rows.len(),
            "caches of this layout, the queries' tokens in them"
        );
        let tokens = (TASK_SCORES / (group * cache.tokens)).next_multiple_of(TILE);
        for kv_head in 0..layout.heads {
            for start in rows.clone().step_by(tokens) {
                let some = start..rows.end.min(start + tokens);
                let position = cache.tokens - (rows.end - start);
                tasks.push(Task {
                    q,
                    a,
                    root,
                    quantizers: [query.as_ref(), weights.as_ref()],
                    head: &cache.heads[kv_head],
                    kv_head,
                    rows: some,
                    position,
                    tokens: cache.tokens,
                });
            }
        }
    }
    let work: usize = tasks.iter().map(|t| t.rows.len() * t.tokens).sum();
    let least = (FEW_SCORES * tasks.len() / (group * work).max(1)).max(1);
    let tiles = isa.tiles();
    // The results of one task after those of another: in a row of the matrix are those of several.
    let mut results = Matrix::reused(q.rows(), q.columns());
    let mut rest = results.values_mut();
    let parts: Vec<&mut [bf16]> = tasks
        .iter()
        .map(|task| rest.split_off_mut(..task.rows.len() * group * dim).expect("every query has one result"))
        .collect();
    assert!(rest.is_empty(), "every query belongs to a sequence");
    tasks.par_iter().zip(parts).with_min_len(least).for_each_init(
        || SPARE.borrow(),
        |workspace, (task, out)| dispatch!(isa, simd => task.run(simd, tiles, workspace, out)),
    );
    let mut out = Matrix::reused(q.rows(), q.columns());
    let mut results = results.values().chunks_exact(group * dim);
    for task in tasks {
        for (i, result) in task.rows.zip(&mut results) {
            copy(result, &mut out.row_mut(i)[task.kv_head * group * dim..][..group * dim]);
        }
    }
    out
}

/// Copies a result. Those of small heads are not worth a call.
#[inline(always)]
fn copy(from: &[bf16], to: &mut [bf16]) {
    if !of_fixed_length::<PANEL>(from, to) && !of_fixed_length::<{ PANEL / 2 }>(from, to) {
        to.copy_from_slice(from);
    }
}

/// Copies where there are so many values.
#[inline(always)]
fn of_fixed_length<const N: usize>(from: &[bf16], to: &mut [bf16]) -> bool {
    match (<&[bf16; N]>::try_from(from), <&mut [bf16; N]>::try_from(to)) {
        (Ok(from), Ok(to)) => *to = *from,
        _ => return false,
    }
    true
}

/// Consecutive queries, all query heads of one key/value head.
struct Task<'a> {
    q: &'a Matrix,
    a: &'a Attention,
    root: Root,
    /// Of queries and of attention weights.
    quantizers: [Option<&'a Quantizer>; 2],
    head: &'a Head,
    kv_head: usize,
    /// Rows of the queries.
    rows: Range<usize>,
    /// Position of the first of them in its sequence.
    position: usize,
    /// Tokens in the cache.
    tokens: usize,
}

/// Buffers that one tile after another uses.
#[derive(Default)]
struct Workspace {
    queries: Tile,
    /// Scores, then their exponentials: a row of `stride` per query.
    scores: Vec<f32>,
    stride: usize,
    /// What a query's exponentials are multiplied by.
    reciprocals: [f32; TILE],
    weights: Tile,
    /// Of the panels that are multiplied.
    one: Totals<1>,
    two: Totals<2>,
    columns: Columns,
}

/// At most what some threads need for a context of 32,768 tokens: with a long one memory is so large that the system would
/// take it back between two calls.
static SPARE: Spare<Workspace> = Spare::new(16 << 20);

impl Reusable for Workspace {
    fn capacity(&self) -> usize {
        let Workspace { queries, scores, weights, columns, .. } = self;
        queries.capacity() + capacity(scores) + weights.capacity() + columns.capacity()
    }
}

impl Task<'_> {
    fn group(&self) -> usize {
        self.a.heads / self.a.keys_values.heads
    }

    /// Writes the result for every query: `[token][head of the group][head_dim]`.
    #[inline(always)]
    fn run<S: Simd>(&self, simd: S, tiles: Option<Tiles>, w: &mut Workspace, out: &mut [bf16]) {
        let (dim, group) = (self.a.keys_values.head_dim, self.group());
        let count = self.rows.len() * group;
        let configured = tiles.map(Tiles::configure);
        let columns = self.columns::<S>().filter(|_| count > HALF);
        let mut begun = 0;
        if let Some(root) = columns {
            simd.vectorize(
                #[inline(always)]
                || w.columns.lay(simd, self.head, self.position + self.rows.len(), dim),
            );
            // Whole tiles are of one head each: what a tile takes depends on how far the scores of any of its queries reach, and those
            // of a head's are much alike.
            begun = self.rows.len() / TILE * TILE;
            for first in (0..begun).step_by(TILE) {
                for head in 0..group {
                    let queries = Queries::of_head(self.position + first, head);
                    let out = &mut out[(first * group + head) * dim..];
                    self.tile_of_columns(simd, &queries, root, &mut w.columns, (out, group * dim));
                }
            }
        }
        w.stride = (self.position + self.rows.len()).next_multiple_of(2 * PANEL);
        w.scores.resize(w.scores.len().max(TILE.min(count) * w.stride), 0.0);
        for (tile, out) in out[begun * group * dim..].chunks_mut(TILE * dim).enumerate() {
            let first = begun * group + tile * TILE;
            let rows = TILE.min(count - first);
            let queries = Queries::new(rows, (self.position + first / group, first % group), group);
            if let Some(root) = columns.filter(|_| rows > HALF) {
                self.tile_of_columns(simd, &queries, root, &mut w.columns, (out, dim));
                continue;
            }
            simd.vectorize(
                #[inline(always)]
                || self.queries(simd, configured.as_ref(), &queries, w),
            );
            simd.vectorize(
                #[inline(always)]
                || self.attention_weights(simd, configured.as_ref(), &queries, w),
            );
            simd.vectorize(
                #[inline(always)]
                || self.mix(simd, configured.as_ref(), &queries, w, out),
            );
        }
    }

    /// A tile whose queries are lanes, given the reciprocal of the root of the features; results go into rows that are so far apart.
    #[inline(always)]
    fn tile_of_columns<S: Simd>(
        &self,
        simd: S,
        queries: &Queries,
        root: f32,
        columns: &mut Columns,
        out: (&mut [bf16], usize),
    ) {
        simd.vectorize(
            #[inline(always)]
            || match self.a.keys_values.head_dim {
                8 => columns.tile::<S, 8>(simd, (self, queries), root, out),
                _ => columns.tile::<S, 16>(simd, (self, queries), root, out),
            },
        );
    }

    /// If queries of many rows are to be lanes, the reciprocal of the root of the features: where their heads are small, registers
    /// hold the results, nothing is quantized and zero weights do no harm.
    fn columns<S: Simd>(&self) -> Option<f32> {
        let (a, Head { keys, values, .. }) = (self.a, self.head);
        let plain = [a.query, keys.format, values.format, a.weights].iter().all(Option::is_none);
        let small = S::ROWS == HALF && [8, 16].contains(&keys.dim);
        self.root.reciprocal.filter(|_| plain && small && values.finite)
    }

    /// A query of a tile.
    #[inline(always)]
    fn query(&self, queries: &Queries, r: usize) -> &[bf16] {
        let (dim, group) = (self.a.keys_values.head_dim, self.group());
        let head = self.kv_head * group + queries.heads[r];
        let row = self.rows.start + (queries.positions[r] - self.position);
        &self.q.row(row)[head * dim..][..dim]
    }

    /// The queries of a tile, quantized.
    #[inline(always)]
    fn queries<S: Simd>(&self, simd: S, configured: Option<&Configured>, queries: &Queries, w: &mut Workspace) {
        let dim = self.a.keys_values.head_dim;
        w.queries.fill(
            simd,
            ([queries.rows, room(configured, queries.rows)], dim),
            (self.quantizers[0], uses_in_tiles(configured, self.head.keys.format)),
            #[inline(always)]
            |r, step, to: &mut _| write_pairs(simd, step_of(self.query(queries, r), step), to),
        );
    }

    /// softmax(q·kᵀ/√d) of a tile, each row over its own past, zero beyond it: its exponentials into `w.scores`, and what makes
    /// weights of them into `w.reciprocals`.
    #[inline(always)]
    fn attention_weights<S: Simd>(
        &self,
        simd: S,
        configured: Option<&Configured>,
        queries: &Queries,
        w: &mut Workspace,
    ) {
        let keys = &self.head.keys;
        let x = w.queries.view(self.a.query);
        let product = Product::new(configured, &x, keys.extent, [self.a.query, keys.format]);
        let seen = queries.last() + 1;
        let k = product.even(keys.dim);
        let panels = seen.div_ceil(PANEL);
        if let Some(straight) = product.straight(k, self.root) {
            for first in (0..panels).step_by(2) {
                // The last panel may stand alone: then it is computed twice.
                let both = [keys.panel(first), keys.panel((first + 1).min(panels - 1))];
                straight.scores(simd, &both, queries.rows, (&mut w.scores[first * PANEL..], w.stride));
            }
        } else {
            let (one, two) = (&mut w.one, &mut w.two);
            for first in (0..panels).step_by(2) {
                let rows = w.scores.chunks_exact_mut(w.stride).take(queries.rows);
                let at = first * PANEL;
                if first + 1 < panels {
                    product.of(simd, &[keys.panel(first), keys.panel(first + 1)], (0..k, queries.rows), two);
                    rows.zip(&two.0).for_each(|(row, totals)| self.root.scores(totals.as_flattened(), &mut row[at..]));
                } else {
                    product.of(simd, &[keys.panel(first)], (0..k, queries.rows), one);
                    rows.zip(&one.0).for_each(|(row, totals)| self.root.scores(totals.as_flattened(), &mut row[at..]));
                }
            }
        }
        let pasts = queries.positions.map(
            #[inline(always)]
            |position| position + 1,
        );
        w.reciprocals = softmax(simd, &mut w.scores, w.stride, &pasts[..queries.rows]);
        for (row, past) in w.scores.chunks_exact_mut(w.stride).zip(&pasts[..queries.rows]) {
            // The last row's past is less than sixteen tokens longer: to the end of its step there are two vectors at most, which
            // are not worth the call that a loop would become.
            let (vectors, first) = (row[..seen.next_multiple_of(STEP)].as_chunks_mut().0, past.div_ceil(LANES));
            for vector in [first, first + 1] {
                if let Some(vector) = vectors.get_mut(vector) {
                    *vector = [0.0; LANES];
                }
            }
        }
    }

    /// P·V of a tile, rounded to bf16.
    #[inline(always)]
    fn mix<S: Simd>(
        &self,
        simd: S,
        configured: Option<&Configured>,
        queries: &Queries,
        w: &mut Workspace,
        out: &mut [bf16],
    ) {
        let (dim, values) = (self.a.keys_values.head_dim, &self.head.values);
        let seen = queries.last() + 1;
        let Workspace { scores, stride, reciprocals, weights, one, two, .. } = w;
        let plain = self.a.weights.is_none() && values.format.is_none();
        weights.fill(
            simd,
            ([queries.rows, room(configured, queries.rows)], seen),
            (self.quantizers[1], uses_in_tiles(configured, values.format)),
            // They are zero past their token, up to the end of its step.
            Weights { exponentials: scores, stride: *stride, reciprocals, flush: plain },
        );
        let x = weights.view(self.a.weights);
        let product = Product::new(configured, &x, values.extent, [self.a.weights, values.format]);
        let together = self.shared_tokens(queries, product.order.chunk);
        let own = self.own_blocks(simd, queries, together);
        let panels = dim.div_ceil(PANEL);
        let mix = Mix { product: &product, values, own: &own, together, rows: queries.rows };
        for first in (0..panels).step_by(2) {
            let at = first * PANEL;
            if first + 1 < panels {
                mix.panels(simd, [first, first + 1], two, (out, dim), at..dim.min(at + 2 * PANEL));
            } else {
                mix.panels(simd, [first], one, (out, dim), at..dim);
            }
        }
    }

    /// How many tokens, from the first on, the whole tile may take in one product.
    ///
    /// Weights of zero make tokens past a query's own harmless, but for two cases: an infinity or NaN among the
    /// values, and causal value blocks, where the block that holds the query's token differs from token to token.
    fn shared_tokens(&self, queries: &Queries, chunk: usize) -> usize {
        let [first, last] = [queries.positions[0], queries.last()];
        let same = first == last;
        match (self.head.values.finite, self.causal_format()) {
            (true, None) => last + 1,
            // The newest token's own block is that of the cache.
            (_, Some(_)) if same && last + 1 == self.tokens => last + 1,
            (true, Some(format)) => {
                let block = format.block_size.max(chunk);
                (first + 1) / block * block
            }
            (false, None) if same => last + 1,
            (false, _) => 0,
        }
    }

    /// The format of the values, if every token sees its own block only as far as itself.
    fn causal_format(&self) -> Option<BlockFormat> {
        self.head.values.format.filter(|_| self.a.causal_value_blocks)
    }

    /// What is left of each token's past after the tokens that all share.
    #[inline(always)]
    fn own_blocks<S: Simd>(&self, simd: S, queries: &Queries, together: usize) -> Vec<OwnBlock> {
        let mut blocks = Vec::new();
        let mut row = 0;
        while row < queries.rows {
            let token = queries.positions[row];
            let rows = row..(row..queries.rows).find(|&r| queries.positions[r] != token).unwrap_or(queries.rows);
            row = rows.end;
            let end = token + 1;
            if end <= together {
                continue;
            }
            // Whole blocks, and the newest, are what they are in the cache.
            let own = self.causal_format().filter(|_| end < self.tokens);
            let start = own.map_or(end, |format| (end / format.block_size * format.block_size).max(together));
            let block = own.filter(|_| start < end).map(|format| {
                let mut block = Values::of_block(format, self.a.keys_values.head_dim, start);
                block.lay(
                    simd,
                    start..end,
                    #[inline(always)]
                    |token| self.head.recent(token),
                );
                block
            });
            blocks.push(OwnBlock { rows, start, end, block });
        }
        blocks
    }
}

/// Rows that operands have room for: all of a tile for tiles, else those that complete a few.
fn room(configured: Option<&Configured>, rows: usize) -> usize {
    if configured.is_some() && rows > FEW { TILE } else { rows.next_power_of_two() }
}

/// What products with keys or values need: norms, where tiles may serve.
fn uses_in_tiles(configured: Option<&Configured>, format: Option<BlockFormat>) -> Uses {
    Uses { norms_beside: configured.and(format).map_or(0.0, |f| ratio(f.element)), ..Uses::default() }
}

/// One of the two products of attention, for a tile.
struct Product<'a> {
    x: &'a XTile<'a>,
    order: Order,
    /// Tiles, where they may serve.
    configured: Option<&'a Configured>,
}

impl<'a> Product<'a> {
    fn new(
        configured: Option<&'a Configured>,
        x: &'a XTile<'a>,
        w: Extent,
        formats: [Option<BlockFormat>; 2],
    ) -> Product<'a> {
        let chunk = formats.into_iter().flatten().map(|f| f.block_size).min().unwrap_or(PLAIN_CHUNK);
        let order = Order::new(chunk, x.extent, w);
        let blocks = formats.iter().all(|f| f.is_some_and(|f| f.block_size == STEP));
        Product { x, order, configured: configured.filter(|_| blocks && x.dequantized && order.is_fast()) }
    }

    /// `end`, or one more where that completes a pair of the same chunk.
    #[inline(always)]
    fn even(&self, end: usize) -> usize {
        if self.order.chunk.is_multiple_of(2) { end.next_multiple_of(2) } else { end }
    }

    /// The way of scores from first to last in registers, where products of `k` elements may take it.
    fn straight(&self, k: usize, root: Root) -> Option<Straight<'a>> {
        let Order { chunk, .. } = self.order;
        let straight =
            self.configured.is_none() && self.order.is_fast() && k.is_multiple_of(2) && chunk.is_multiple_of(2);
        let reciprocal = root.reciprocal.filter(|_| straight)?;
        Some(Straight { x: self.x, k, chunk, reciprocal })
    }

    /// The totals over `span`, which begins with 0, in place of what was there.
    #[inline(always)]
    fn of<S: Simd, const P: usize>(
        &self,
        simd: S,
        w: &[WPanel<'_>; P],
        (span, rows): (Range<usize>, usize),
        totals: &mut Totals<P>,
    ) {
        let mut rest = 0;
        if let Some(configured) = self.configured.filter(|_| rows > FEW) {
            rest = span.end / STEP * STEP;
            totals.0[rows..].fill([[0.0; PANEL]; P]);
            multiply_tiles((simd, configured), (self.x, &[]), w, 0..span.end / STEP, totals);
        }
        multiply(simd, self.x, w, self.order, (rest..span.end, 0..rows), totals);
    }
}
