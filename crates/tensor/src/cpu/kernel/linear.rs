//! x · wᵀ + bias over all tiles of rows and panels of outputs.

use half::bf16;
use microscale_formats::E8M0;
use rayon::prelude::*;

use super::bf16::round;
use super::operand::Operand;
use super::panels::{Panels, QUADS, Scratch, quad, step_bytes};
use super::product::{Order, PANEL, STEP, TILE, Totals, WPanel, XTile, multiply, multiply_tiles};
use crate::Matrix;
use crate::cpu::simd::tiles::{Configured, Step};
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
    let chunk = [x.block_size(), w.block_size()].into_iter().flatten().min().unwrap_or(PLAIN_CHUNK);
    let tiles: Vec<(XTile<'_>, Order)> =
        x.tiles().map(|tile| (tile, Order::new(chunk, tile.extent, w.extent))).collect();
    let product = Product { rows: x.rows, k: x.k, tiles, w, bias };
    if x.rows <= FEW && chunk.is_multiple_of(STEP) && product.tiles[0].1.is_fast() {
        return product.streamed(isa, chunk);
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
        let biases = [self.biases(2 * pair), self.biases(2 * pair + 1)];
        let (steps, chunk) = (self.k.div_ceil(STEP), self.tiles[0].1.chunk);
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
                        let k = if chunk.is_multiple_of(2) { self.k.next_multiple_of(2) } else { self.k };
                        multiply(simd, tile, w, *order, (0..k, 0..rows.len()), totals);
                    }
                }
            }
            for (row, totals) in columns.iter_mut().zip(totals.as_flattened()) {
                finish(totals, &biases, row.as_chunks_mut().0);
            }
        }
    }

    /// A few rows, decoding on the way.
    fn streamed(&self, isa: Isa, chunk: usize) -> Matrix {
        // [panel][row]
        let mut columns = vec![[bf16::ZERO; PANEL]; self.w.count() * self.rows];
        let least = (16384 / self.k).max(1);
        columns.par_chunks_mut(STREAMS * self.rows).with_min_len(least).enumerate().for_each(|(i, columns)| {
            dispatch!(isa, simd => {
                let stream = Stream { x: &self.tiles[0].0, w: self.w, k: self.k, chunk };
                match self.w.as_packed().map(|p| p.bits) {
                    None => self.stream::<_, 16>(simd, &stream, i * STREAMS, columns),
                    Some(4) => self.stream::<_, 4>(simd, &stream, i * STREAMS, columns),
                    Some(6) => self.stream::<_, 6>(simd, &stream, i * STREAMS, columns),
                    Some(_) => self.stream::<_, 8>(simd, &stream, i * STREAMS, columns),
                }
            });
        });
        if self.rows == 1 {
            let mut values = columns.into_flattened();
            values.truncate(self.w.outputs);
            return Matrix::new(1, self.w.outputs, values);
        }
        let mut out = Matrix::zeros(self.rows, self.w.outputs);
        for r in 0..self.rows {
            for (to, columns) in out.row_mut(r).chunks_mut(PANEL).zip(columns.chunks_exact(self.rows)) {
                to.copy_from_slice(&columns[r][..to.len()]);
            }
        }
        out
    }

    /// The panels from `first` on that `columns` has room for.
    #[inline(always)]
    fn stream<S: Simd, const BITS: usize>(
        &self,
        simd: S,
        stream: &Stream<'_>,
        first: usize,
        columns: &mut [[bf16; PANEL]],
    ) {
        match self.rows {
            1 if columns.len() == STREAMS => {
                let totals = stream.totals::<S, BITS, 1, STREAMS>(simd, first);
                for p in 0..STREAMS {
                    finish(&[totals[0][p]], &[self.biases(first + p)], &mut columns[p..=p]);
                }
            }
            1 => self.stream_panels::<S, BITS, 1>(simd, stream, first, columns),
            2 => self.stream_panels::<S, BITS, 2>(simd, stream, first, columns),
            3 => self.stream_panels::<S, BITS, 3>(simd, stream, first, columns),
            _ => self.stream_panels::<S, BITS, 4>(simd, stream, first, columns),
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
            for r in 0..R {
                finish(&totals[r], &biases, &mut columns[r..=r]);
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

/// A few rows times panels that are decoded on the way.
struct Stream<'a> {
    x: &'a XTile<'a>,
    w: &'a Panels,
    k: usize,
    chunk: usize,
}

impl Stream<'_> {
    /// The totals of `R` rows by `P` panels from `panel` on, of codes of `BITS` bits or plain bf16.
    #[inline(always)]
    fn totals<S: Simd, const BITS: usize, const R: usize, const P: usize>(
        &self,
        simd: S,
        panel: usize,
    ) -> [[[f32; PANEL]; P]; R] {
        let packed = self.w.as_packed();
        let (mut codes, mut scales): ([&[u8]; P], [&[[E8M0; PANEL]]; P]) = ([&[]; P], [&[]; P]);
        let mut plain: [&[Step]; P] = [&[]; P];
        for p in 0..P {
            if let Some(packed) = packed {
                (codes[p], scales[p]) = (packed.codes(panel + p), packed.scales(panel + p));
            }
            plain[p] = self.w.plain_steps(panel + p).unwrap_or(&[]);
        }
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..self.k).step_by(self.chunk) {
            let end = (start + self.chunk).min(self.k);
            let mut sums = [[simd.splat(0.0); P]; R];
            // Beyond k both sides are zero.
            for step in start / STEP..end.div_ceil(STEP) {
                let mut x = [&[0; LANES]; R];
                for r in 0..R {
                    x[r] = self.x.row(step, r);
                }
                if let Some(packed) = packed {
                    let mut step_codes = codes;
                    for codes in &mut step_codes {
                        *codes = step_bytes::<BITS>(codes, step);
                    }
                    for index in 0..QUADS {
                        for p in 0..P {
                            let codes = quad::<BITS>(step_codes[p], index);
                            simd.prefetch(codes);
                            let w = simd.decode::<BITS>(&packed.table, codes);
                            add_quad(simd, &x, w, index, &mut sums, p);
                        }
                    }
                } else {
                    for index in 0..QUADS {
                        for p in 0..P {
                            let pairs = &plain[p][step];
                            let w = [simd.load_pairs(&pairs[2 * index].0), simd.load_pairs(&pairs[2 * index + 1].0)];
                            add_quad(simd, &x, w, index, &mut sums, p);
                        }
                    }
                }
            }
            for p in 0..P {
                let w = match packed {
                    Some(packed) => simd.powers(&scales[p][start / packed.block_size]),
                    None => simd.splat(1.0),
                };
                for r in 0..R {
                    let power = simd.mul(w, simd.splat(self.x.power(start, r)));
                    totals[r][p] = simd.fma(sums[r][p], power, totals[r][p]);
                }
            }
        }
        let mut lanes = [[[0.0; PANEL]; P]; R];
        for r in 0..R {
            for p in 0..P {
                simd.store(totals[r][p], &mut lanes[r][p]);
            }
        }
        lanes
    }
}

/// Adds two pairs of panel `p` to the sums of all rows.
#[inline(always)]
fn add_quad<S: Simd, const R: usize, const P: usize>(
    simd: S,
    x: &[&[u32; LANES]; R],
    w: [S::Pairs; 2],
    index: usize,
    sums: &mut [[S::F32; P]; R],
    p: usize,
) {
    for r in 0..R {
        let sum = simd.dot(simd.splat_pairs(x[r][2 * index]), w[0], sums[r][p]);
        sums[r][p] = simd.dot(simd.splat_pairs(x[r][2 * index + 1]), w[1], sum);
    }
}
