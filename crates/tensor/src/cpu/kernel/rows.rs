//! Operations that work on one row at a time. Each equals its twin in [`crate::reference`].

#![allow(clippy::needless_range_loop, reason = "indices into registers, of lengths the compiler knows")]

use std::sync::LazyLock;

use half::bf16;
use rayon::prelude::*;

use super::bf16::{float, round, rounded};
use super::softmax::{fold, largest};
use crate::cpu::simd::{Isa, dispatch};
use crate::reference::silu;
use crate::{Matrix, Rotation, TokenScore, math};

/// Values of rows that are worth one call.
const BLOCK: usize = 2048;
/// Rows whose norms are found side by side.
const TOGETHER: usize = 8;

/// A new matrix whose rows `f(index of the first, rows)` fills, some at a time, whatever is in them.
fn rows(rows: usize, columns: usize, f: impl Fn(usize, &mut [bf16]) + Sync) -> Matrix {
    in_place(Matrix::reused(rows, columns), f)
}

/// Applies `f(index of the first, rows)` to all rows, some at a time, in parallel where it pays.
fn in_place(mut x: Matrix, f: impl Fn(usize, &mut [bf16]) + Sync) -> Matrix {
    let columns = x.columns().max(1);
    let block = (BLOCK / columns).max(1);
    let least = (8192 / (block * columns)).max(1);
    let blocks = x.values_mut().par_chunks_mut(block * columns).with_min_len(least);
    blocks.enumerate().for_each(|(i, rows)| f(i * block, rows));
    x
}

pub(in crate::cpu) fn gather(x: &Matrix, which: &[u32]) -> Matrix {
    let columns = x.columns();
    rows(which.len(), columns, |first, rows| {
        for (row, &i) in rows.chunks_exact_mut(columns).zip(&which[first..]) {
            row.copy_from_slice(x.row(i as usize));
        }
    })
}

pub(in crate::cpu) fn add(isa: Isa, x: Matrix, y: &Matrix) -> Matrix {
    assert_eq!((x.rows(), x.columns()), (y.rows(), y.columns()), "matrices to add have one shape");
    in_place(x, |first, rows| {
        dispatch!(isa, simd => {
            let (others, last) = values_from(y, first)[..rows.len()].as_chunks();
            let (vectors, rest) = rows.as_chunks_mut();
            for (x, y) in vectors.iter_mut().zip(others) {
                simd.round(simd.add(simd.floats_of(x), simd.floats_of(y)), x);
            }
            for (x, y) in rest.iter_mut().zip(last) {
                *x = round(float(*x) + float(*y));
            }
        });
    })
}

/// The values of all rows from one on.
#[inline(always)]
fn values_from(x: &Matrix, row: usize) -> &[bf16] {
    &x.values()[row * x.columns()..]
}

/// The reference's silu of every bf16, by its bits, and one more number: to look it up spares an exponential in f64 and a division.
static SILU: LazyLock<Box<[bf16; (1 << 16) + 1]>> = LazyLock::new(|| {
    let each = (0..=u16::MAX).map(|bits| bf16::from_f32(silu(float(bf16::from_bits(bits)))));
    let all: Box<[bf16]> = each.chain([bf16::ZERO]).collect();
    all.try_into().expect("one of every number")
});

pub(in crate::cpu) fn gated(isa: Isa, gate: Matrix, up: &Matrix) -> Matrix {
    assert_eq!((gate.rows(), gate.columns()), (up.rows(), up.columns()), "gate and up have one shape");
    let table = &**SILU;
    in_place(gate, |first, rows| {
        dispatch!(isa, simd => {
            let up = &values_from(up, first)[..rows.len()];
            if simd.gathers() {
                let ((vectors, rest), (ups, last)) = (rows.as_chunks_mut(), up.as_chunks());
                for (gate, up) in vectors.iter_mut().zip(ups) {
                    simd.round(simd.mul(simd.look_up(table, gate), simd.floats_of(up)), gate);
                }
                gate_each(table, rest, last);
            } else {
                gate_each(table, rows, up);
            }
        });
    })
}

/// Products of silu of the gates, from its table, with what is beside them, in place.
#[inline(always)]
fn gate_each(table: &[bf16], gates: &mut [bf16], up: &[bf16]) {
    // The look-ups first, one by one; what follows is done in vectors. Were the length of the table known, the compiler would see no
    // need to check bounds and make vectors of look-ups too, which takes twice as long.
    gates.iter_mut().for_each(|gate| *gate = table[usize::from(gate.to_bits())]);
    for (gate, up) in gates.iter_mut().zip(up) {
        *gate = round(float(*gate) * float(*up));
    }
}

pub(in crate::cpu) fn rms_norm(isa: Isa, x: &Matrix, weight: &[bf16], eps: f32) -> Matrix {
    let columns = x.columns();
    assert_eq!(columns, weight.len(), "one weight per feature");
    rows(x.rows(), columns, |first, rows| {
        let x = values_from(x, first);
        dispatch!(isa, simd => {
            let (weights, last_weights) = weight.as_chunks();
            // A sum's last additions, its root and its reciprocal wait for each other: those of some rows are done meanwhile.
            for (rows, x) in rows.chunks_mut(TOGETHER * columns).zip(x.chunks(TOGETHER * columns)) {
                let mut reciprocals = [0.0; TOGETHER];
                for (reciprocal, x) in reciprocals.iter_mut().zip(x.chunks_exact(columns)) {
                    *reciprocal = mean_of_squares(x);
                }
                for reciprocal in &mut reciprocals {
                    *reciprocal = 1.0 / (*reciprocal + eps).sqrt();
                }
                for ((row, x), reciprocal) in rows.chunks_exact_mut(columns).zip(x.chunks_exact(columns)).zip(reciprocals) {
                    let ((row, rest), (x, last), by) = (row.as_chunks_mut(), x.as_chunks(), simd.splat(reciprocal));
                    for ((to, x), w) in row.iter_mut().zip(x).zip(weights) {
                        simd.round(simd.mul(simd.floats_of(x), by), to);
                        simd.round(simd.mul(simd.floats_of(to), simd.floats_of(w)), to);
                    }
                    for ((to, x), w) in rest.iter_mut().zip(last).zip(last_weights) {
                        *to = round(rounded(float(*x) * reciprocal) * float(*w));
                    }
                }
            }
        });
    })
}

/// The reference's sum with its four accumulators of eight lanes side by side.
#[inline(always)]
fn mean_of_squares(x: &[bf16]) -> f32 {
    let (groups, rest) = x.as_chunks::<32>();
    let (mut low, mut high) = ([0f32; 32], [0f32; 32]);
    for sixteen in groups.chunks(16) {
        for group in sixteen {
            for (low, x) in low.iter_mut().zip(group) {
                *low += float(*x) * float(*x);
            }
        }
        if sixteen.len() == 16 {
            for (high, low) in high.iter_mut().zip(&mut low) {
                *high += *low;
                *low = 0.0;
            }
        }
    }
    for (low, high) in low.iter_mut().zip(&high) {
        *low += high;
    }
    let (vectors, tail) = rest.as_chunks::<8>();
    for vector in vectors {
        for (low, x) in low.iter_mut().zip(vector) {
            *low += float(*x) * float(*x);
        }
    }
    let mut total = tail.iter().fold(0f32, |sum, x| sum + float(*x) * float(*x));
    for lane in 0..8 {
        total += ((low[lane] + low[lane + 8]) + low[lane + 16]) + low[lane + 24];
    }
    total / x.len() as f32
}

pub(in crate::cpu) fn rope(isa: Isa, x: Matrix, rotation: &Rotation) -> Matrix {
    let (columns, dim) = (x.columns(), rotation.cos.columns());
    assert!(columns.is_multiple_of(dim) && rotation.cos.rows() == x.rows(), "heads of the rotation's width");
    in_place(x, |first, rows| {
        dispatch!(isa, simd => {
            let _ = simd;
            for (i, row) in (first..).zip(rows.chunks_exact_mut(columns)) {
                let (cos, sin) = (rotation.cos.row(i), rotation.sin.row(i));
                match dim {
                    8 => rotate_small::<4>(row, cos, sin),
                    16 => rotate_small::<8>(row, cos, sin),
                    _ => row.chunks_exact_mut(dim).for_each(#[inline(always)] |head| rotate(head, cos, sin)),
                }
            }
        });
    })
}

/// One head: the first half turns with minus the second, the second with the first.
#[inline(always)]
fn rotate(head: &mut [bf16], cos: &[bf16], sin: &[bf16]) {
    let half = head.len() / 2;
    let (first, second) = head.split_at_mut(half);
    let ((cos_first, cos_second), (sin_first, sin_second)) = (cos.split_at(half), sin.split_at(half));
    let each = first.iter_mut().zip(second).zip(cos_first.iter().zip(cos_second)).zip(sin_first.iter().zip(sin_second));
    for (((first, second), (cos_first, cos_second)), (sin_first, sin_second)) in each {
        let (x, y) = (float(*first), float(*second));
        *first = turn(x, -y, *cos_first, *sin_first);
        *second = turn(y, x, *cos_second, *sin_second);
    }
}

#[inline(always)]
fn turn(x: f32, other: f32, cos: bf16, sin: bf16) -> bf16 {
    round(rounded(x * float(cos)) + rounded(other * float(sin)))
}

/// [`rotate`] of all heads of a row where these have `2 · HALF` features, of which a vector holds a few heads.
#[inline(always)]
fn rotate_small<const HALF: usize>(row: &mut [bf16], cos: &[bf16], sin: &[bf16]) {
    let (cos, sin) = (&cos[..2 * HALF], &sin[..2 * HALF]);
    let (mut all_cos, mut all_sin) = ([bf16::ZERO; VECTOR], [bf16::ZERO; VECTOR]);
    for i in 0..VECTOR {
        (all_cos[i], all_sin[i]) = (cos[i % (2 * HALF)], sin[i % (2 * HALF)]);
    }
    let (vectors, rest) = row.as_chunks_mut::<VECTOR>();
    for vector in vectors {
        let (mut x, mut other) = ([0.0; VECTOR], [0.0; VECTOR]);
        for i in 0..VECTOR {
            x[i] = float(vector[i]);
        }
        for i in 0..VECTOR {
            other[i] = if i & HALF == 0 { -x[i + HALF] } else { x[i - HALF] };
        }
        for i in 0..VECTOR {
            vector[i] = turn(x[i], other[i], all_cos[i], all_sin[i]);
        }
    }
    rest.chunks_exact_mut(2 * HALF).for_each(
        #[inline(always)]
        |head| rotate(head, cos, sin),
    );
}

/// Features that are turned together.
const VECTOR: usize = 16;

pub(in crate::cpu) fn scores(isa: Isa, logits: &Matrix, targets: &[u32]) -> Vec<TokenScore> {
    assert_eq!(logits.rows(), targets.len(), "one target per row of logits");
    let least = (8192 / logits.columns().max(1)).max(1);
    let each = targets.par_iter().with_min_len(least).enumerate();
    each.map(|(i, &target)| dispatch!(isa, simd => { let _ = simd; score(logits.row(i), target) })).collect()
}

#[inline(always)]
fn score(logits: &[bf16], target: u32) -> TokenScore {
    let (vectors, tail) = logits.as_chunks::<16>();
    let max = largest(vectors.iter().map(|v| v.map(float)));
    let max = tail.iter().fold(max, |m, &x| if float(x) > m { float(x) } else { m });
    let mut lanes = [0f64; 16];
    for vector in vectors {
        lanes.iter_mut().zip(vector).for_each(|(lane, &x)| *lane += math::exp(f64::from(float(x) - max)));
    }
    lanes.iter_mut().zip(tail).for_each(|(lane, &x)| *lane += math::exp(f64::from(float(x) - max)));
    let target_logit = float(logits[target as usize]);
    // Of several largest the first one counts. Sixteen are compared at once, with no way out between them.
    let greedy = target_logit == max && {
        let (vectors, rest) = logits[..target as usize].as_chunks::<16>();
        vectors.iter().all(|v| v.iter().fold(true, |all, &x| all & (float(x) != max)))
            && rest.iter().all(|&x| float(x) != max)
    };
    TokenScore { log_probability: f64::from(target_logit) - (f64::from(max) + math::ln(fold(lanes))), greedy }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bit for bit: after the division, root and rounding of the whole norm, a sum in another order rarely shows.
    #[test]
    fn squares_are_summed_in_the_reference_s_order() {
        for n in [1, 7, 8, 31, 32, 100, 512, 1000, 4104] {
            for seed in 0..20u32 {
                let hash = |i: usize| (i as u32 + 977 * seed).wrapping_mul(0x9E37_79B9).rotate_left(13);
                let row: Vec<bf16> = (0..n).map(|i| bf16::from_f32((hash(i) >> 8) as f32 / 1e6 - 8.0)).collect();
                let floats: Vec<f32> = row.iter().map(|x| x.to_f32()).collect();
                let expected = crate::reference::mean_of_squares(&floats);
                assert_eq!(mean_of_squares(&row).to_bits(), expected.to_bits(), "{n} values");
            }
        }
    }
}
