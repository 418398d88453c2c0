//! Two one-sided tests: whether a difference is smaller than a margin.

use super::Flips;
use super::distribution::{Z_80, Z_95, Z_975, normal_above, student_above};

/// What two one-sided tests say of the mean of the tasks' differences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Equivalence {
    /// The larger p of two paired one-sided t-tests, against −margin and +margin (Schuirmann 1987): for one task, the
    /// p of statsmodels' `ttost_paired` on the documents' zeros and ones.
    pub t: f64,
    /// The larger p of two score tests, whose variance is that under −margin and +margin (Tango 1998; over several
    /// tasks each difference is moved by the same amount). Where nearly all flips go one way the t-test declares
    /// equivalence too easily; this one does not.
    pub score: f64,
}

impl Equivalence {
    /// Tests the mean over `tasks` against `margin`, in 0…1.
    pub fn test(tasks: &[Flips], margin: f64) -> Self {
        let k = tasks.len() as f64;
        let difference = tasks.iter().map(Flips::difference).sum::<f64>() / k;
        let (mut variance, mut spread) = (0.0, 0.0);
        for flips in tasks {
            let (n, own) = (flips.documents() as f64, flips.variance());
            let part = own / n / (k * k);
            variance += part;
            spread += part * part / (n - 1.0); // Satterthwaite's degrees of freedom
        }
        let error = variance.sqrt();
        let freedom = if spread > 0.0 { variance * variance / spread } else { f64::INFINITY };
        let side = |distance: f64| match (error > 0.0, distance > 0.0) {
            (true, _) if freedom.is_finite() => student_above(distance / error, freedom),
            (_, true) => 0.0, // no document flips: the difference is what it is
            _ => 1.0,
        };
        let score = |at: f64| {
            let moved = |flips: &Flips| flips.variance_at(flips.difference() + at - difference) / (k * k);
            let distance = if at < 0.0 { difference - at } else { at - difference };
            normal_above(distance / tasks.iter().map(moved).sum::<f64>().sqrt())
        };
        Equivalence {
            t: side(difference + margin).max(side(margin - difference)),
            score: score(-margin).max(score(margin)),
        }
    }

    /// The larger of the two: below 0.05 the difference is inside the margin by both tests.
    pub fn p(&self) -> f64 {
        self.t.max(self.score)
    }
}

impl Flips {
    /// Sample variance (n − 1) of the documents' differences of −1, 0 and 1.
    fn variance(&self) -> f64 {
        let n = self.documents() as f64;
        let difference = self.difference();
        ((self.gained + self.lost) as f64 - n * difference * difference) / (n - 1.0)
    }

    /// Variance of the mean difference if the true one were `at`: the share of losses that is then most likely (Tango
    /// 1998), and with it the spread of a document's difference, over n.
    fn variance_at(&self, at: f64) -> f64 {
        let (n, gained, lost) = (self.documents() as f64, self.gained as f64, self.lost as f64);
        let at = at.clamp(-1.0, 1.0);
        // 2n q² + b q + c = 0 for the share q of losses.
        let b = -gained - lost + (2.0 * n - gained + lost) * at;
        let c = -lost * at * (1.0 - at);
        let losses = ((b * b - 8.0 * n * c).max(0.0).sqrt() - b) / (4.0 * n);
        (2.0 * losses + at * (1.0 - at)) / n
    }
}

/// How many documents in all, of the same kinds in the same proportion, would settle the matter with a chance of 80 %
/// if the shares of gained and lost documents stayed as they are: by the equivalence tests or by the test for a
/// difference, whichever needs fewer. `None` where no number up to 10⁹ would.
pub(super) fn documents_needed(tasks: &[Flips], margin: f64) -> Option<usize> {
    let k = tasks.len() as f64;
    let documents: usize = tasks.iter().map(Flips::documents).sum();
    let difference = tasks.iter().map(Flips::difference).sum::<f64>() / k;
    // Half a document on each count, so that no flips at all do not mean certainty.
    let spread = tasks.iter().map(|flips| {
        let n = flips.documents() as f64;
        (((flips.gained + flips.lost) as f64 + 1.0) / n - flips.difference().powi(2)) / n / (k * k)
    });
    let error = spread.sum::<f64>().sqrt();
    let settled = |times: f64| {
        let error = error / times.sqrt();
        let [low, high] = [margin - difference, margin + difference].map(|room| normal_above(Z_95 - room / error));
        low + high - 1.0 >= 0.8 || difference.abs() / error >= Z_975 + Z_80
    };
    let most = 1e9 / documents as f64;
    if !settled(most) {
        return None;
    }
    let (mut not, mut enough) = (0.0, most);
    while (enough - not) * documents as f64 > 1e-3 {
        let middle = 0.5 * (not + enough);
        if settled(middle) { enough = middle } else { not = middle }
    }
    Some((enough * documents as f64).ceil() as usize)
}
