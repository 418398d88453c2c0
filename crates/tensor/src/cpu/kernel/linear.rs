//! x · wᵀ + bias over all tiles of rows and panels of outputs.

use half::bf16;
use rayon::prelude::*;

use super::bf16::round;
use super::operand::Operand;
use super::panels::{Packed, Panels, Scratch, quad};
use super::product::{Order, PANEL, STEP, TILE, Totals, WPanel, XTile, multiply, multiply_tiles};
use crate::Matrix;
use crate::cpu::simd::tiles::Configured;
use crate::cpu::simd::{Isa, LANES, Simd, dispatch};
use crate::reference::PLAIN_CHUNK;

/// The most rows for which codes are decoded on the way into the product instead of once beforehand.
pub(super) const FEW: usize = 4;
/// Panels that one row streams through at a time.
const STREAMS: usize = 4;
/// The largest [`WPanel::ratio`] for which tiles pay: beyond it hardly a sum is exact.
const TILES_RATIO: f32 = 4096.0;

pub(in crate::cpu) fn linear(isa: Isa, x: &Operand, w: &Panels, bias: Option<&[bf16]>) -> Matrix {
    assert_eq!(x.k, w.k, "operand and weight have the same inner length");
    assert!(bias.is_none_or(|b| b.len() == w.outputs), "one bias per output");
    let chunk = [x.format.map(|f| f.block_size), w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
    let tiles: Vec<(XTile<'_>, Order)> =
        x.tiles().map(|tile| (tile, Order::new(chunk, tile.extent, w.extent))).collect();
    let product = Product { rows: x.rows, k: x.k, tiles, w, bias };
    if let (true, Some(packed)) =
        (x.rows <= FEW && chunk.is_multiple_of(4) && product.tiles[0].1.is_fast(), w.as_packed())
    {
        return product.streamed(isa, packed, chunk);
    }
    product.tiled(isa)
}

/// What is multiplied.
struct Product<'a> {
    rows: usize,
    k: usize,
    tiles: Vec<(XTile<'a>, Order)>,
    w: &'a Panels,
    bias: Option<&'a [bf16]>,
}

impl Product<'_> {
    /// Two panels at a time, each decoded once and multiplied by all rows.
    fn tiled(&self, isa: Isa) -> Matrix {
        type Columns = Vec<[bf16; 2 * PANEL]>;
        let chunk = self.tiles[0].1.chunk;
        let tiles = isa.tiles().filter(|_| {
            let few_bits = self.w.as_packed().is_some_and(|p| p.ratio <= TILES_RATIO);
            few_bits && chunk == STEP && self.rows > FEW && !self.tiles[0].0.mass.is_empty()
        });
        // Small products are not worth handing to other threads.
        let least = (200_000 / (self.rows * self.k * 2 * PANEL).max(1)).max(1);
        let columns: Vec<Columns> = (0..self.w.count().div_ceil(2))
            .into_par_iter()
            .with_min_len(least)
            .map_init(
                || [Scratch::default(), Scratch::default()],
                |scratch, pair| {
                    let mut columns = vec![[bf16::ZERO; 2 * PANEL]; self.rows];
                    let configured = tiles.map(|t| t.configure());
                    dispatch!(isa, simd => {
                        let [first, second] = scratch;
                        // The last panel may stand alone: then it is computed twice.
                        let last = (2 * pair + 1).min(self.w.count() - 1);
                        let w = [self.w.panel(simd, 2 * pair, first), self.w.panel(simd, last, second)];
                        self.columns(simd, configured.as_ref(), &w, pair, &mut columns);
                    });
                    columns
                },
            )
            .collect();
        let mut out = Matrix::zeros(self.rows, self.w.outputs);
        let least = (16384 / self.w.outputs).max(1);
        out.values_mut().par_chunks_mut(self.w.outputs).with_min_len(least).enumerate().for_each(|(i, row)| {
            for (to, columns) in row.chunks_mut(2 * PANEL).zip(&columns) {
                to.copy_from_slice(&columns[i][..to.len()]);
            }
        });
        out
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
        let biases: [[f32; PANEL]; 2] = std::array::from_fn(|p| self.biases(2 * pair + p));
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
                        multiply(simd, tile, w, *order, (0..self.k, 0..rows.len()), totals);
                    }
                }
            }
            for (row, totals) in columns.iter_mut().zip(totals.as_flattened()) {
                finish(totals, &biases, row.as_chunks_mut().0);
            }
        }
    }

    /// A few rows, decoding on the way.
    fn streamed(&self, isa: Isa, packed: &Packed, chunk: usize) -> Matrix {
        let rows = self.rows.next_power_of_two();
        // [panel][row]
        let mut columns = vec![[bf16::ZERO; PANEL]; self.w.count() * rows];
        let least = (16384 / self.k).max(1);
        columns.par_chunks_mut(STREAMS * rows).with_min_len(least).enumerate().for_each(|(i, columns)| {
            dispatch!(isa, simd => {
                let panel = i * STREAMS;
                match packed.bits {
                    4 => self.stream_rows::<_, 4>(simd, packed, (panel, chunk), columns),
                    6 => self.stream_rows::<_, 6>(simd, packed, (panel, chunk), columns),
                    _ => self.stream_rows::<_, 8>(simd, packed, (panel, chunk), columns),
                }
            });
        });
        let mut out = Matrix::zeros(self.rows, self.w.outputs);
        for r in 0..self.rows {
            for (to, columns) in out.row_mut(r).chunks_mut(PANEL).zip(columns.chunks_exact(rows)) {
                to.copy_from_slice(&columns[r][..to.len()]);
            }
        }
        out
    }

    #[inline(always)]
    fn stream_rows<S: Simd, const BITS: usize>(
        &self,
        simd: S,
        packed: &Packed,
        (panel, chunk): (usize, usize),
        columns: &mut [[bf16; PANEL]],
    ) {
        let x = &self.tiles[0].0;
        let stream = Stream { x, packed, k: self.k, chunk };
        match self.rows.next_power_of_two() {
            1 if columns.len() == STREAMS => {
                let totals = stream.totals::<S, BITS, 1, STREAMS>(simd, panel);
                for (p, to) in columns.iter_mut().enumerate() {
                    finish(&[totals[0][p]], &[self.biases(panel + p)], std::slice::from_mut(to));
                }
            }
            1 => self.stream_panels::<S, BITS, 1>(simd, &stream, panel, columns),
            2 => self.stream_panels::<S, BITS, 2>(simd, &stream, panel, columns),
            _ => self.stream_panels::<S, BITS, 4>(simd, &stream, panel, columns),
        }
    }

    /// `R` rows, one panel after another.
    #[inline(always)]
    fn stream_panels<S: Simd, const BITS: usize, const R: usize>(
        &self,
        simd: S,
        stream: &Stream<'_>,
        first: usize,
        columns: &mut [[bf16; PANEL]],
    ) {
        for (p, columns) in columns.as_chunks_mut::<R>().0.iter_mut().enumerate() {
            let totals = stream.totals::<S, BITS, R, 1>(simd, first + p);
            let biases = [self.biases(first + p)];
            for (totals, to) in totals.iter().zip(columns) {
                finish(totals, &biases, std::slice::from_mut(to));
            }
        }
    }

    /// The biases of a panel; without any −0, which changes nothing, not even the sign of a zero.
    #[inline(always)]
    fn biases(&self, panel: usize) -> [f32; PANEL] {
        let mut biases = [-0f32; PANEL];
        if let Some(bias) = self.bias.and_then(|b| b.get(panel * PANEL..)) {
            biases.iter_mut().zip(bias).for_each(|(to, b)| *to = b.to_f32());
        }
        biases
    }
}

/// Bias and rounding.
#[inline(always)]
fn finish(totals: &[[f32; PANEL]], biases: &[[f32; PANEL]], to: &mut [[bf16; PANEL]]) {
    for ((to, totals), biases) in to.iter_mut().zip(totals).zip(biases) {
        for ((to, total), bias) in to.iter_mut().zip(totals).zip(biases) {
            *to = round(total + bias);
        }
    }
}

/// A few rows times packed panels.
struct Stream<'a> {
    x: &'a XTile<'a>,
    packed: &'a Packed,
    k: usize,
    chunk: usize,
}

impl Stream<'_> {
    /// The totals of `R` rows by `P` panels from `panel` on.
    #[inline(always)]
    fn totals<S: Simd, const BITS: usize, const R: usize, const P: usize>(
        &self,
        simd: S,
        panel: usize,
    ) -> [[[f32; PANEL]; P]; R] {
        let codes: [&[u8]; P] = std::array::from_fn(|p| self.packed.codes(panel + p));
        let scales: [&[[microscale_formats::E8M0; PANEL]]; P] = std::array::from_fn(|p| self.packed.scales(panel + p));
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..self.k).step_by(self.chunk) {
            let end = (start + self.chunk).min(self.k);
            let mut sums = [[simd.splat(0.0); P]; R];
            for index in start / 4..end.div_ceil(4) {
                let step = &self.x.steps[index / (STEP / 4)].0;
                let pair = index * 2 % LANES;
                for p in 0..P {
                    let w = simd.decode::<BITS>(&self.packed.table, quad::<BITS>(codes[p], index));
                    for (sums, x) in sums.iter_mut().zip(step) {
                        let sum = simd.dot(simd.splat_pairs(x[pair]), w[0], sums[p]);
                        sums[p] = simd.dot(simd.splat_pairs(x[pair + 1]), w[1], sum);
                    }
                }
            }
            for p in 0..P {
                let w = simd.powers(&scales[p][start / self.packed.block_size]);
                for (r, (totals, sums)) in totals.iter_mut().zip(&sums).enumerate() {
                    let x = simd.splat(self.x.scales.map_or(1.0, |s| s.powers[start / s.block_size][r]));
                    totals[p] = simd.fma(sums[p], simd.mul(w, x), totals[p]);
                }
            }
        }
        totals.map(|totals| {
            totals.map(|total| {
                let mut lanes = [0.0; PANEL];
                simd.store(total, &mut lanes);
                lanes
            })
        })
    }
}
