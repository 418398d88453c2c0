//! A few rows times weights that are decoded on the way: what generating one token after another takes.
//!
//! Every code is read once, so memory sets the pace, and a row streams through several panels at a time.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use half::bf16;
use rayon::prelude::*;

use super::linear::{FEW, Product, finish};
use super::panels::{GROUP, Packed, PanelScales, step_codes};
use super::sides::{PANEL, STEP};
use crate::Matrix;
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::{ByteProducts, Isa, LANES, Simd, byte_products, dispatch};

/// Panels that one row streams through at a time.
const STREAMS: usize = GROUP;
/// Multiplications that are worth handing to another thread.
const TASK: usize = 1 << 20;

/// The products of a few rows with several weights.
pub(super) fn linear<const N: usize>(isa: Isa, products: &[Product<'_>; N]) -> [Matrix; N] {
    let rows = products[0].rows;
    // [panel][row]
    let mut columns = products.each_ref().map(|p| vec![[bf16::ZERO; PANEL]; p.w.count() * rows]);
    let tasks: Vec<(&Product<'_>, usize, &mut [[bf16; PANEL]])> = products
        .iter()
        .zip(&mut columns)
        .flat_map(|(p, columns)| {
            columns.chunks_mut(STREAMS * rows).enumerate().map(move |(i, chunk)| (p, i * STREAMS, chunk))
        })
        .collect();
    let least = (TASK / (products[0].k * rows * STREAMS * PANEL)).max(1);
    tasks.into_par_iter().with_min_len(least).for_each(|(product, first, columns)| {
        match byte_products(isa).filter(|_| product.takes_bytes()) {
            Some(simd) => simd.vectorize(
                #[inline(always)]
                || product.stream_bytes(simd, first, columns),
            ),
            None => dispatch!(isa, simd => product.stream(simd, first, columns)),
        }
    });
    let mut columns = columns.into_iter();
    products.each_ref().map(|p| join(rows, p.w.outputs, columns.next().unwrap_or_default()))
}

/// Puts panels side by side.
fn join(rows: usize, outputs: usize, columns: Vec<[bf16; PANEL]>) -> Matrix {
    if rows == 1 {
        let mut values = columns.into_flattened();
        values.truncate(outputs);
        return Matrix::new(1, outputs, values);
    }
    let mut out = Matrix::zeros(rows, outputs);
    for r in 0..rows {
        for (to, columns) in out.row_mut(r).chunks_mut(PANEL).zip(columns.chunks_exact(rows)) {
            to.copy_from_slice(&columns[r][..to.len()]);
        }
    }
    out
}

impl Product<'_> {
    /// The panels from `first` on that `columns` has room for.
    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, first: usize, columns: &mut [[bf16; PANEL]]) {
        match self.w.as_packed().map(|p| p.bits) {
            None => self.rows(first, columns, Plain { simd, product: self }),
            Some(4) => self.rows(first, columns, Pairs::<S, 4> { simd, product: self }),
            Some(6) => self.rows(first, columns, Pairs::<S, 6> { simd, product: self }),
            Some(_) => self.rows(first, columns, Pairs::<S, 8> { simd, product: self }),
        }
    }

    /// The same through products of bytes.
    #[inline(always)]
    fn stream_bytes<S: ByteProducts>(&self, simd: S, first: usize, columns: &mut [[bf16; PANEL]]) {
        match self.w.as_packed().map(|p| p.bits) {
            Some(4) => self.rows(first, columns, Bytes::<S, 4> { simd, product: self }),
            Some(6) => self.rows(first, columns, Bytes::<S, 6> { simd, product: self }),
            _ => self.rows(first, columns, Bytes::<S, 8> { simd, product: self }),
        }
    }

    /// Whether both sides are small integers, in chunks of one step.
    fn takes_bytes(&self) -> bool {
        let w = self.w.as_packed().and_then(|p| p.table.bytes.as_ref());
        self.chunk == STEP && w.is_some() && !self.tiles[0].0.bytes.is_empty()
    }

    #[inline(always)]
    fn rows(&self, first: usize, columns: &mut [[bf16; PANEL]], way: impl Way) {
        const { assert!(FEW == 4) };
        match self.rows {
            1 if columns.len() == STREAMS => self.panels::<1, STREAMS>(first, columns, &way),
            1 => (0..columns.len()).for_each(|p| self.panels::<1, 1>(first + p, &mut columns[p..], &way)),
            2 => (0..columns.len() / 2).for_each(|p| self.panels::<2, 1>(first + p, &mut columns[2 * p..], &way)),
            3 => (0..columns.len() / 3).for_each(|p| self.panels::<3, 1>(first + p, &mut columns[3 * p..], &way)),
            _ => (0..columns.len() / 4).for_each(|p| self.panels::<4, 1>(first + p, &mut columns[4 * p..], &way)),
        }
    }

    /// `R` rows by `P` panels.
    #[inline(always)]
    fn panels<const R: usize, const P: usize>(&self, first: usize, columns: &mut [[bf16; PANEL]], way: &impl Way) {
        let (simd, totals) = (way.simd(), way.totals::<R, P>(first));
        for p in 0..P {
            let biases = [self.biases(first + p)];
            for r in 0..R {
                finish(simd, &[totals[r][p]], &biases, &mut columns[p * R + r..][..1]);
            }
        }
    }

    /// The codes and the scales of some panels.
    #[inline(always)]
    fn packed<const P: usize>(&self, first: usize) -> (&Packed, [&[u8]; P], [PanelScales<'_>; P]) {
        let packed = self.w.as_packed().expect("the way through codes is taken for packed weights");
        let (mut codes, mut scales): ([&[u8]; P], _) = ([&[]; P], [packed.scales(first); P]);
        for p in 0..P {
            (codes[p], scales[p]) = (packed.codes(first + p), packed.scales(first + p));
        }
        (packed, codes, scales)
    }
}

/// A way to a product of a few rows: closures would do, could they have const parameters.
trait Way {
    type Simd: Simd;
    fn simd(&self) -> Self::Simd;
    /// The totals of `R` rows by `P` panels from `first` on.
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R];
}

/// Weights that are plain bf16.
struct Plain<'a, S> {
    simd: S,
    product: &'a Product<'a>,
}

/// Codes of `BITS` bits to pairs of bf16.
struct Pairs<'a, S, const BITS: usize> {
    simd: S,
    product: &'a Product<'a>,
}

/// Codes of `BITS` bits to bytes.
struct Bytes<'a, S, const BITS: usize> {
    simd: S,
    product: &'a Product<'a>,
}

impl<S: Simd> Way for Plain<'_, S> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let x = &product.tiles[0].0;
        let mut steps = [product.w.plain_steps(first); P];
        for p in 0..P {
            steps[p] = product.w.plain_steps(first + p);
        }
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..product.k).step_by(product.chunk) {
            let end = (start + product.chunk).min(product.k);
            let mut sums = [[simd.splat(0.0); P]; R];
            for step in start / STEP..end.div_ceil(STEP) {
                let rows = x.rows::<R>(step);
                for quad in 0..QUADS {
                    for p in 0..P {
                        let pairs = &steps[p][step];
                        let w = [simd.load_pairs(&pairs[2 * quad].0), simd.load_pairs(&pairs[2 * quad + 1].0)];
                        add_quad(simd, &rows, w, quad, (&mut sums, p));
                    }
                }
            }
            add_scaled(
                simd,
                &sums,
                &mut totals,
                #[inline(always)]
                |r, _| simd.splat(x.power(start, r)),
            );
        }
        lanes(simd, &totals)
    }
}

impl<S: Simd, const BITS: usize> Way for Pairs<'_, S, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let x = &product.tiles[0].0;
        let (packed, codes, scales) = product.packed::<P>(first);
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..product.k).step_by(product.chunk) {
            let end = (start + product.chunk).min(product.k);
            let mut sums = [[simd.splat(0.0); P]; R];
            for step in start / STEP..end.div_ceil(STEP) {
                let rows = x.rows::<R>(step);
                let mut here = codes;
                for codes in &mut here {
                    *codes = step_codes::<BITS>(codes, step);
                }
                for quad in 0..QUADS {
                    for p in 0..P {
                        prefetch(simd, here[p], quad);
                        let w = simd.decode::<BITS>(&packed.table, here[p], quad);
                        add_quad(simd, &rows, w, quad, (&mut sums, p));
                    }
                }
            }
            let powers = powers(simd, &scales, start / packed.block_size);
            add_scaled(
                simd,
                &sums,
                &mut totals,
                #[inline(always)]
                |r, p| simd.mul(powers[p], simd.splat(x.power(start, r))),
            );
        }
        lanes(simd, &totals)
    }
}

impl<S: ByteProducts, const BITS: usize> Way for Bytes<'_, S, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let x = &product.tiles[0].0;
        let (packed, codes, scales) = product.packed::<P>(first);
        let table = packed.table.bytes.as_ref().expect("the way through bytes is taken where there are some");
        // Both sides' bytes are multiples of their formats' units.
        let unit = x.unit * packed.unit;
        let mut totals = [[simd.splat(0.0); P]; R];
        for step in 0..product.k.div_ceil(STEP) {
            let mut here = codes;
            for codes in &mut here {
                *codes = step_codes::<BITS>(codes, step);
            }
            let rows = &x.bytes[step * R..][..R];
            let mut sums = [[simd.start(0); P]; R];
            for r in 0..R {
                sums[r] = [simd.start(rows[r].start); P];
            }
            for quad in 0..QUADS {
                for p in 0..P {
                    prefetch(simd, here[p], quad);
                    let w = simd.bytes::<BITS>(table, here[p], quad);
                    for r in 0..R {
                        sums[r][p] = simd.dot_bytes(rows[r].quads[quad], w, sums[r][p]);
                    }
                }
            }
            let powers = powers(simd, &scales, step * STEP / packed.block_size);
            for r in 0..R {
                let x = simd.splat(x.power(step * STEP, r) * unit);
                for p in 0..P {
                    totals[r][p] = simd.fma(simd.float(sums[r][p]), simd.mul(powers[p], x), totals[r][p]);
                }
            }
        }
        lanes(simd, &totals)
    }
}

/// Asks for the line of a step that belongs to quad `quad`, if there is one.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, step: &[u8], quad: usize) {
    if let Some(line) = step.as_chunks::<64>().0.get(quad) {
        simd.prefetch(line);
    }
}

/// The scales of a block.
#[inline(always)]
fn powers<S: Simd, const P: usize>(simd: S, scales: &[PanelScales<'_>; P], block: usize) -> [S::F32; P] {
    const { assert!(P == 1 || P == GROUP) };
    simd.prefetch(scales[0].block(block));
    let mut powers = [simd.splat(1.0); P];
    for p in 0..P {
        powers[p] = simd.powers(scales[p].block(block));
    }
    powers
}

/// Adds two pairs of panel `p` to the sums of all rows.
#[inline(always)]
fn add_quad<S: Simd, const R: usize, const P: usize>(
    simd: S,
    x: &[&[u32; LANES]; R],
    w: [S::Pairs; 2],
    quad: usize,
    (sums, p): (&mut [[S::F32; P]; R], usize),
) {
    for r in 0..R {
        let sum = simd.dot(simd.splat_pairs(x[r][2 * quad]), w[0], sums[r][p]);
        sums[r][p] = simd.dot(simd.splat_pairs(x[r][2 * quad + 1]), w[1], sum);
    }
}

/// Adds the sums of a chunk to the totals, each times its power of two.
#[inline(always)]
fn add_scaled<S: Simd, const R: usize, const P: usize>(
    simd: S,
    sums: &[[S::F32; P]; R],
    totals: &mut [[S::F32; P]; R],
    power: impl Fn(usize, usize) -> S::F32,
) {
    for r in 0..R {
        for p in 0..P {
            totals[r][p] = simd.fma(sums[r][p], power(r, p), totals[r][p]);
        }
    }
}

#[inline(always)]
fn lanes<S: Simd, const R: usize, const P: usize>(simd: S, totals: &[[S::F32; P]; R]) -> [[[f32; PANEL]; P]; R] {
    let mut lanes = [[[0.0; PANEL]; P]; R];
    for r in 0..R {
        for p in 0..P {
            simd.store(totals[r][p], &mut lanes[r][p]);
        }
    }
    lanes
}
