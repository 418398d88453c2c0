//! The ways through packed codes: what these become before they are multiplied.

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::ops::Range;

use microscale_formats::ElementFormat;

use super::super::floats::{FloatRow, float_row};
use super::super::linear::Product;
use super::super::panels::{Packed, PanelCodes, PanelScales};
use super::super::product::HALF;
use super::super::sides::{PANEL, STEP, StepIntegers, XTile, block_of};
use super::{Way, add_quad, add_scaled, lanes};
use crate::cpu::simd::codes::{GROUP, QUADS, StepCodes, exponent_of_codes};
use crate::cpu::simd::{AHEAD, IntegerProducts, Simd};

/// Through codes of `BITS` bits.
pub(super) struct Codes<'a, S, K, const BITS: usize> {
    pub(super) simd: S,
    pub(super) product: &'a Product<'a>,
    pub(super) kind: K,
}

/// What codes become.
pub(super) trait Kind<S: Simd>: Copy {
    /// How far ahead memory is asked for codes of so many bits that lie in one stream, which the machine's own prefetchers mostly keep up
    /// with.
    fn ahead(_bits: usize) -> Option<[usize; 2]> {
        None
    }

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
    /// Several panels are a group.
    codes: [PanelCodes<'a>; P],
    scales: [PanelScales<'a>; P],
    /// How far ahead in a panel's stream memory is asked for codes, where it is.
    ahead: Option<[usize; 2]>,
}

/// Pairs of bf16.
#[derive(Clone, Copy)]
pub(super) struct Pairs;

/// Codes of 6 or 8 bits taken for f32, whose values are larger by a power of two, its root taken into the rows.
#[derive(Clone, Copy)]
pub(super) struct Floats<'a> {
    fraction_bits: u32,
    root: f32,
    /// `[step][row]`, times the root.
    rows: &'a [FloatRow],
}

/// Integers of 8 bits. A chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Bytes;

/// Integers of 8 bits, those of the rows in two parts of as many, in steps where the sums are exact; pairs of bf16 in others. A
/// chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Halves;

/// Integers of 16 bits in steps where the sums are exact; in others f32, if codes can be taken for these, or else pairs of bf16. A
/// chunk is a step.
#[derive(Clone, Copy)]
pub(super) struct Words<'a>(pub(super) Option<Floats<'a>>);

impl<S: Simd, K: Kind<S>, const BITS: usize> Way for Codes<'_, S, K, BITS> {
    type Simd = S;
    #[inline(always)]
    fn simd(&self) -> S {
        self.simd
    }
    #[inline(always)]
    fn totals<const R: usize, const P: usize, const STRIDE: usize>(&self, first: usize) -> [[[f32; PANEL]; P]; R] {
        let (simd, product) = (self.simd, self.product);
        let packed = product.w.as_packed().expect("the way through codes is taken for packed weights");
        let x = &product.tiles[0].0;
        let codes = packed.codes(first).with_stride::<STRIDE>();
        let ahead = if codes.stride() > 1 { K::ahead(BITS) } else { Some(AHEAD) };
        let mut sides = Sides { x, packed, codes: [codes; P], scales: [packed.scales(first); P], ahead };
        for p in 1..P {
            sides.codes[p] = packed.codes(first + p).with_stride::<STRIDE>();
            sides.scales[p] = packed.scales(first + p);
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
        let mut sums = [[simd.splat(0.0); R]; P];
        for step in chunk.start / STEP..chunk.end.div_ceil(STEP) {
            let rows = x.rows::<R>(step, 0);
            sides.quads::<S, BITS, 2, _>(
                simd,
                step,
                &mut sums,
                #[inline(always)]
                |sums, codes, quad| {
                    add_quad(simd, rows, simd.decode::<BITS>(&packed.table, codes, quad), quad, sums);
                },
                #[inline(always)]
                |sums| settle_floats(simd, sums),
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

impl<'a> Floats<'a> {
    /// For a few rows of `x` and weights of a format, all of whose codes are numbers; `rows` is room for these.
    #[inline(always)]
    pub(super) fn new<S: Simd>(simd: S, x: &XTile<'_>, element: ElementFormat, rows: &'a mut Vec<FloatRow>) -> Self {
        let root = f32::from_bits(((127 + exponent_of_codes(element) / 2) as u32) << 23);
        rows.resize(x.lanes.len(), FloatRow::default());
        for (lanes, row) in x.lanes.iter().zip(&mut *rows) {
            *row = float_row(simd, lanes, Some(simd.splat(root)));
        }
        Floats { fraction_bits: element.mantissa_bits(), root, rows }
    }
}

impl<S: Simd> Kind<S> for Floats<'_> {
    #[inline(always)]
    fn add<const BITS: usize, const R: usize, const P: usize>(
        self,
        simd: S,
        sides: &Sides<'_, P>,
        chunk: Range<usize>,
        totals: &mut [[S::F32; P]; R],
    ) {
        let mut sums = [[simd.splat(0.0); R]; P];
        for step in chunk.start / STEP..chunk.end.div_ceil(STEP) {
            let rows = &self.rows[step * R..][..R];
            sides.quads::<S, BITS, 2, _>(
                simd,
                step,
                &mut sums,
                #[inline(always)]
                |sums, codes, quad| {
                    let w = simd.floats_of_codes::<BITS>(self.fraction_bits, codes, quad);
                    for r in 0..R {
                        for pair in 0..2 {
                            for half in 0..2 {
                                let x = simd.splat(rows[r][half][2 * quad + pair]);
                                sums[r] = simd.fma(x, w[pair][half], sums[r]);
                            }
                        }
                    }
                },
                #[inline(always)]
                |sums| settle_floats(simd, sums),
            );
        }
        let powers = sides.powers(simd, chunk.start);
        add_scaled(
            simd,
            &sums,
            totals,
            #[inline(always)]
            |r, p| simd.mul(powers[p], simd.splat(sides.x.power(chunk.start, r) * self.root)),
        );
    }
}

/// Sums of products of bytes of some rows with a panel.
#[derive(Clone, Copy)]
struct ByteSums<S: IntegerProducts, const R: usize> {
    short: [S::Short; R],
    /// Without what is in the short ones.
    long: [S::I32; R],
}

/// Quads whose products codes of 4 bits keep so small that [`IntegerProducts::Short`] holds their sums, whatever they are
/// multiplied by; [`Product::integers`] sees to it.
pub(super) const QUADS_IN_SHORT: usize = 4;

impl<S: IntegerProducts, const R: usize> ByteSums<S, R> {
    #[inline(always)]
    fn new(simd: S, starts: [S::I32; R]) -> Self {
        ByteSums { short: [simd.short(starts[0]); R], long: starts }
    }

    /// Adds the products with a quad's bytes.
    #[inline(always)]
    fn add<const BITS: usize>(&mut self, simd: S, row: impl Fn(usize) -> u32, (w, quad): (S::Pairs, usize)) {
        for r in 0..R {
            if BITS != 4 || S::SHORT == i32::MAX {
                self.long[r] = simd.dot_bytes(row(r), w, self.long[r]);
                continue;
            }
            if quad.is_multiple_of(QUADS_IN_SHORT) {
                self.short[r] = simd.short(self.long[r]);
            }
            self.short[r] = simd.dot_bytes_short(row(r), w, self.short[r]);
            if quad % QUADS_IN_SHORT == QUADS_IN_SHORT - 1 {
                self.long[r] = simd.long(self.short[r], self.long[r]);
            }
        }
    }

    /// [`IntegerProducts::settled_integers`] of all of them.
    #[inline(always)]
    fn settle(&mut self, simd: S) {
        for r in 0..R {
            self.short[r] = simd.settled_short(self.short[r]);
            self.long[r] = simd.settled_integers(self.long[r]);
        }
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
        let mut starts = [simd.start(0); R];
        for r in 0..R {
            starts[r] = simd.start_beside(rows[r].start, BITS);
        }
        let mut sums = [ByteSums::new(simd, starts); P];
        sides.quads::<S, BITS, 1, _>(
            simd,
            step,
            &mut sums,
            #[inline(always)]
            |sums, codes, quad| {
                let w = simd.bytes::<BITS>(table, codes, quad);
                sums.add::<BITS>(
                    simd,
                    #[inline(always)]
                    |r| rows[r].quads[quad],
                    (w, quad),
                );
            },
            #[inline(always)]
            |sums| sums.settle(simd),
        );
        sides.add_exact(
            simd,
            chunk.start,
            #[inline(always)]
            |r, p| simd.float(sums[p].long[r]),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<S: IntegerProducts> Kind<S> for Halves {
    fn ahead(bits: usize) -> Option<[usize; 2]> {
        // With codes of four bits a tenth faster than without, for all that has been found: the second-level cache only.
        (bits == 4).then_some([0, 6144])
    }

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
        let mut starts = [ByteSums::new(simd, [simd.start(0); R]); 2];
        for half in 0..2 {
            for r in 0..R {
                starts[half].long[r] = simd.start_beside(rows[r].starts[half], BITS);
            }
        }
        let mut sums = [starts; P];
        sides.quads::<S, BITS, 1, _>(
            simd,
            step,
            &mut sums,
            #[inline(always)]
            |sums, codes, quad| {
                let w = simd.bytes::<BITS>(table, codes, quad);
                for half in 0..2 {
                    sums[half].add::<BITS>(
                        simd,
                        #[inline(always)]
                        |r| rows[r].halves[half][quad],
                        (w, quad),
                    );
                }
            },
            #[inline(always)]
            |[lower, upper]| {
                lower.settle(simd);
                upper.settle(simd);
            },
        );
        let upper = simd.splat(256.0);
        sides.add_exact(
            simd,
            chunk.start,
            // Both parts are exact in f32, and so is their sum, as the norms say.
            #[inline(always)]
            |r, p| simd.fma(simd.float(sums[p][1].long[r]), upper, simd.float(sums[p][0].long[r])),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<S: IntegerProducts> Kind<S> for Words<'_> {
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
            return match self.0 {
                Some(floats) => floats.add::<BITS, R, P>(simd, sides, chunk, totals),
                None => Pairs.add::<BITS, R, P>(simd, sides, chunk, totals),
            };
        }
        let table = packed.table.integers.as_ref().expect("the way through words is taken where there are some");
        let mut sums = [[simd.start(0); R]; P];
        sides.quads::<S, BITS, 2, _>(
            simd,
            step,
            &mut sums,
            #[inline(always)]
            |sums, codes, quad| {
                let w = simd.integers::<BITS>(table, codes, quad);
                for r in 0..R {
                    let sum = simd.dot_integers(rows[r].pairs[2 * quad], w[0], sums[r]);
                    sums[r] = simd.dot_integers(rows[r].pairs[2 * quad + 1], w[1], sum);
                }
            },
            #[inline(always)]
            |sums| settle(simd, sums),
        );
        sides.add_exact(
            simd,
            chunk.start,
            #[inline(always)]
            |r, p| simd.float(sums[p][r]),
            #[inline(always)]
            |r| rows[r].unit,
            totals,
        );
    }
}

impl<const P: usize> Sides<'_, P> {
    /// Calls `add(sums of the panel, its codes of the step, quad)` for all quads of a step and all panels, and asks for the lines that
    /// come next. `settle` is told of sums that are done with a line ([`Simd::settled`]). Where registers are few, `N` panels are done
    /// with the step before the next.
    #[inline(always)]
    fn quads<S: Simd, const BITS: usize, const N: usize, T: Copy>(
        &self,
        simd: S,
        step: usize,
        sums: &mut [T; P],
        mut add: impl FnMut(&mut T, StepCodes<'_>, usize),
        mut settle: impl FnMut(&mut T),
    ) {
        let mut here = [self.codes[0].step::<BITS>(step); P];
        for p in 1..P {
            here[p] = self.codes[0].beside(p, self.codes[p]).step::<BITS>(step);
        }
        let ahead = self.ahead.map(
            #[inline(always)]
            |[mut near, mut far]| {
                if P == GROUP {
                    near += self.codes[0].skip::<BITS>(step, near);
                    far += self.codes[0].skip::<BITS>(step, far);
                }
                [near, far]
            },
        );
        if S::ROWS < HALF {
            // The registers hold the sums of few panels and what decodes their codes.
            if P.is_multiple_of(N) {
                some_at_a_time::<S, BITS, N, P, T>(simd, (here, ahead), sums, add, settle);
            } else {
                some_at_a_time::<S, BITS, 1, P, T>(simd, (here, ahead), sums, add, settle);
            }
            return;
        }
        for first in (0..QUADS).step_by(4) {
            four::<4>(
                #[inline(always)]
                |quad| {
                    let quad = first + quad;
                    // Two quads of four bits share a line: a panel is done with it before the next line is read.
                    let together = if BITS == 4 { 2 } else { 1 };
                    if quad % together > 0 {
                        return;
                    }
                    four::<P>(
                        #[inline(always)]
                        |p| ask::<S, BITS>(simd, here[p], quad / together, ahead),
                    );
                    four::<P>(
                        #[inline(always)]
                        |p| {
                            for quad in quad..quad + together {
                                add(&mut sums[p], here[p], quad);
                            }
                        },
                    );
                    four::<P>(
                        #[inline(always)]
                        |p| settle(&mut sums[p]),
                    );
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
            let scales = self.scales[p].block(block);
            powers[p] = if self.packed.scales_are_normal { simd.normal_powers(scales) } else { simd.powers(scales) };
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

/// All quads of the step that begins `here` in each panel, `N` panels at a time.
#[inline(always)]
fn some_at_a_time<S: Simd, const BITS: usize, const N: usize, const P: usize, T: Copy>(
    simd: S,
    (here, ahead): ([StepCodes<'_>; P], Option<[usize; 2]>),
    sums: &mut [T; P],
    mut add: impl FnMut(&mut T, StepCodes<'_>, usize),
    mut settle: impl FnMut(&mut T),
) {
    for (here, sums) in here.as_chunks::<N>().0.iter().zip(sums.as_chunks_mut::<N>().0) {
        let mut own = *sums;
        for first in (0..QUADS).step_by(4) {
            four::<4>(
                #[inline(always)]
                |quad| {
                    for n in 0..N {
                        ask::<S, BITS>(simd, here[n], first + quad, ahead);
                        add(&mut own[n], here[n], first + quad);
                    }
                    for n in 0..N {
                        settle(&mut own[n]);
                    }
                },
            );
        }
        *sums = own;
    }
}

/// Asks for what comes so far after a line of codes, if there is one.
#[inline(always)]
fn ask<S: Simd, const BITS: usize>(simd: S, codes: StepCodes<'_>, line: usize, ahead: Option<[usize; 2]>) {
    if let Some(ahead) = ahead
        && line < BITS
    {
        simd.prefetch_ahead(codes.line(line), ahead);
    }
}

/// [`Simd::settled`] of some sums.
#[inline(always)]
fn settle_floats<S: Simd, const R: usize>(simd: S, sums: &mut [S::F32; R]) {
    for r in 0..R {
        sums[r] = simd.settled(sums[r]);
    }
}

/// [`IntegerProducts::settled_integers`] of some sums.
#[inline(always)]
fn settle<S: IntegerProducts, const R: usize>(simd: S, sums: &mut [S::I32; R]) {
    for r in 0..R {
        sums[r] = simd.settled_integers(sums[r]);
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
