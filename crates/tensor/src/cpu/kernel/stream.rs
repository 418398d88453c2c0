//! A few rows times weights that are decoded on the way: what generating one token after another takes.
//!
//! Every code is read once, so memory sets the pace, and a row streams through several panels at a time.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use super::linear::{FEW, Product, finish};
use super::panels::{GROUP, Packed, PanelScales, step_codes};
use super::sides::{PANEL, STEP};
use crate::Matrix;
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::{AHEAD, IntegerProducts, Isa, LANES, Simd, dispatch, integer_products};

/// Panels that one row streams through at a time.
const STREAMS: usize = GROUP;
/// Multiplications that are worth waking another thread for, ...
const TASK: usize = 1 << 20;
/// ... and that are worth handing to one that is awake.
const RUN: usize = 1 << 17;

/// The products of a few rows with several weights.
pub(super) fn linear<const N: usize>(isa: Isa, products: &[Product<'_>; N]) -> [Matrix; N] {
    let rows = products[0].rows;
    // [panel][row]
    let mut columns = products.each_ref().map(|p| vec![[bf16::ZERO; PANEL]; p.w.count() * rows]);
    let panel = products[0].k * rows * PANEL;
    let mut left = products.iter().map(|p| p.w.count()).sum::<usize>();
    let alone = panel * left < TASK;
    let threads = if alone { 1 } else { rayon::current_num_threads() };
    let mut runs = Vec::new();
    for (product, columns) in products.iter().zip(&mut columns) {
        let (mut first, mut columns) = (0, columns.as_mut_slice());
        while !columns.is_empty() {
            // Long runs first, as every beginning waits for the memory, and short ones last, so that no thread waits
            // long for another.
            let run = (left / (2 * threads)).max(RUN / panel).max(1);
            let run = if run < STREAMS { run } else { run / STREAMS * STREAMS };
            let (own, rest) = columns.split_at_mut(columns.len().min(run * rows));
            left -= own.len() / rows;
            runs.push((product, first, own));
            (first, columns) = (first + run, rest);
        }
    }
    if alone {
        runs.into_iter().for_each(|(product, first, columns)| product.run(isa, first, columns));
    } else {
        runs.into_iter().par_bridge().for_each(|(product, first, columns)| product.run(isa, first, columns));
    }
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

/// The integers that a product goes through, where it does.
#[derive(Clone, Copy)]
enum Integers {
    /// Those of both sides fit bytes.
    Bytes,
    /// Those of the weight fit words, and of the rows those of most steps.
    Words,
}

impl Product<'_> {
    /// The panels from `first` on that `columns` has room for.
    fn run(&self, isa: Isa, first: usize, columns: &mut [[bf16; PANEL]]) {
        match integer_products(isa).and_then(|simd| Some((simd, self.integers()?))) {
            Some((simd, integers)) => simd.vectorize(
                #[inline(always)]
                || self.stream_integers(simd, integers, first, columns),
            ),
            None => dispatch!(isa, simd => self.stream(simd, first, columns)),
        }
    }

    /// The same for one instruction set.
    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, first: usize, columns: &mut [[bf16; PANEL]]) {
        match self.w.as_packed().map(|p| p.bits) {
            None => self.rows(first, columns, Plain { simd, product: self }),
            Some(4) => self.rows(first, columns, Codes(Pairs::<S, 4> { simd, product: self })),
            Some(6) => self.rows(first, columns, Codes(Pairs::<S, 6> { simd, product: self })),
            Some(_) => self.rows(first, columns, Codes(Pairs::<S, 8> { simd, product: self })),
        }
    }

    /// The same through products of integers.
    #[inline(always)]
    fn stream_integers<S: IntegerProducts>(
        &self,
        simd: S,
        integers: Integers,
        first: usize,
        columns: &mut [[bf16; PANEL]],
    ) {
        match (integers, self.w.as_packed().map(|p| p.bits)) {
            (Integers::Bytes, Some(4)) => self.rows(first, columns, Codes(Bytes::<S, 4> { simd, product: self })),
            (Integers::Bytes, Some(6)) => self.rows(first, columns, Codes(Bytes::<S, 6> { simd, product: self })),
            (Integers::Bytes, _) => self.rows(first, columns, Codes(Bytes::<S, 8> { simd, product: self })),
            (Integers::Words, Some(4)) => self.rows(first, columns, Codes(Words::<S, 4> { simd, product: self })),
            (Integers::Words, _) => self.rows(first, columns, Codes(Words::<S, 6> { simd, product: self })),
        }
    }

    /// Which integers both sides can be taken for, in chunks of one step.
    fn integers(&self) -> Option<Integers> {
        let (x, table) = (&self.tiles[0].0, &self.w.as_packed()?.table);
        match (self.chunk, &table.bytes, &table.integers) {
            (STEP, Some(_), _) if !x.bytes.is_empty() => Some(Integers::Bytes),
            (STEP, _, Some(_)) if !x.integers.is_empty() => Some(Integers::Words),
            _ => None,
        }
    }

    #[inline(always)]
    fn rows(&self, first: usize, columns: &mut [[bf16; PANEL]], way: impl Way) {
        const { assert!(FEW == 4) };
        match self.rows {
            1 => {
                let (groups, rest) = columns.as_chunks_mut::<STREAMS>();
                let alone = first + groups.len() * STREAMS;
                for (group, columns) in groups.iter_mut().enumerate() {
                    self.panels::<1, STREAMS>(first + group * STREAMS, columns, &way);
                }
                self.one_by_one::<1>(alone, rest, &way);
            }
            2 => self.one_by_one::<2>(first, columns, &way),
            3 => self.one_by_one::<3>(first, columns, &way),
            _ => self.one_by_one::<4>(first, columns, &way),
        }
    }

    /// `R` rows by one panel after another.
    #[inline(always)]
    fn one_by_one<const R: usize>(&self, first: usize, columns: &mut [[bf16; PANEL]], way: &impl Way) {
        for (panel, columns) in columns.chunks_exact_mut(R).enumerate() {
            self.panels::<R, 1>(first + panel, columns, way);
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

/// A way through packed codes.
struct Codes<C>(C);

/// What a way through codes does with a chunk.
trait Chunks {
    type Simd: Simd;
    fn simd(&self) -> Self::Simd;
    fn product(&self) -> &Product<'_>;
    /// Adds the products of elements `chunk` of `R` rows and of `P` panels of these codes and scales to the totals.
    fn add<const R: usize, const P: usize>(
        &self,
        packed: &Packed,
        chunk: Range<usize>,
        panels: (&[&[u8]; P], &[PanelScales<'_>; P]),
        totals: &mut [[<Self::Simd as Simd>::F32; P]; R],
    );
}

impl<C: Chunks> Way for Codes<C> {
    type Simd = C::Simd;
    #[inline(always)]
    fn simd(&self) -> C::Simd {
        self.0.simd()
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.0.simd(), self.0.product());
        let packed = product.w.as_packed().expect("the way through codes is taken for packed weights");
        let (mut codes, mut scales): ([&[u8]; P], _) = ([&[]; P], [packed.scales(first); P]);
        for p in 0..P {
            (codes[p], scales[p]) = (packed.codes(first + p), packed.scales(first + p));
        }
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..product.k).step_by(product.chunk) {
            let chunk = start..(start + product.chunk).min(product.k);
            self.0.add(packed, chunk, (&codes, &scales), &mut totals);
        }
        lanes(simd, &totals)
    }
}

/// Codes of `BITS` bits to pairs of bf16.
struct Pairs<'a, S, const BITS: usize> {
    simd: S,
    product: &'a Product<'a>,
}

impl<S: Simd, const BITS: usize> Chunks for Pairs<'_, S, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn product(&self) -> &Product<'_> {
        self.product
    }
    #[inline(always)]
    fn add<const R: usize, const P: usize>(
        &self,
        packed: &Packed,
        chunk: Range<usize>,
        (codes, scales): (&[&[u8]; P], &[PanelScales<'_>; P]),
        totals: &mut [[S::F32; P]; R],
    ) {
        let simd = self.simd;
        let x = &self.product.tiles[0].0;
        let mut sums = [[simd.splat(0.0); P]; R];
        for step in chunk.start / STEP..chunk.end.div_ceil(STEP) {
            let rows = x.rows::<R>(step);
            let here = step_of_each::<BITS, P>(codes, step);
            let skips = skips::<P>(codes, here);
            for quad in 0..QUADS {
                for p in 0..P {
                    prefetch(simd, here[p], quad, skips);
                    let w = simd.decode::<BITS>(&packed.table, here[p], quad);
                    add_quad(simd, &rows, w, quad, (&mut sums, p));
                }
            }
        }
        let powers = powers(simd, scales, chunk.start / packed.block_size);
        add_scaled(
            simd,
            &sums,
            totals,
            #[inline(always)]
            |r, p| simd.mul(powers[p], simd.splat(x.power(chunk.start, r))),
        );
    }
}

/// Codes of `BITS` bits to bytes. A chunk is a step.
struct Bytes<'a, S, const BITS: usize> {
    simd: S,
    product: &'a Product<'a>,
}

impl<S: IntegerProducts, const BITS: usize> Chunks for Bytes<'_, S, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn product(&self) -> &Product<'_> {
        self.product
    }
    #[inline(always)]
    fn add<const R: usize, const P: usize>(
        &self,
        packed: &Packed,
        chunk: Range<usize>,
        (codes, scales): (&[&[u8]; P], &[PanelScales<'_>; P]),
        totals: &mut [[S::F32; P]; R],
    ) {
        let (simd, step) = (self.simd, chunk.start / STEP);
        let x = &self.product.tiles[0].0;
        let table = packed.table.bytes.as_ref().expect("the way through bytes is taken where there are some");
        let rows = &x.bytes[step * R..][..R];
        let mut sums = [[simd.start(0); P]; R];
        for r in 0..R {
            sums[r] = [simd.start(rows[r].start); P];
        }
        let here = step_of_each::<BITS, P>(codes, step);
        let skips = skips::<P>(codes, here);
        for quad in 0..QUADS {
            for p in 0..P {
                prefetch(simd, here[p], quad, skips);
                let w = simd.bytes::<BITS>(table, here[p], quad);
                for r in 0..R {
                    sums[r][p] = simd.dot_bytes(rows[r].quads[quad], w, sums[r][p]);
                }
            }
        }
        let powers = powers(simd, scales, chunk.start / packed.block_size);
        // Both sides' bytes are multiples of their formats' units.
        let unit = x.unit * packed.unit;
        add_integers(
            simd,
            &sums,
            &powers,
            totals,
            #[inline(always)]
            |r| x.power(chunk.start, r) * unit,
        );
    }
}

/// Codes of `BITS` bits to words, in steps where the sums are exact; in others to pairs of bf16. A chunk is a step.
struct Words<'a, S, const BITS: usize> {
    simd: S,
    product: &'a Product<'a>,
}

impl<S: IntegerProducts, const BITS: usize> Chunks for Words<'_, S, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn product(&self) -> &Product<'_> {
        self.product
    }
    #[inline(always)]
    fn add<const R: usize, const P: usize>(
        &self,
        packed: &Packed,
        chunk: Range<usize>,
        (codes, scales): (&[&[u8]; P], &[PanelScales<'_>; P]),
        totals: &mut [[S::F32; P]; R],
    ) {
        let (simd, step) = (self.simd, chunk.start / STEP);
        let x = &self.product.tiles[0].0;
        let rows = &x.integers[step * R..][..R];
        let mut largest = 0f32;
        for r in 0..R {
            largest = largest.max(rows[r].norm);
        }
        // No integer is larger than the norm of all.
        if largest > packed.limit.min(f32::from(i16::MAX)) {
            return Pairs::<S, BITS> { simd, product: self.product }.add(packed, chunk, (codes, scales), totals);
        }
        let table = packed.table.integers.as_ref().expect("the way through words is taken where there are some");
        let mut sums = [[simd.start(0); P]; R];
        let here = step_of_each::<BITS, P>(codes, step);
        let skips = skips::<P>(codes, here);
        for quad in 0..QUADS {
            for p in 0..P {
                prefetch(simd, here[p], quad, skips);
                let w = simd.integers::<BITS>(table, here[p], quad);
                for r in 0..R {
                    let sum = simd.dot_integers(rows[r].pairs[2 * quad], w[0], sums[r][p]);
                    sums[r][p] = simd.dot_integers(rows[r].pairs[2 * quad + 1], w[1], sum);
                }
            }
        }
        let powers = powers(simd, scales, chunk.start / packed.block_size);
        add_integers(
            simd,
            &sums,
            &powers,
            totals,
            #[inline(always)]
            |r| x.power(chunk.start, r) * (rows[r].unit * packed.unit),
        );
    }
}

/// The codes of a step of some panels.
#[inline(always)]
fn step_of_each<'a, const BITS: usize, const P: usize>(codes: &[&'a [u8]; P], step: usize) -> [&'a [u8]; P] {
    let mut here = *codes;
    for codes in &mut here {
        *codes = step_codes::<BITS>(codes, step);
    }
    here
}

/// Asks for the line of a step that belongs to quad `quad`, if there is one.
#[inline(always)]
fn prefetch<S: Simd>(simd: S, step: &[u8], quad: usize, skips: [usize; 2]) {
    if let Some(line) = step.as_chunks::<64>().0.get(quad) {
        simd.prefetch(line, skips);
    }
}

/// What lies between the end of a panel and what is read after it, the same panel of the next group, where the lines that are
/// asked for in the step `here` are beyond that end.
#[inline(always)]
fn skips<const P: usize>(codes: &[&[u8]; P], here: [&[u8]; P]) -> [usize; 2] {
    let left = codes[0].len() - (here[0].as_ptr().addr() - codes[0].as_ptr().addr());
    AHEAD.map(
        #[inline(always)]
        |ahead| if left > ahead { 0 } else { (P - 1) * codes[0].len() },
    )
}

/// The scales of a block.
#[inline(always)]
fn powers<S: Simd, const P: usize>(simd: S, scales: &[PanelScales<'_>; P], block: usize) -> [S::F32; P] {
    const { assert!(P == 1 || P == GROUP) };
    simd.prefetch(scales[0].block(block), [0; 2]);
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

/// Adds the exact sums of a step to the totals, those of row r times `power(r)` and the panel's scale.
#[inline(always)]
fn add_integers<S: IntegerProducts, const R: usize, const P: usize>(
    simd: S,
    sums: &[[S::I32; P]; R],
    powers: &[S::F32; P],
    totals: &mut [[S::F32; P]; R],
    power: impl Fn(usize) -> f32,
) {
    for r in 0..R {
        let x = simd.splat(power(r));
        for p in 0..P {
            totals[r][p] = simd.fma(simd.float(sums[r][p]), simd.mul(powers[p], x), totals[r][p]);
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
