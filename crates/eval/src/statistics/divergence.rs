//! How far a row's distributions over the vocabulary are from the first row's, summed up.

use microscale_model::Divergence;

/// Over the tokens of all continuations, each as often as it was scored.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DivergenceSummary {
    /// Tokens scored.
    pub tokens: usize,
    /// Mean Kullback-Leibler divergence of the row from the first one, in nats.
    pub mean: f64,
    /// The value that 99 % of the tokens do not exceed, in nats.
    pub p99: f64,
    /// Share of the tokens at which both rows find the same token most likely.
    pub agreement: f64,
}

impl DivergenceSummary {
    /// Sums up; `None` over nothing.
    pub fn of<'a>(divergences: impl IntoIterator<Item = &'a Divergence>) -> Option<Self> {
        let (mut all, mut agreed) = (Vec::new(), 0);
        for divergence in divergences {
            all.extend_from_slice(&divergence.kl);
            agreed += divergence.agreed;
        }
        let tokens = all.len();
        all.sort_by(f32::total_cmp);
        let p99 = f64::from(*all.get((99 * tokens).div_ceil(100).checked_sub(1)?)?);
        let mean = all.iter().map(|&kl| f64::from(kl)).sum::<f64>() / tokens as f64;
        Some(DivergenceSummary { tokens, mean, p99, agreement: agreed as f64 / tokens as f64 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_tokens() {
        let halves = [
            Divergence { kl: (0..50).map(|i| i as f32).collect(), agreed: 20 },
            Divergence { kl: (50..100).map(|i| i as f32).collect(), agreed: 10 },
        ];
        let found = DivergenceSummary::of(&halves).unwrap();
        assert_eq!(found, DivergenceSummary { tokens: 100, mean: 49.5, p99: 98.0, agreement: 0.3 });
        assert_eq!(DivergenceSummary::of(&[]), None);
    }
}
