//! x · wᵀ + bias over all tiles of rows and panels of outputs, for several weights at once.

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::bf16::copy;
use super::bytes::multiply_bytes;
use super::extent::{always_exact, quads_in_short};
use super::floats::{FloatRow, FloatTile, multiply_floats, take_apart};
use super::operand::Operand;
use super::panels::{Panels, Scratch};
use super::product::{Order, Totals, multiply, multiply_tiles};
use super::sides::{PANEL, STEP, TILE, WPanel, XTile};
use super::stream;
use super::words::multiply_words;
use crate::cpu::simd::tiles::{Configured, Tiles};
use crate::cpu::simd::{IntegerProducts, Isa, Simd, dispatch, dispatch_integers};
use crate::reference::PLAIN_CHUNK;
use crate::spare::{Reusable, Spare, capacity};
use crate::{Linear, Matrix};

/// The most rows for which codes are decoded on the way into the product instead of once beforehand.
pub(super) const FEW: usize = 4;
/// The largest ratio of a weight format's magnitudes for which tiles pay: beyond it hardly a sum is exact.
pub(super) const TILES_RATIO: f32 = 512.0;
/// Multiplications that are worth handing to another thread.
const TASK: usize = 200_000;
/// Pairs of panels that share a walk over the rows, ...
const PAIRS: usize = 8;
/// ... and tiles of rows that share decoded weights, ...
const TILES: usize = 32;
/// ... which fewer are not worth where the weight is small.
const LEAST_TILES: usize = 8;
/// Elements along k that are decoded at a time: what lies between two uses then fits a second-level cache.
const ELEMENTS: usize = 2048;
/// The same for matrix tiles, which take them in so fast that a pair of panels has to stay in a first-level cache while
/// all rows pass by.
const TILE_ELEMENTS: usize = 256;
/// Likewise for f32, of which fewer fit.
const FLOAT_ELEMENTS: usize = 128;
/// ... and for integers, of which a pair of panels takes a half or a quarter of that.
const INTEGER_ELEMENTS: usize = 256;

pub(in crate::cpu) fn linear<const N: usize>(isa: Isa, x: &Operand, weights: [Linear<'_, Panels>; N]) -> [Matrix; N] {
    let products = weights.map(|weight| Product::new(isa, x, weight));
    if products.iter().all(Product::can_be_streamed) {
        return stream::linear(isa, &products);
    }
    // As many strips as give every thread some, if that means less than whole ones.
    let all: usize = products.iter().map(|p| p.w.count()).sum();
    let pairs = (all / (8 * rayon::current_num_threads())).clamp(1, PAIRS);
    let mut out = products.each_ref().map(|p| Matrix::reused(p.rows, p.w.outputs));
    let mut tasks: Vec<(&Product<'_>, Strip<'_>)> = Vec::new();
    // Two blocks for every thread: one that is done early has more to do.
    let tiles = x.rows.div_ceil(TILE).div_ceil(2 * rayon::current_num_threads()).min(TILES);
    for (product, out) in products.iter().zip(&mut out) {
        if product.w.count() <= 2 * PAIRS && tiles >= LEAST_TILES {
            tasks.extend(Strip::blocks(out, tiles).map(|strip| (product, strip)));
        } else {
            tasks.extend(Strip::columns(out, pairs).into_iter().map(|strip| (product, strip)));
        }
    }
    // What blocks of the same rows make of these is shared.
    tasks.sort_by_key(|(_, strip)| strip.first);
    let least = (TASK / (x.rows * x.k * 2 * PANEL * pairs).max(1)).max(1);
    tasks.into_par_iter().with_min_len(least).for_each_init(
        || {
            let mut room = SPARE.borrow();
            room.apart = None;
            room
        },
        |room, (product, strip)| {
            product.strip(isa, strip, room);
        },
    );
    out
}

/// Some pairs of panels, and their columns in some rows of the result.
struct Strip<'a> {
    pairs: Range<usize>,
    /// The tile that the rows begin with.
    first: usize,
    rows: Vec<&'a mut [bf16]>,
}

impl<'a> Strip<'a> {
    /// Cuts a matrix into strips of so many pairs.
    fn columns(matrix: &'a mut Matrix, pairs: usize) -> Vec<Strip<'a>> {
        let (rows, columns) = (matrix.rows(), matrix.columns());
        let mut strips: Vec<Strip<'_>> = (0..columns.div_ceil(2 * PANEL))
            .step_by(pairs)
            .map(|first| Strip {
                pairs: first..(first + pairs).min(columns.div_ceil(2 * PANEL)),
                first: 0,
                rows: Vec::with_capacity(rows),
            })
            .collect();
        for row in matrix.values_mut().chunks_mut(columns) {
            strips.iter_mut().zip(row.chunks_mut(2 * PANEL * pairs)).for_each(|(strip, row)| strip.rows.push(row));
        }
        strips
    }

    /// Cuts a matrix of few columns into blocks of so many tiles of rows that share decoded weights: a row of the other side is then
    /// taken from memory once.
    fn blocks(matrix: &'a mut Matrix, tiles: usize) -> impl Iterator<Item = Strip<'a>> {
        let columns = matrix.columns();
        matrix.values_mut().chunks_mut(tiles * TILE * columns).enumerate().map(move |(block, rows)| Strip {
            pairs: 0..columns.div_ceil(2 * PANEL),
            first: block * tiles,
            rows: rows.chunks_mut(columns).collect(),
        })
    }
}

/// What a thread works in.
#[derive(Default)]
struct Room {
    decoded: [[Scratch; 2]; PAIRS],
    /// Rows in f32, one tile after another, ...
    floats: Vec<FloatRow>,
    /// ... which are these tiles of the operand at hand, and of them these steps.
    apart: Option<[Range<usize>; 2]>,
    /// Of chunks that go on: `[pair of panels][tile]`.
    sums: Vec<Totals<2>>,
    /// `[pair of panels][tile]`.
    totals: Vec<Totals<2>>,
}

/// At most what four threads need with weights in packed formats.
static SPARE: Spare<Room> = Spare::new(8 << 20);

impl Reusable for Room {
    fn capacity(&self) -> usize {
        let Room { decoded, floats, apart: _, sums, totals } = self;
        let decoded: usize = decoded.as_flattened().iter().map(Scratch::capacity).sum();
        decoded + capacity(floats) + capacity(sums) + capacity(totals)
    }
}

/// One weight's product.
pub(super) struct Product<'a> {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) chunk: usize,
    pub(super) tiles: Vec<(XTile<'a>, Order)>,
    pub(super) w: &'a Panels,
    bias: Option<&'a [bf16]>,
    way: Way,
}

/// What the elements of many rows go through.
#[derive(Clone, Copy)]
enum Way {
    /// Matrix tiles, where sums are exact in whatever order; rows whose sums may not be go another way.
    Tiles(Tiles),
    /// Integers of 8 bits, likewise; the sums of so many [quads](quads_in_short) are small.
    Bytes { quads: usize },
    /// Integers of 16 bits, likewise.
    Words,
    /// f32, where there is no instruction for pairs of bf16 or it is slow.
    Floats,
    /// Pairs of bf16.
    Pairs,
}

/// Some tiles of rows, which of all the first is, how many rows these hold, and the elements along k to be added.
struct Block<'a> {
    tiles: &'a [(XTile<'a>, Order)],
    first: usize,
    rows: usize,
    span: Range<usize>,
}

impl<'a> Product<'a> {
    fn new(isa: Isa, x: &'a Operand, Linear { weight: w, bias }: Linear<'a, Panels>) -> Product<'a> {
        assert_eq!(x.k, w.k, "operand and weight have the same inner length");
        assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
        let chunk = [x.block_size(), w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
        let mut tiles: Vec<_> = x.tiles().map(|tile| (tile, Order::new(chunk, tile.extent, w.extent))).collect();
        let many_steps = [x.block_size(), w.block_size()] == [Some(STEP); 2] && x.rows > FEW;
        let fast = tiles.iter().all(|(_, order)| order.is_fast());
        let packed = w.as_packed();
        let way = match isa.tiles() {
            Some(tiles) if many_steps && packed.is_some_and(|p| p.ratio <= TILES_RATIO) => Way::Tiles(tiles),
            _ if many_steps
                && fast
                && packed.is_some_and(|p| p.table.bytes.is_some())
                && tiles.iter().all(|(x, _)| !x.bytes.is_empty()) =>
            {
                Way::Bytes { quads: packed.map_or(1, |p| quads_in_short(isa, x.ratio(), (p.ratio, p.bits))) }
            }
            _ if many_steps
                && fast
                && packed.is_some_and(|p| p.table.integers.is_some() && always_exact(x.ratio(), p.ratio))
                && tiles.iter().all(|(x, _)| !x.words.is_empty()) =>
            {
                Way::Words
            }
            _ if fast && x.rows > FEW && chunk.is_multiple_of(STEP) && isa.takes_pairs_apart() => Way::Floats,
            _ => Way::Pairs,
        };
        if !matches!(way, Way::Bytes { .. }) {
            tiles.iter_mut().zip(x.pairs(isa)).for_each(|((tile, _), pairs)| tile.lanes = pairs);
        }
        Product { rows: x.rows, k: x.k, chunk, tiles, w, bias, way }
    }

    fn can_be_streamed(&self) -> bool {
        self.rows <= FEW && self.chunk.is_multiple_of(STEP) && self.tiles[0].1.is_fast()
    }

    /// A strip of the result.
    fn strip(&self, isa: Isa, strip: Strip<'_>, room: &mut Room) {
        match self.way {
            Way::Tiles(tiles) => {
                #[cfg_attr(
                    not(target_arch = "x86_64"),
                    allow(unreachable_code, unused_variables, reason = "there are no tiles elsewhere")
                )]
                let configured = tiles.configure();
                dispatch!(isa, simd => {
                    self.strip_by(simd, TILE_ELEMENTS, strip, room, #[inline(always)] |block, pairs, room| {
                        self.add(simd, Some(&configured), block, pairs, room);
                    });
                });
            }
            Way::Bytes { quads } => dispatch_integers!(
                isa,
                simd => {
                    self.strip_by(simd, INTEGER_ELEMENTS, strip, room, #[inline(always)] |block, pairs, room| {
                        self.add_bytes(simd, quads, block, pairs, room);
                    });
                },
                unreachable!("operands have bytes only where there are products of integers")
            ),
            Way::Words => dispatch_integers!(
                isa,
                simd => {
                    self.strip_by(simd, INTEGER_ELEMENTS, strip, room, #[inline(always)] |block, pairs, room| {
                        self.add_words(simd, block, pairs, room);
                    });
                },
                unreachable!("operands have integers only where there are products of them")
            ),
            Way::Floats => dispatch!(isa, simd => {
                self.strip_by(simd, FLOAT_ELEMENTS, strip, room, #[inline(always)] |block, pairs, room| {
                    self.add_floats(simd, block, pairs, room);
                });
            }),
            Way::Pairs => dispatch!(isa, simd => {
                self.strip_by(simd, ELEMENTS, strip, room, #[inline(always)] |block, pairs, room| {
                    self.add(simd, None, block, pairs, room);
                });
            }),
        }
    }

    /// The same, where `add` adds the products of some pairs of panels with a block of rows to their totals, so many
    /// elements at a time.
    #[inline(always)]
    fn strip_by<S: Simd>(
        &self,
        simd: S,
        elements: usize,
        Strip { pairs, first, mut rows }: Strip<'_>,
        room: &mut Room,
        add: impl Fn(&Block<'_>, Range<usize>, &mut Room),
    ) {
        let tiles = &self.tiles[first..][..rows.len().div_ceil(TILE)];
        let firsts = (first..).step_by(TILES);
        for ((tiles, first), rows) in tiles.chunks(TILES).zip(firsts).zip(rows.chunks_mut(TILES * TILE)) {
            let totals = tiles.len() * pairs.len();
            room.totals.resize(totals.max(room.totals.len()), Totals::ZERO);
            // Whole chunks and whole steps; f32 take chunks in parts.
            let unit = match self.way {
                Way::Floats => STEP.max(self.w.block_size().unwrap_or(STEP)),
                _ if self.chunk.is_multiple_of(STEP) => self.chunk,
                _ => self.chunk * STEP,
            };
            let length = (elements / unit).max(1) * unit;
            for start in (0..self.k).step_by(length) {
                let span = start..self.k.min(start + length);
                add(&Block { tiles, first, rows: rows.len(), span }, pairs.clone(), room);
            }
            let biases: Vec<_> = pairs.clone().map(|pair| [0, 1].map(|p| self.biases(2 * pair + p))).collect();
            for (r, row) in rows.iter_mut().enumerate() {
                for ((pair, to), biases) in row.chunks_mut(2 * PANEL).enumerate().zip(&biases) {
                    let totals = &room.totals[pair * tiles.len() + r / TILE].0[r % TILE];
                    if to.len() == 2 * PANEL {
                        finish(simd, totals, biases, to.as_chunks_mut().0);
                    } else {
                        let mut rounded = [bf16::ZERO; 2 * PANEL];
                        finish(simd, totals, biases, rounded.as_chunks_mut().0);
                        copy(&rounded, to);
                    }
                }
            }
        }
    }

    /// Both panels of a pair. The last panel may stand alone: then it is both.
    fn both(&self, pair: usize) -> [usize; 2] {
        [2 * pair, (2 * pair + 1).min(self.w.count() - 1)]
    }

    /// Adds the products of a block and pairs of panels to their totals, which begin with 0 where the block's span does.
    #[inline(always)]
    fn add<S: Simd>(
        &self,
        simd: S,
        configured: Option<&Configured>,
        &Block { tiles, rows, ref span, .. }: &Block<'_>,
        pairs: Range<usize>,
        Room { decoded, totals, .. }: &mut Room,
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
        quads: usize,
        &Block { tiles, rows, ref span, .. }: &Block<'_>,
        pairs: Range<usize>,
        Room { decoded: [[first, second], ..], totals, .. }: &mut Room,
    ) {
        let packed = self.w.as_packed().expect("bytes are taken of packed weights");
        let steps = span.start / STEP..span.end.div_ceil(STEP);
        for (pair, totals) in pairs.zip(totals.chunks_mut(tiles.len())) {
            let both = self.both(pair);
            let w = [
                packed.byte_panel(simd, both[0], steps.clone(), first),
                packed.byte_panel(simd, both[1], steps.clone(), second),
            ];
            for (t, (x, _)) in tiles.iter().enumerate() {
                if span.start == 0 {
                    totals[t] = Totals::ZERO;
                }
                multiply_bytes(simd, (x, rows - t * TILE), (&w, quads), steps.clone(), &mut totals[t]);
            }
        }
    }

    /// The same through f32. A pair of panels stays in a first-level cache while all rows pass by.
    #[inline(always)]
    fn add_floats<S: Simd>(
        &self,
        simd: S,
        &Block { tiles, first, rows, ref span }: &Block<'_>,
        pairs: Range<usize>,
        Room { decoded: [scratch, ..], floats, apart, sums, totals }: &mut Room,
    ) {
        let steps = span.start / STEP..span.end.div_ceil(STEP);
        let taken = steps.len() * TILE;
        floats.resize(floats.len().max(tiles.len() * taken), FloatRow::default());
        // Another product of this operand may have done it.
        let these = Some([first..first + tiles.len(), steps.clone()]);
        if *apart != these {
            for ((x, _), floats) in tiles.iter().zip(floats.chunks_exact_mut(taken)) {
                take_apart(simd, x, steps.clone(), floats);
            }
            *apart = these;
        }
        let chunk = self.chunk / STEP;
        let last_pairs = (self.k - 1) % STEP / 2 + 1;
        let mut whole = Totals::ZERO;
        sums.resize(if chunk * STEP > FLOAT_ELEMENTS { totals.len() } else { 0 }, Totals::ZERO);
        for (pair, at) in pairs.zip((0..totals.len()).step_by(tiles.len())) {
            let both = self.both(pair);
            let alone = both[0] == both[1];
            let [first, second] = &mut *scratch;
            let w = self.w.float_panel(simd, both[0], steps.clone(), first);
            let w = [w, if alone { w } else { self.w.float_panel(simd, both[1], steps.clone(), second) }];
            for (t, (x, _)) in tiles.iter().enumerate() {
                let (floats, totals) = (&floats[t * taken..], &mut totals[at + t]);
                let sums = sums.get_mut(at + t).unwrap_or(&mut whole);
                let tile = FloatTile { x, rows: rows - t * TILE, floats, last_pairs, totals, sums };
                multiply_floats(simd, tile, (&w, alone), (steps.clone(), chunk));
            }
        }
    }

    /// The same through integers of 16 bits.
    #[inline(always)]
    fn add_words<S: IntegerProducts>(
        &self,
        simd: S,
        &Block { tiles, rows, ref span, .. }: &Block<'_>,
        pairs: Range<usize>,
        Room { decoded: [[first, second], ..], totals, .. }: &mut Room,
    ) {
        let packed = self.w.as_packed().expect("words are taken of packed weights");
        let steps = span.start / STEP..span.end.div_ceil(STEP);
        for (pair, totals) in pairs.zip(totals.chunks_mut(tiles.len())) {
            let both = self.both(pair);
            let w = [
                packed.word_panel(simd, both[0], steps.clone(), first),
                packed.word_panel(simd, both[1], steps.clone(), second),
            ];
            for (t, (x, _)) in tiles.iter().enumerate() {
                if span.start == 0 {
                    totals[t] = Totals::ZERO;
                }
                multiply_words(simd, (x, rows - t * TILE), &w, steps.clone(), &mut totals[t]);
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
