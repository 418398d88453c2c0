//! Operations that work on one row at a time. Each equals its twin in [`crate::reference`].

use half::bf16;
use rayon::prelude::*;

use super::bf16::{float, round, rounded};
use crate::cpu::simd::{Isa, dispatch};
use crate::{Matrix, Rotation, TokenScore, math};

/// Applies `f(row index, output row)` to every row of a new matrix, in parallel where it pays.
fn rows(rows: usize, columns: usize, f: impl Fn(usize, &mut [bf16]) + Sync) -> Matrix {
    let mut out = Matrix::zeros(rows, columns);
    let least = (8192 / columns.max(1)).max(1);
    out.values_mut().par_chunks_mut(columns).with_min_len(least).enumerate().for_each(|(i, row)| f(i, row));
    out
}

pub(in crate::cpu) fn gather(x: &Matrix, which: &[u32]) -> Matrix {
    rows(which.len(), x.columns(), |i, row| row.copy_from_slice(x.row(which[i] as usize)))
}

pub(in crate::cpu) fn add(isa: Isa, x: &Matrix, y: &Matrix) -> Matrix {
    assert_eq!((x.rows(), x.columns()), (y.rows(), y.columns()), "matrices to add have one shape");
    rows(x.rows(), x.columns(), |i, row| {
        dispatch!(isa, simd => {
            let _ = simd;
            for ((to, x), y) in row.iter_mut().zip(x.row(i)).zip(y.row(i)) {
                *to = round(float(*x) + float(*y));
            }
        });
    })
}

pub(in crate::cpu) fn gated(isa: Isa, gate: &Matrix, up: &Matrix) -> Matrix {
    assert_eq!((gate.rows(), gate.columns()), (up.rows(), up.columns()), "gate and up have one shape");
    rows(gate.rows(), gate.columns(), |i, row| {
        dispatch!(isa, simd => {
            let _ = simd;
            for ((to, gate), up) in row.iter_mut().zip(gate.row(i)).zip(up.row(i)) {
                let gate = float(*gate);
                let silu = gate / (1.0 + math::exp(f64::from(-gate)) as f32);
                *to = round(rounded(silu) * float(*up));
            }
        });
    })
}

pub(in crate::cpu) fn rms_norm(isa: Isa, x: &Matrix, weight: &[bf16], eps: f32) -> Matrix {
    assert_eq!(x.columns(), weight.len(), "one weight per feature");
    rows(x.rows(), x.columns(), |i, row| {
        let x = x.row(i);
        dispatch!(isa, simd => {
            let _ = simd;
            let reciprocal = 1.0 / (mean_of_squares(x) + eps).sqrt();
            for ((to, x), w) in row.iter_mut().zip(x).zip(weight) {
                *to = round(rounded(float(*x) * reciprocal) * float(*w));
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

pub(in crate::cpu) fn rope(isa: Isa, x: &Matrix, rotation: &Rotation) -> Matrix {
    let dim = rotation.cos.columns();
    assert!(x.columns().is_multiple_of(dim) && rotation.cos.rows() == x.rows(), "heads of the rotation's width");
    rows(x.rows(), x.columns(), |i, row| {
        let (cos, sin) = (rotation.cos.row(i), rotation.sin.row(i));
        dispatch!(isa, simd => {
            let _ = simd;
            for (to, from) in row.chunks_exact_mut(dim).zip(x.row(i).chunks_exact(dim)) {
                rotate(to, from, cos, sin);
            }
        });
    })
}

/// One head: the first half turns with minus the second, the second with the first.
#[inline(always)]
fn rotate(to: &mut [bf16], from: &[bf16], cos: &[bf16], sin: &[bf16]) {
    let half = from.len() / 2;
    let ((first, second), (to_first, to_second)) = (from.split_at(half), to.split_at_mut(half));
    for f in 0..half {
        let turned = rounded(-float(second[f]) * float(sin[f]));
        to_first[f] = round(rounded(float(first[f]) * float(cos[f])) + turned);
    }
    for f in 0..half {
        let turned = rounded(float(first[f]) * float(sin[half + f]));
        to_second[f] = round(rounded(float(second[f]) * float(cos[half + f])) + turned);
    }
}

/// Softmax of the first `n` elements in place, rounded to bf16; what follows up to a multiple of 16, for which the row
/// has room, becomes zero.
#[inline(always)]
pub(in crate::cpu) fn softmax(row: &mut [f32], n: usize) {
    let row = &mut row[..n.next_multiple_of(16)];
    row[n..].fill(f32::NEG_INFINITY); // whose exponential is the zero that adds nothing
    let (vectors, _) = row.as_chunks::<16>();
    let max = largest(vectors.iter().copied());
    for x in row.iter_mut() {
        *x = math::exp(f64::from(*x - max)) as f32;
    }
    let mut lanes = [0f32; 16];
    for vector in row.as_chunks::<16>().0 {
        lanes.iter_mut().zip(vector).for_each(|(lane, x)| *lane += x);
    }
    let reciprocal = 1.0 / fold(lanes);
    for x in row.iter_mut() {
        *x = rounded(*x * reciprocal);
    }
}

/// The largest of all lanes, NaN left out.
#[inline(always)]
fn largest(vectors: impl Iterator<Item = [f32; 16]>) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; 16];
    for vector in vectors {
        for (lane, x) in lanes.iter_mut().zip(vector) {
            *lane = if x > *lane { x } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
}

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
    TokenScore {
        log_probability: f64::from(float(logits[target as usize])) - (f64::from(max) + math::ln(fold(lanes))),
        greedy: logits.iter().position(|&x| float(x) == max) == Some(target as usize),
    }
}

/// Sums sixteen lanes: i with i + 8, then i + 4, i + 2, i + 1.
#[inline(always)]
fn fold<T: Copy + std::ops::AddAssign>(mut lanes: [T; 16]) -> T {
    for width in [8, 4, 2, 1] {
        for i in 0..width {
            let other = lanes[i + width];
            lanes[i] += other;
        }
    }
    lanes[0]
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
