//! Whether two rows differ by more than chance, from their verdicts on the same documents.

mod bootstrap;
mod comparison;
mod distribution;
mod divergence;
mod equivalence;

pub use bootstrap::{RESAMPLES, bootstrap_interval, resampled_interval};
pub use comparison::{ALPHA, Comparison, Conclusion, Paired};
pub use divergence::DivergenceSummary;
pub use equivalence::Equivalence;

/// How the verdicts of one row compare with those of another on the same documents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// Documents right under both.
    pub both_right: usize,
    /// Documents wrong under both.
    pub both_wrong: usize,
    /// Documents wrong under the first and right under the second.
    pub gained: usize,
    /// Documents right under the first and wrong under the second.
    pub lost: usize,
}

impl Flips {
    /// Counts pairs of (right under the first, right under the second).
    pub fn of(pairs: impl IntoIterator<Item = (bool, bool)>) -> Self {
        let mut flips = Flips::default();
        for pair in pairs {
            match pair {
                (true, true) => flips.both_right += 1,
                (false, false) => flips.both_wrong += 1,
                (false, true) => flips.gained += 1,
                (true, false) => flips.lost += 1,
            }
        }
        flips
    }

    /// How many documents were judged.
    pub fn documents(&self) -> usize {
        self.both_right + self.both_wrong + self.gained + self.lost
    }

    /// Accuracy under the second less that under the first, in 0…1; NaN over nothing.
    pub fn difference(&self) -> f64 {
        (self.gained as f64 - self.lost as f64) / self.documents() as f64
    }

    /// Both counts together.
    fn and(&self, other: &Flips) -> Flips {
        Flips {
            both_right: self.both_right + other.both_right,
            both_wrong: self.both_wrong + other.both_wrong,
            gained: self.gained + other.gained,
            lost: self.lost + other.lost,
        }
    }

    /// The exact two-sided p of McNemar's test ([`mcnemar_exact`]).
    pub fn p(&self) -> f64 {
        mcnemar_exact(self.gained, self.lost)
    }
}

/// The exact two-sided p of McNemar's test on `gained` and `lost` flips: 2 P(X ≤ min) for X ~ Binomial(n, ½), n their
/// sum, at most 1. Not the mid-p. The relative error stays below about n · 2⁻⁵²; p may underflow to 0.
pub fn mcnemar_exact(gained: usize, lost: usize) -> f64 {
    let n = gained + lost;
    let k = gained.min(lost);
    // P(X = k) = C(n, k) / 2ⁿ, multiplied up factor by factor with as many halvings as keep it near 1.
    let mut at_k = 1.0f64;
    let mut halvings = n;
    for i in 1..=k {
        at_k *= (n - k + i) as f64 / i as f64;
        while at_k >= 1.0 && halvings > 0 {
            at_k *= 0.5;
            halvings -= 1;
        }
    }
    // Past 2^-1100 the smallest double is reached whatever the exact count.
    at_k *= 0.5f64.powi(halvings.min(1100) as i32);
    // P(X ≤ k) / P(X = k), downward from k: each term is the last times i / (n - i + 1).
    let mut term = 1.0f64;
    let mut tail = 1.0f64;
    for i in (1..=k).rev() {
        term *= i as f64 / (n - i + 1) as f64;
        tail += term;
        if term < tail * f64::EPSILON / 16.0 {
            break;
        }
    }
    (2.0 * at_k * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_counts_by_hand() {
        for (gained, lost, p) in [
            (0, 0, 1.0),
            (1, 0, 1.0),
            (0, 2, 0.5),
            (3, 3, 1.0),
            (1, 5, 14.0 / 64.0),
            (8, 2, 2.0 * 56.0 / 1024.0),
            (0, 10, 2.0 / 1024.0),
        ] {
            let found = mcnemar_exact(gained, lost);
            assert!((found - p).abs() < 1e-15, "{gained} {lost}: {found} is not {p}");
            assert_eq!(found, mcnemar_exact(lost, gained));
        }
    }

    #[test]
    fn large_counts_stay_exact() {
        // Python: 2 * sum(math.comb(n, i) for i in range(k + 1)) / 2**n with whole numbers, as a fraction.
        for (gained, lost, p) in LARGE {
            let found = mcnemar_exact(gained, lost);
            assert!((found / p - 1.0).abs() < 1e-10, "{gained} {lost}: {found:e} is not {p:e}");
        }
        assert_eq!(mcnemar_exact(50_000, 50_000), 1.0);
        assert_eq!(mcnemar_exact(0, 100_000), 0.0);
    }

    const LARGE: [(usize, usize, f64); 5] = [
        (480, 523, 0.18475611693327096),
        (900, 1_100, 8.457089535503927e-06),
        (4_900, 5_100, 0.04658552770494739),
        (49_500, 50_500, 0.0015823598788515956),
        (48_000, 52_000, 1.1530938666722977e-36),
    ];

    #[test]
    fn flips_count_both_ways() {
        let flips = Flips::of([(true, true), (true, false), (false, true), (true, false), (false, false)]);
        assert_eq!(flips, Flips { both_right: 1, both_wrong: 1, gained: 1, lost: 2 });
        assert_eq!(flips.p(), 1.0);
    }
}
