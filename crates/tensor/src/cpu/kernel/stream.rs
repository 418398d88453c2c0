//! A few rows times weights that are decoded on the way: what generating one token after another takes.
//!
//! Every code is read once, so memory sets the pace, and a row streams through several panels at a time.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

mod codes;

use half::bf16;
use microscale_formats::{ElementFormat, INT8};
use rayon::prelude::*;

use super::extent::{quads_in_short, ratio};
use super::linear::{FEW, Product, finish};
use super::sides::{PANEL, STEP};
use crate::Matrix;
use crate::cpu::simd::codes::{GROUP, QUADS};
use crate::cpu::simd::tiles::Lanes;
use crate::cpu::simd::{IntegerProducts, Isa, Simd, dispatch, dispatch_integers};
use codes::{Bytes, Codes, Floats, Halves, Kind, Pairs, QUADS_IN_SHORT, Words};

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
    /// Those of the weight fit bytes, and of the rows those of most steps two of these each.
    Halves,
    /// Those of both sides fit words, of the rows those of most steps.
    Words,
}

impl Product<'_> {
    /// The panels from `first` on that `columns` has room for.
    fn run(&self, isa: Isa, first: usize, columns: &mut [[bf16; PANEL]]) {
        match self.integers(isa) {
            Some(integers) => dispatch_integers!(
                isa,
                simd => self.stream_integers(simd, integers, first, columns),
                unreachable!("operands have integers only where there are products of them")
            ),
            None => dispatch!(isa, simd => self.stream(simd, first, columns)),
        }
    }

    /// The same for one instruction set.
    #[inline(always)]
    fn stream<S: Simd>(&self, simd: S, first: usize, columns: &mut [[bf16; PANEL]]) {
        match self.w.as_packed().map(|p| p.bits) {
            None => self.rows(first, columns, Plain { simd, product: self }),
            Some(bits @ 6..) if let Some(element) = self.floats(simd) => {
                let mut rows = Vec::new();
                let kind = Floats::new(simd, &self.tiles[0].0, element, &mut rows);
                match bits {
                    6 => self.coded::<S, _, 6>(simd, kind, first, columns),
                    _ => self.coded::<S, _, 8>(simd, kind, first, columns),
                }
            }
            Some(4) => self.coded::<S, _, 4>(simd, Pairs, first, columns),
            Some(6) => self.coded::<S, _, 6>(simd, Pairs, first, columns),
            Some(_) => self.coded::<S, _, 8>(simd, Pairs, first, columns),
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
            (Integers::Bytes, Some(4)) => self.coded::<S, _, 4>(simd, Bytes, first, columns),
            (Integers::Bytes, Some(6)) => self.coded::<S, _, 6>(simd, Bytes, first, columns),
            (Integers::Bytes, _) => self.coded::<S, _, 8>(simd, Bytes, first, columns),
            (Integers::Halves, Some(4)) => self.coded::<S, _, 4>(simd, Halves, first, columns),
            (Integers::Halves, Some(6)) => self.coded::<S, _, 6>(simd, Halves, first, columns),
            (Integers::Halves, _) => self.coded::<S, _, 8>(simd, Halves, first, columns),
            (Integers::Words, Some(4)) => self.coded::<S, _, 4>(simd, Words(None), first, columns),
            (Integers::Words, Some(6)) => {
                let mut rows = Vec::new();
                let floats = self.floats(simd).map(
                    #[inline(always)]
                    |element| Floats::new(simd, &self.tiles[0].0, element, &mut rows),
                );
                self.coded::<S, _, 6>(simd, Words(floats), first, columns);
            }
            (Integers::Words, _) => self.coded::<S, _, 8>(simd, Words(None), first, columns),
        }
    }

    /// Through codes of `BITS` bits, which become what `kind` says.
    #[inline(always)]
    fn coded<S: Simd, K: Kind<S>, const BITS: usize>(
        &self,
        simd: S,
        kind: K,
        first: usize,
        columns: &mut [[bf16; PANEL]],
    ) {
        self.rows(first, columns, Codes::<_, _, BITS> { simd, product: self, kind });
    }

    /// The weight's format, if its codes can be [taken for f32](Floats) and there is no faster way.
    #[inline(always)]
    fn floats<S: Simd>(&self, simd: S) -> Option<ElementFormat> {
        let (x, w) = (self.tiles[0].0.extent, self.w.extent);
        let element = self.w.as_packed()?.plain_codes?;
        (simd.takes_codes_for_floats(element) && x.has_room_beside(w)).then_some(element)
    }

    /// Which integers both sides can be taken for, in chunks of one step.
    fn integers(&self, isa: Isa) -> Option<Integers> {
        let (x, packed) = (&self.tiles[0].0, self.w.as_packed()?);
        let table = &packed.table;
        // Of bytes up to a ratio, so many as are summed at a time.
        let quads = |largest| {
            quads_in_short(isa, largest, (packed.ratio, packed.bits))
                / if packed.bits == 4 { QUADS_IN_SHORT } else { 1 }
        };
        match (self.chunk, &table.bytes, &table.integers) {
            (STEP, Some(_), _) if !x.bytes.is_empty() => Some(Integers::Bytes),
            (STEP, Some(_), _) if !x.integers.is_empty() && isa.dots_bytes() && quads(ratio(INT8)) > 0 => {
                Some(Integers::Halves)
            }
            (STEP, _, Some(_)) if !x.integers.is_empty() => Some(Integers::Words),
            _ => None,
        }
    }

    #[inline(always)]
    fn rows<W: Way>(&self, first: usize, columns: &mut [[bf16; PANEL]], way: W) {
        const { assert!(FEW == 4) };
        match self.rows {
            1 => {
                // Where a run begins within a group there is less than one left of it.
                let grouped = if first.is_multiple_of(GROUP) { columns.len() / STREAMS * STREAMS } else { 0 };
                let (groups, rest) = columns.split_at_mut(grouped);
                let groups = groups.as_chunks_mut::<STREAMS>().0;
                let alone = first + groups.len() * STREAMS;
                if <W::Simd as Simd>::READS_TOGETHER && self.w.as_packed().is_some_and(|p| p.stride == GROUP) {
                    self.groups::<W, GROUP>(first, groups, &way);
                } else {
                    self.groups::<W, 1>(first, groups, &way);
                }
                self.one_by_one::<1>(alone, rest, &way);
            }
            2 => self.one_by_one::<2>(first, columns, &way),
            3 => self.one_by_one::<3>(first, columns, &way),
            _ => self.one_by_one::<4>(first, columns, &way),
        }
    }

    /// A row by groups of panels.
    #[inline(always)]
    fn groups<W: Way, const STRIDE: usize>(&self, first: usize, groups: &mut [[[bf16; PANEL]; STREAMS]], way: &W) {
        way.simd().vectorize(
            #[inline(always)]
            || {
                for (group, columns) in groups.iter_mut().enumerate() {
                    self.panels::<1, STREAMS, STRIDE>(first + group * STREAMS, columns, way);
                }
            },
        );
    }

    /// `R` rows by one panel after another.
    #[inline(always)]
    fn one_by_one<const R: usize>(&self, first: usize, columns: &mut [[bf16; PANEL]], way: &impl Way) {
        way.simd().vectorize(
            #[inline(always)]
            || {
                for (panel, columns) in columns.chunks_exact_mut(R).enumerate() {
                    self.panels::<R, 1, 0>(first + panel, columns, way);
                }
            },
        );
    }

    /// `R` rows by `P` panels.
    #[inline(always)]
    fn panels<const R: usize, const P: usize, const STRIDE: usize>(
        &self,
        first: usize,
        columns: &mut [[bf16; PANEL]],
        way: &impl Way,
    ) {
        let (simd, totals) = (way.simd(), way.totals::<R, P, STRIDE>(first));
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
    /// The totals of `R` rows by `P` panels from `first` on, whose codes have this [stride](super::panels::Packed::stride), or any one
    /// if it is 0.
    fn totals<const R: usize, const P: usize, const STRIDE: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R];
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
    fn totals<const R: usize, const P: usize, const STRIDE: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let x = &product.tiles[0].0;
        let mut steps = [product.w.plain_steps(first); P];
        for p in 0..P {
            steps[p] = product.w.plain_steps(first + p);
        }
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..product.k).step_by(product.chunk) {
            let end = (start + product.chunk).min(product.k);
            let mut sums = [[simd.splat(0.0); R]; P];
            for step in start / STEP..end.div_ceil(STEP) {
                let rows = x.rows::<R>(step, 0);
                for quad in 0..QUADS {
                    for p in 0..P {
                        let pairs = &steps[p][step];
                        let w = [simd.load_pairs(&pairs[2 * quad].0), simd.load_pairs(&pairs[2 * quad + 1].0)];
                        add_quad(simd, rows, w, quad, &mut sums[p]);
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

/// Adds two pairs of a panel to its sums with all rows.
#[inline(always)]
fn add_quad<S: Simd, const R: usize>(simd: S, x: &[Lanes; R], w: [S::Pairs; 2], quad: usize, sums: &mut [S::F32; R]) {
    for r in 0..R {
        let sum = simd.dot(simd.splat_pairs(x[r].0[2 * quad]), w[0], sums[r]);
        sums[r] = simd.dot(simd.splat_pairs(x[r].0[2 * quad + 1]), w[1], sum);
    }
}

/// Adds the sums of a chunk, by panel, to the totals, each times its power of two.
#[inline(always)]
fn add_scaled<S: Simd, const R: usize, const P: usize>(
    simd: S,
    sums: &[[S::F32; R]; P],
    totals: &mut [[S::F32; P]; R],
    power: impl Fn(usize, usize) -> S::F32,
) {
    for r in 0..R {
        for p in 0..P {
            totals[r][p] = simd.fma(sums[p][r], power(r, p), totals[r][p]);
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

#[cfg(test)]
mod tests {
    use microscale_formats::{E2M1, E3M2, E4M3};

    use super::super::linear::linear;
    use super::super::operand::Operand;
    use super::super::panels::Panels;
    use crate::cpu::simd::codes::GROUP;
    use crate::{BlockFormat, Isa, Linear, Matrix, WeightMatrix};

    fn random(rows: usize, columns: usize) -> Matrix {
        let value = |i: usize| (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(9) as f32 / u32::MAX as f32 - 0.5;
        Matrix::new(rows, columns, (0..rows * columns).map(|i| half::bf16::from_f32(value(i))).collect())
    }

    /// A machine lays codes out in one of two ways; products are the same in both. Whole groups, a part of one and a part of a panel.
    #[test]
    fn products_do_not_depend_on_how_codes_lie() {
        for isa in Isa::available().into_iter().filter(|isa| isa.reads_together()) {
            for element in [E2M1, E3M2, E4M3] {
                let weight = || WeightMatrix::new(random(9 * 16 + 5, 160), Some(BlockFormat::from(element)));
                let [apart, together] = [1, GROUP].map(|stride| Panels::new(weight(), stride));
                for rows in [1, 2, 4, 20] {
                    let x = Operand::new(isa, &random(rows, 160), Some(BlockFormat::from(E4M3)));
                    let product = |weight| linear(isa, &x, [Linear { weight, bias: None }]);
                    assert_eq!(product(&apart), product(&together), "{isa}, {element:?}, {rows} rows");
                }
            }
        }
    }
}
