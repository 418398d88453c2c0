//! How far one distribution over the vocabulary is from another.

use half::bf16;
use microscale_tensor::{Matrix, TokenScore, math};
use rayon::prelude::*;

/// Logits `[tokens, vocabulary]` of a row, with the scores of one target per token.
#[derive(Clone, Copy)]
pub(crate) struct Scored<'a> {
    pub(crate) logits: &'a Matrix,
    pub(crate) scores: &'a [TokenScore],
}

/// For each other row and token the Kullback-Leibler divergence from the first in nats, and whether both have the same
/// token first.
///
/// Σ p (log p − log q) over the vocabulary, p of the first row: with the logits x and y and their log-sums X and Y that
/// is Σ p (x − y) + Y − X. The log-sums follow from the targets' scores. In f64, in order.
pub(crate) fn divergences(first: Scored<'_>, others: &[Scored<'_>], targets: &[u32]) -> Vec<Vec<(f32, bool)>> {
    if others.is_empty() {
        return Vec::new();
    }
    let each: Vec<Vec<(f32, bool)>> = (0..targets.len())
        .into_par_iter()
        .map(|i| {
            let x = first.logits.row(i);
            let sum = |scored: &Scored<'_>| {
                f64::from(scored.logits.row(i)[targets[i] as usize].to_f32()) - scored.scores[i].log_probability
            };
            let log_sum = sum(&first);
            let p: Vec<f64> = x.iter().map(|x| math::exp(f64::from(x.to_f32()) - log_sum)).collect();
            let top = largest(x);
            let other = |other: &Scored<'_>| {
                let y = other.logits.row(i);
                let terms = p.iter().zip(x.iter().zip(y)).map(|(p, (x, y))| p * f64::from(x.to_f32() - y.to_f32()));
                let kl = terms.sum::<f64>() + sum(other) - log_sum;
                (if kl < 0.0 { 0.0 } else { kl as f32 }, largest(y) == top)
            };
            others.iter().map(other).collect()
        })
        .collect();
    (0..others.len()).map(|row| each.iter().map(|token| token[row]).collect()).collect()
}

/// Index of the largest, of equals the first.
fn largest(logits: &[bf16]) -> usize {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, x) in logits.iter().enumerate() {
        if x.to_f32() > best.1 {
            best = (i, x.to_f32());
        }
    }
    best.0
}

#[cfg(test)]
mod tests {
    use microscale_tensor::{Backend, Reference};

    use super::*;

    fn scored(rows: &[&[f32]], targets: &[u32]) -> (Matrix, Vec<TokenScore>) {
        let values = rows.concat().into_iter().map(bf16::from_f32).collect();
        let logits = Matrix::new(rows.len(), rows[0].len(), values);
        let scores = Reference.scores(&logits, targets);
        (logits, scores)
    }

    #[test]
    fn divergence_by_hand() {
        let targets = [2, 0];
        // Softmax of ln 1, ln 1, ln 2 and of three equals; bf16 holds ln 2 as 0.69140625.
        let first = scored(&[&[0.0, 0.0, 0.691_406_25], &[1.0, -1.0, 0.0]], &targets);
        let other = scored(&[&[5.0, 5.0, 5.0], &[1.0, -1.0, 0.0]], &targets);
        let [first, other] = [&first, &other].map(|(logits, scores)| Scored { logits, scores });
        let found = divergences(first, &[other], &targets);
        let e = math::exp(0.691_406_25);
        let p = [1.0 / (2.0 + e), e / (2.0 + e)];
        let expected = 2.0 * p[0] * math::ln(3.0 * p[0]) + p[1] * math::ln(3.0 * p[1]);
        assert!((f64::from(found[0][0].0) - expected).abs() < 1e-7, "{found:?}");
        assert_eq!((found[0][0].1, found[0][1]), (false, (0.0, true)));
    }
}
