//! x · wᵀ + bias over all tiles of rows and panels of outputs, for several weights at once.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bytes::multiply_bytes;
use super::operand::Operand;
use super::panels::{Panels, Scratch};
use super::product::{Order, Totals, multiply, multiply_tiles};
use super::sides::{PANEL, STEP, TILE, WPanel, XTile};
use super::stream;
use crate::cpu::simd::tiles::{Configured, Tiles};
use crate::cpu::simd::{IntegerProducts, Isa, Simd, dispatch, integer_products};
use crate::reference::PLAIN_CHUNK;
use crate::{Linear, Matrix};

/// The most rows for which codes are decoded on the way into the product instead of once beforehand.
pub(super) const FEW: usize = 4;
/// The largest ratio of a weight format's magnitudes for which tiles pay: beyond it hardly a sum is exact.
pub(super) const TILES_RATIO: f32 = 512.0;
/// Multiplications that are worth handing to another thread.
const TASK: usize = 200_000;
/// Pairs of panels that share a walk over the rows, ...
const PAIRS: usize = 8;
/// ... and tiles of rows that share decoded weights.
const TILES: usize = 32;
/// Elements along k that are decoded at a time: what lies between two uses then fits a second-level cache.
const ELEMENTS: usize = 2048;
/// The same for matrix tiles, which take them in so fast that a pair of panels has to stay in a first-level cache while
/// all rows pass by.
const TILE_ELEMENTS: usize = 256;

pub(in crate::cpu) fn linear<const N: usize>(isa: Isa, x: &Operand, weights: [Linear<'_, Panels>; N]) -> [Matrix; N] {
    let products = weights.map(|weight| Product::new(isa, x, weight));
    if products.iter().all(Product::can_be_streamed) {
        return stream::linear(isa, &products);
    }
    // As many strips as give every thread some, if that means less than whole ones.
    let all: usize = products.iter().map(|p| p.w.count()).sum();
    let pairs = (all / (8 * rayon::current_num_threads())).clamp(1, PAIRS);
    let mut out = products.each_ref().map(|p| Matrix::zeros(p.rows, p.w.outputs));
    let tasks: Vec<(&Product<'_>, usize, Strip<'_>)> = products
        .iter()
        .zip(&mut out)
        .flat_map(|(product, out)| {
            let strips = strips(out, 2 * PANEL * pairs).into_iter().enumerate();
            strips.map(move |(i, strip)| (product, i * pairs, strip))
        })
        .collect();
    let least = (TASK / (x.rows * x.k * 2 * PANEL * pairs).max(1)).max(1);
    tasks.into_par_iter().with_min_len(least).for_each_init(Room::default, |room, (product, first, strip)| {
        let last = product.w.count().div_ceil(2).min(first + pairs);
        product.strip(isa, first..last, room, strip);
    });
    out
}

/// Some columns of every row of the result.
type Strip<'a> = Vec<&'a mut [bf16]>;

/// Cuts a matrix into strips of some columns.
fn strips(matrix: &mut Matrix, width: usize) -> Vec<Strip<'_>> {
    let (rows, columns) = (matrix.rows(), matrix.columns());
    let mut strips: Vec<Strip<'_>> = (0..columns.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
    for row in matrix.values_mut().chunks_mut(columns) {
        strips.iter_mut().zip(row.chunks_mut(width)).for_each(|(strip, row)| strip.push(row));
    }
    strips
}

/// What a thread works in.
#[derive(Default)]
struct Room {
    decoded: [[Scratch; 2]; PAIRS],
    /// `[pair of panels][tile]`.
    totals: Vec<Totals<2>>,
}

/// One weight's product.
pub(super) struct Product<'a> {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) chunk: usize,
    pub(super) tiles: Vec<(XTile<'a>, Order)>,
    pub(super) w: &'a Panels,
    bias: Option<&'a [bf16]>,
    /// Where the sums of most rows are exact.
    exact: Option<Exact>,
}

/// What products of many rows go through that adds in an order of its own.
#[derive(Clone, Copy)]
enum Exact {
    /// Matrix tiles; rows whose sums may not be exact go another way.
    Tiles(Tiles),
    /// Integers of 8 bits.
    Bytes,
}

impl<'a> Product<'a> {
    fn new(isa: Isa, x: &'a Operand, Linear { weight: w, bias }: Linear<'a, Panels>) -> Product<'a> {
        assert_eq!(x.k, w.k, "operand and weight have the same inner length");
        assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
        let chunk = [x.block_size(), w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
        let tiles: Vec<_> = x.tiles().map(|tile| (tile, Order::new(chunk, tile.extent, w.extent))).collect();
        let ratio = w.as_packed().map_or(f32::INFINITY, |p| p.ratio);
        let blocks = [x.block_size(), w.block_size()] == [Some(STEP); 2] && x.rows > FEW;
        let tiles_serve = isa.tiles().filter(|_| ratio <= TILES_RATIO && blocks).map(Exact::Tiles);
        let bytes = w.as_packed().is_some_and(|p| p.table.bytes.is_some())
            && tiles.iter().all(|(x, order)| !x.bytes.is_empty() && order.is_fast());
        let exact = tiles_serve.or((blocks && bytes).then_some(Exact::Bytes));
        Product { rows: x.rows, k: x.k, chunk, tiles, w, bias, exact }
    }

    fn can_be_streamed(&self) -> bool {
        self.rows <= FEW && self.chunk.is_multiple_of(STEP) && self.tiles[0].1.is_fast()
    }

    /// Some pairs of panels by all rows.
    fn strip(&self, isa: Isa, pairs: Range<usize>, room: &mut Room, strip: Strip<'_>) {
        match self.exact {
            Some(Exact::Bytes) => {
                let simd = integer_products(isa).expect("bytes are only taken where there are products of integers");
                simd.vectorize(
                    #[inline(always)]
                    || {
                        self.strip_by(
                            simd,
                            ELEMENTS,
                            pairs,
                            room,
                            strip,
                            #[inline(always)]
                            |tiles, span, room| {
                                self.add_bytes(simd, tiles, span, room);
                            },
                        );
                    },
                );
            }
            exact => {
                let configured = if let Some(Exact::Tiles(tiles)) = exact { Some(tiles.configure()) } else { None };
                let elements = if configured.is_some() { TILE_ELEMENTS } else { ELEMENTS };
                dispatch!(isa, simd => {
                    self.strip_by(simd, elements, pairs, room, strip, #[inline(always)] |tiles, span, room| {
                        self.add(simd, configured.as_ref(), tiles, span, room);
                    });
                });
            }
        }
    }

    /// Some pairs of panels by all rows; `add` adds the products of some pairs and elements with some tiles, which have so many
    /// rows, to their totals.
    #[inline(always)]
    fn strip_by<S: Simd>(
        &self,
        simd: S,
        elements: usize,
        pairs: Range<usize>,
        room: &mut Room,
        mut strip: Strip<'_>,
        add: impl Fn((&[(XTile<'_>, Order)], usize), (Range<usize>, Range<usize>), &mut Room),
    ) {
        for (block, tiles) in self.tiles.chunks(TILES).enumerate() {
            let rows = self.rows - block * TILES * TILE;
            room.totals.resize(tiles.len() * pairs.len(), Totals::ZERO);
            // Whole chunks and whole steps.
            let unit = if self.chunk.is_multiple_of(STEP) { self.chunk } else { self.chunk * STEP };
            for start in (0..self.k).step_by((elements / unit).max(1) * unit) {
                let span = start..self.k.min(start + (elements / unit).max(1) * unit);
                add((tiles, rows), (pairs.clone(), span), room);
            }
            let biases: Vec<_> = pairs.clone().map(|pair| [0, 1].map(|p| self.biases(2 * pair + p))).collect();
            for (r, row) in strip[block * TILES * TILE..].iter_mut().take(TILES * TILE).enumerate() {
                for ((pair, to), biases) in row.chunks_mut(2 * PANEL).enumerate().zip(&biases) {
                    let totals = &room.totals[pair * tiles.len() + r / TILE].0[r % TILE];
                    if to.len() == 2 * PANEL {
                        finish(simd, totals, biases, to.as_chunks_mut().0);
                    } else {
                        let mut rounded = [bf16::ZERO; 2 * PANEL];
                        finish(simd, totals, biases, rounded.as_chunks_mut().0);
                        to.copy_from_slice(&rounded[..to.len()]);
                    }
                }
            }
        }
    }

    /// Both panels of a pair. The last panel may stand alone: then it is computed twice.
    fn both(&self, pair: usize) -> [usize; 2] {
        [2 * pair, (2 * pair + 1).min(self.w.count() - 1)]
    }

    /// Adds the products of elements `span` of some tiles and pairs of panels to their totals, which begin with 0 where
    /// the span does.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        simd: S,
        configured: Option<&Configured>,
        (tiles, rows): (&[(XTile<'_>, Order)], usize),
        (pairs, span): (Range<usize>, Range<usize>),
        Room { decoded, totals }: &mut Room,
    ) {
        let steps = span.start / STEP..span.end.div_ceil(STEP);
        let dequantized = configured.is_none() && self.w.can_be_dequantized();
        let mut w = Vec::with_capacity(pairs.len());
        for (pair, [first, second]) in pairs.clone().zip(decoded) {
            let both = self.both(pair);
            let first = self.w.panel(simd, (both[0], dequantized), steps.clone(), first);
            w.push([first, self.w.panel(simd, (both[1], dequantized), steps.clone(), second)]);
        }
        // What is small enough for a first-level cache goes on the inside: a tile of rows, or with little of k a pair of
        // panels.
        if let Some(configured) = configured {
            for (w, totals) in w.iter().zip(totals.chunks_mut(tiles.len())) {
                for (t, (x, order)) in tiles.iter().enumerate() {
                    if !(order.is_fast() && x.dequantized) {
                        self.add_tile(simd, (&tiles[t], rows - t * TILE), w, span.clone(), &mut totals[t]);
                        continue;
                    }
                    let next = tiles.get(t + 1).and_then(|(x, _)| x.steps().get(steps.clone())).unwrap_or_default();
                    for panel in totals.get(t + 1).map_or(&[][..], |totals| totals.0.as_flattened()) {
                        simd.fetch(panel);
                    }
                    multiply_tiles((simd, configured), (x, next), w, steps.clone(), &mut totals[t]);
                }
            }
        } else {
            for (t, tile) in tiles.iter().enumerate() {
                for (w, totals) in w.iter().zip(totals.chunks_mut(tiles.len())) {
                    self.add_tile(simd, (tile, rows - t * TILE), w, span.clone(), &mut totals[t]);
                }
            }
        }
    }

    /// The same through bytes.
    #[inline(always)]
    fn add_bytes<S: IntegerProducts>(
        &self,
        simd: S,
        (tiles, rows): (&[(XTile<'_>, Order)], usize),
        (pairs, span): (Range<usize>, Range<usize>),
        Room { decoded, totals }: &mut Room,
    ) {
        let packed = self.w.as_packed().expect("bytes are taken of packed weights");
        let steps = span.start / STEP..span.end.div_ceil(STEP);
        let mut w = Vec::with_capacity(pairs.len());
        for (pair, [first, second]) in pairs.zip(decoded) {
            let both = self.both(pair);
            let first = packed.byte_panel(simd, both[0], steps.clone(), first);
            w.push([first, packed.byte_panel(simd, both[1], steps.clone(), second)]);
        }
        for (t, (x, _)) in tiles.iter().enumerate() {
            for (w, totals) in w.iter().zip(totals.chunks_mut(tiles.len())) {
                if span.start == 0 {
                    totals[t] = Totals::ZERO;
                }
                multiply_bytes(simd, (x, rows - t * TILE), w, steps.clone(), &mut totals[t]);
            }
        }
    }

    /// The same of one tile, of which there are `rows`, and one pair.
    #[inline(always)]
    fn add_tile<S: Simd>(
        &self,
        simd: S,
        ((x, order), rows): (&(XTile<'_>, Order), usize),
        w: &[WPanel<'_>; 2],
        span: Range<usize>,
        totals: &mut Totals<2>,
    ) {
        if span.start == 0 {
            *totals = Totals::ZERO;
        }
        let end = if self.chunk.is_multiple_of(2) { span.end.next_multiple_of(2) } else { span.end };
        multiply(simd, x, w, *order, (span.start..end, 0..TILE.min(rows)), totals);
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
pub(super) fn finish<S: Simd>(simd: S, totals: &[[f32; PANEL]], biases: &[[f32; PANEL]], to: &mut [[bf16; PANEL]]) {
    for ((to, totals), biases) in to.iter_mut().zip(totals).zip(biases) {
        simd.round(simd.add(simd.load(totals), simd.load(biases)), to);
    }
}
