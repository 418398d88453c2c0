//! x · wᵀ + bias over all tiles of rows and panels of outputs, for several weights at once.

use half::bf16;
use rayon::prelude::*;

use super::bf16::round;
use super::operand::Operand;
use super::panels::{Panels, Scratch};
use super::product::{Order, Totals, multiply, multiply_tiles};
use super::sides::{PANEL, STEP, TILE, WPanel, XTile};
use super::stream;
use crate::cpu::simd::tiles::{Configured, Tiles};
use crate::cpu::simd::{Isa, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;
use crate::{Linear, Matrix};

/// The most rows for which codes are decoded on the way into the product instead of once beforehand.
pub(super) const FEW: usize = 4;
/// The largest ratio of a weight format's magnitudes for which tiles pay: beyond it hardly a sum is exact.
const TILES_RATIO: f32 = 4096.0;
/// Multiplications that are worth handing to another thread.
const TASK: usize = 200_000;

pub(in crate::cpu) fn linear<const N: usize>(isa: Isa, x: &Operand, weights: [Linear<'_, Panels>; N]) -> [Matrix; N] {
    let products = weights.map(|weight| Product::new(isa, x, weight));
    if products.iter().all(Product::can_be_streamed) {
        return stream::linear(isa, &products);
    }
    let pairs = |p: usize| (0..products[p].w.count().div_ceil(2)).map(move |pair| (p, pair));
    let tasks: Vec<(usize, usize)> = (0..N).flat_map(pairs).collect();
    let least = (TASK / (x.rows * x.k * 2 * PANEL).max(1)).max(1);
    let columns: Vec<Columns> = tasks
        .par_iter()
        .with_min_len(least)
        .map_init(Default::default, |scratch, &(p, pair)| products[p].pair(isa, pair, scratch))
        .collect();
    let mut columns = columns.as_slice();
    products.map(|product| {
        let (own, rest) = columns.split_at(product.w.count().div_ceil(2));
        columns = rest;
        join(x.rows, product.w.outputs, own)
    })
}

/// Two panels of the result: `[row][output]`.
type Columns = Vec<[bf16; 2 * PANEL]>;

/// Puts columns side by side.
fn join(rows: usize, outputs: usize, columns: &[Columns]) -> Matrix {
    let mut out = Matrix::zeros(rows, outputs);
    out.values_mut().par_chunks_mut(outputs).with_min_len((16384 / outputs).max(1)).enumerate().for_each(|(i, row)| {
        for (to, columns) in row.chunks_mut(2 * PANEL).zip(columns) {
            to.copy_from_slice(&columns[i][..to.len()]);
        }
    });
    out
}

/// One weight's product.
pub(super) struct Product<'a> {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) chunk: usize,
    pub(super) tiles: Vec<(XTile<'a>, Order)>,
    pub(super) w: &'a Panels,
    bias: Option<&'a [bf16]>,
    /// Matrix tiles, where the sums of most rows are exact.
    exact: Option<Tiles>,
}

impl<'a> Product<'a> {
    fn new(isa: Isa, x: &'a Operand, Linear { weight: w, bias }: Linear<'a, Panels>) -> Product<'a> {
        assert_eq!(x.k, w.k, "operand and weight have the same inner length");
        assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
        let chunk = [x.block_size(), w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
        let tiles: Vec<_> = x.tiles().map(|tile| (tile, Order::new(chunk, tile.extent, w.extent))).collect();
        let ratio = w.as_packed().map_or(f32::INFINITY, |p| p.ratio);
        let exact =
            isa.tiles().filter(|_| ratio <= TILES_RATIO && chunk == STEP && x.rows > FEW && x.block_size().is_some());
        Product { rows: x.rows, k: x.k, chunk, tiles, w, bias, exact }
    }

    fn can_be_streamed(&self) -> bool {
        self.rows <= FEW && self.chunk.is_multiple_of(STEP) && self.tiles[0].1.is_fast()
    }

    /// Two panels, decoded once and multiplied by all rows.
    fn pair(&self, isa: Isa, pair: usize, [first, second]: &mut [Scratch; 2]) -> Columns {
        let mut columns = vec![[bf16::ZERO; 2 * PANEL]; self.rows];
        let configured = self.exact.map(Tiles::configure);
        // The last panel may stand alone: then it is computed twice.
        let last = (2 * pair + 1).min(self.w.count() - 1);
        dispatch!(isa, simd => {
            let w = [self.w.panel(simd, 2 * pair, first), self.w.panel(simd, last, second)];
            self.columns(simd, configured.as_ref(), &w, pair, &mut columns);
        });
        columns
    }

    /// Two panels for every row: products, bias, rounding.
    #[inline(always)]
    fn columns<S: Simd>(
        &self,
        simd: S,
        configured: Option<&Configured>,
        w: &[WPanel<'_>; 2],
        pair: usize,
        columns: &mut [[bf16; 2 * PANEL]],
    ) {
        let biases = [self.biases(2 * pair), self.biases(2 * pair + 1)];
        let steps = self.k.div_ceil(STEP);
        for (tiles, columns) in self.tiles.chunks(2).zip(columns.chunks_mut(2 * TILE)) {
            let mut totals = [[[[0.0; PANEL]; 2]; TILE]; 2];
            match (configured, tiles) {
                (Some(c), [(a, o), (b, p)]) if o.is_fast() && p.is_fast() => {
                    multiply_tiles((simd, c), [a, b], w, 0..steps, &mut totals);
                }
                (Some(c), [(a, o)]) if o.is_fast() => {
                    let (one, _) = totals.split_at_mut(1);
                    let one: &mut [Totals<2>; 1] = one.first_chunk_mut().expect("one of two");
                    multiply_tiles((simd, c), [a], w, 0..steps, one);
                }
                _ => {
                    for (((tile, order), totals), rows) in tiles.iter().zip(&mut totals).zip(columns.chunks(TILE)) {
                        let k = if self.chunk.is_multiple_of(2) { self.k.next_multiple_of(2) } else { self.k };
                        multiply(simd, tile, w, *order, (0..k, 0..rows.len()), totals);
                    }
                }
            }
            for (row, totals) in columns.iter_mut().zip(totals.as_flattened()) {
                finish(totals, &biases, row.as_chunks_mut().0);
            }
        }
    }

    /// The biases of a panel; without any −0, which changes nothing, not even the sign of a zero.
    #[inline(always)]
    pub(super) fn biases(&self, panel: usize) -> [f32; PANEL] {
        let mut biases = [-0f32; PANEL];
        if let Some(bias) = self.bias.and_then(|b| b.get(panel * PANEL..)) {
            biases.iter_mut().zip(bias).for_each(|(to, b)| *to = b.to_f32());
        }
        biases
    }
}

/// Bias and rounding.
#[inline(always)]
pub(super) fn finish(totals: &[[f32; PANEL]], biases: &[[f32; PANEL]], to: &mut [[bf16; PANEL]]) {
    for ((to, totals), biases) in to.iter_mut().zip(totals).zip(biases) {
        for ((to, total), bias) in to.iter_mut().zip(totals).zip(biases) {
            *to = round(total + bias);
        }
    }
}
