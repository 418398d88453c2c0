//! The ways through packed codes: what these become before they are multiplied.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use super::super::linear::Product;
use super::super::panels::{GROUP, Packed, PanelScales, step_codes};
use super::super::product::HALF;
use super::super::sides::{PANEL, STEP, StepIntegers, XTile, block_of};
use super::{Way, add_quad, add_scaled, lanes};
use crate::cpu::simd::codes::QUADS;
use crate::cpu::simd::{AHEAD, IntegerProducts, Simd};

/// Through codes of `BITS` bits.
pub(super) struct Codes<'a, S, K, const BITS: usize> {
    pub(super) simd: S,
    pub(super) product: &'a Product<'a>,
    pub(super) kind: K,
}

/// What codes become.
pub(super) trait Kind<S: Simd>: Copy {
    /// Adds the products of elements `chunk` of `R` rows and `P` panels to the totals.
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    );
}

/// A few rows and some panels.
pub(super) struct Sides<'a, const P: usize> {
    x: &'a XTile<'a>,
    packed: &'a Packed,
    codes: [&'a [u8]; P],
    scales: [PanelScales<'a>; P],
}

/// Pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// Integers of 8 bits. A chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

/// Integers of 8 bits, those of the rows in two parts of as many, in steps where the sums are exact; pairs of bf16 in others. A
/// chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Halves;

/// Integers of 16 bits in steps where the sums are exact, pairs of bf16 in others. A chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Words;

impl<S: Simd, K: Kind<S>, const BITS: usize> Way for Codes<'_, S, K, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let packed = product.w.as_packed().expect("the way through codes is taken for packed weights");
        let x = &product.tiles[0].0;
        let mut sides = Sides { x, packed, codes: [&[]; P], scales: [packed.scales(first); P] };
        for p in 0..P {
            (sides.codes[p], sides.scales[p]) = (packed.codes(first + p), packed.scales(first + p));
        }
        let mut totals = [[simd.splat(0.0); P]; R];
        for start in (0..product.k).step_by(product.chunk) {
            let chunk = start..(start + product.chunk).min(product.k);
            self.kind.add::<BITS, R, P>(simd, &sides, chunk, &mut totals);
        }
        lanes(simd, &totals)
    }
}

impl<S: Simd> Kind<S> for Pairs {
    #[inline(always)]
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    ) {
        let &Sides { x, packed, .. } = sides;
        let mut sums = [[simd.splat(0.0); P]; R];
        for step in chunk.start / STEP..chunk.end.div_ceil(STEP) {
            let rows = x.rows::<R>(step, 0);
            sides.quads::<S, BITS>(
                simd,
                step,
                #[inline(always)]
                |codes, quad, done| {
                    four::<P>(
                        #[inline(always)]
                        |p| {
                            let w = simd.decode::<BITS>(&packed.table, codes[p], quad);
                            add_quad(simd, rows, w, quad, (&mut sums, p));
                        },
                    );
                    settle(
                        done,
                        &mut sums,
                        #[inline(always)]
                        |sum| simd.settled(sum),
                    );
                },
            );
        }
        let powers = sides.powers(simd, chunk.start);
        add_scaled(
            simd,
            &sums,
            totals,
            #[inline(always)]
            |r, p| simd.mul(powers[p], simd.splat(x.power(chunk.start, r))),
        );
    }
}

impl<S: IntegerProducts> Kind<S> for Bytes {
    #[inline(always)]
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    ) {
        let (&Sides { x, packed, .. }, step) = (sides, chunk.start / STEP);
        let table = packed.table.bytes.as_ref().expect("the way through bytes is taken where there are some");
        let rows = &x.bytes[step * R..][..R];
        let mut sums = [[simd.start(0); P]; R];
        for r in 0..R {
            sums[r] = [simd.start(rows[r].start); P];
        }
        sides.quads::<S, BITS>(
            simd,
            step,
            #[inline(always)]
            |codes, quad, done| {
                four::<P>(
                    #[inline(always)]
                    |p| {
                        let w = simd.bytes::<BITS>(table, codes[p], quad);
                        for r in 0..R {
                            sums[r][p] = simd.dot_bytes(rows[r].quads[quad], w, sums[r][p]);
                        }
                    },
                );
                settle(
                    done,
                    &mut sums,
                    #[inline(always)]
                    |sum| simd.settled_integers(sum),
                );
            },
        );
        sides.add_exact(
            simd,
            chunk.start,
            #[inline(always)]
            |r, p| simd.float(sums[r][p]),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<S: IntegerProducts> Kind<S> for Halves {
    #[inline(always)]
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    ) {
        let (&Sides { x, packed, .. }, step) = (sides, chunk.start / STEP);
        let rows = &x.integers[step * R..][..R];
        if largest_norm(rows) > packed.limit.min(StepIntegers::HALVES) {
            return Pairs.add::<BITS, R, P>(simd, sides, chunk, totals);
        }
        let table = packed.table.bytes.as_ref().expect("the way through bytes is taken where there are some");
        let mut sums = [[[simd.start(0); P]; R]; 2];
        for half in 0..2 {
            for r in 0..R {
                sums[half][r] = [simd.start(rows[r].starts[half]); P];
            }
        }
        sides.quads::<S, BITS>(
            simd,
            step,
            #[inline(always)]
            |codes, quad, done| {
                four::<P>(
                    #[inline(always)]
                    |p| {
                        let w = simd.bytes::<BITS>(table, codes[p], quad);
                        for half in 0..2 {
                            for r in 0..R {
                                let sum = sums[half][r][p];
                                sums[half][r][p] = simd.dot_bytes(rows[r].halves[half][quad], w, sum);
                            }
                        }
                    },
                );
                for sums in &mut sums {
                    settle(
                        done,
                        sums,
                        #[inline(always)]
                        |sum| simd.settled_integers(sum),
                    );
                }
            },
        );
        let upper = simd.splat(256.0);
        sides.add_exact(
            simd,
            chunk.start,
            // Both parts are exact in f32, and so is their sum, as the norms say.
            #[inline(always)]
            |r, p| simd.fma(simd.float(sums[1][r][p]), upper, simd.float(sums[0][r][p])),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<S: IntegerProducts> Kind<S> for Words {
    #[inline(always)]
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    ) {
        let (&Sides { x, packed, .. }, step) = (sides, chunk.start / STEP);
        let rows = &x.integers[step * R..][..R];
        if largest_norm(rows) > packed.limit.min(f32::from(i16::MAX)) {
            return Pairs.add::<BITS, R, P>(simd, sides, chunk, totals);
        }
        let table = packed.table.integers.as_ref().expect("the way through words is taken where there are some");
        let mut sums = [[simd.start(0); P]; R];
        sides.quads::<S, BITS>(
            simd,
            step,
            #[inline(always)]
            |codes, quad, done| {
                four::<P>(
                    #[inline(always)]
                    |p| {
                        let w = simd.integers::<BITS>(table, codes[p], quad);
                        for r in 0..R {
                            let sum = simd.dot_integers(rows[r].pairs[2 * quad], w[0], sums[r][p]);
                            sums[r][p] = simd.dot_integers(rows[r].pairs[2 * quad + 1], w[1], sum);
                        }
                    },
                );
                settle(
                    done,
                    &mut sums,
                    #[inline(always)]
                    |sum| simd.settled_integers(sum),
                );
            },
        );
        sides.add_exact(
            simd,
            chunk.start,
            #[inline(always)]
            |r, p| simd.float(sums[r][p]),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<const P: usize> Sides<'_, P> {
    /// Calls `f(codes of the step, by panel; quad; whether a line ends)` for all quads of a step, and asks for the lines that come
    /// next.
    #[inline(always)]
    fn quads<S: Simd, const BITS: usize>(&self, simd: S, step: usize, mut f: impl FnMut(&[&[u8]; P], usize, bool)) {
        let mut here = self.codes;
        for codes in &mut here {
            *codes = step_codes::<BITS>(codes, step);
        }
        // After a panel the same one of the next group is read.
        let length = self.codes[0].len();
        let left = length - step * here[0].len();
        let skips = AHEAD.map(
            #[inline(always)]
            |ahead| if left > ahead { 0 } else { (P - 1) * length },
        );
        for first in (0..QUADS).step_by(4) {
            four::<4>(
                #[inline(always)]
                |quad| {
                    let quad = first + quad;
                    four::<P>(
                        #[inline(always)]
                        |p| {
                            if let Some(line) = here[p].as_chunks::<64>().0.get(quad) {
                                simd.prefetch_past(line, skips);
                            }
                        },
                    );
                    // Two quads of four bits share a line, which is kept for both where there are registers for that.
                    f(&here, quad, BITS > 4 || quad % 2 == 1 || S::ROWS < HALF);
                },
            );
        }
    }

    /// The scales of the block that holds element `k`.
    #[inline(always)]
    fn powers<S: Simd>(&self, simd: S, k: usize) -> [S::F32; P] {
        const { assert!(P == 1 || P == GROUP) };
        let block = block_of(k, self.packed.block_size);
        simd.prefetch(self.scales[0].block(block));
        let mut powers = [simd.splat(1.0); P];
        for p in 0..P {
            powers[p] = simd.powers(self.scales[p].block(block));
        }
        powers
    }

    /// Adds the exact sums of the step that begins with element `k` to the totals: `sum(r, p)` of row r and panel p, in units of
    /// `unit(r)` and of the weight's format.
    #[inline(always)]
    fn add_exact<S: Simd, const R: usize>(
        &self,
        simd: S,
        k: usize,
        sum: impl Fn(usize, usize) -> S::F32,
        unit: impl Fn(usize) -> f32,
        totals: &mut [[S::F32; P]; R],
    ) {
        let powers = self.powers(simd, k);
        for r in 0..R {
            let x = simd.splat(unit(r) * self.packed.unit);
            for p in 0..P {
                totals[r][p] = simd.fma(sum(r, p), simd.mul(powers[p], x), totals[r][p]);
            }
        }
    }
}

/// The largest norm of some rows' steps: none of their integers is larger.
#[inline(always)]
fn largest_norm(rows: &[StepIntegers]) -> f32 {
    rows.iter().fold(
        0f32,
        #[inline(always)]
        |largest, row| largest.max(row.norm),
    )
}

/// [`Simd::settled`], as `settled` does it, for all sums where they are done with a line.
#[inline(always)]
fn settle<T: Copy, const R: usize, const P: usize>(done: bool, sums: &mut [[T; P]; R], settled: impl Fn(T) -> T) {
    if done {
        for r in 0..R {
            for p in 0..P {
                sums[r][p] = settled(sums[r][p]);
            }
        }
    }
}

/// Calls `f` for the first `N` of four, one or all: written out, as the compiler leaves a loop over large bodies what it is, and
/// what that adds up in memory.
#[inline(always)]
fn four<const N: usize>(mut f: impl FnMut(usize)) {
    const { assert!(N == 1 || N == 4) };
    f(0);
    if N == 4 {
        f(1);
        f(2);
        f(3);
    }
}
