//! The paired bootstrap: how far a difference of accuracies would move with other documents of the same kind.

use std::collections::HashMap;

use super::Flips;
use super::distribution::Binomial;
use crate::python_random::Random;

/// Resamples of an interval.
pub const RESAMPLES: usize = 10_000;

/// The 95 % percentile interval of the mean of the tasks' differences (right under the second row less right under the
/// first, in 0…1), from [`RESAMPLES`] resamples of each task's documents with replacement.
pub fn bootstrap_interval(tasks: &[Flips], seed: u32) -> [f64; 2] {
    resampled_interval(tasks, seed, RESAMPLES)
}

/// The same from `resamples` resamples.
///
/// What a resample of documents says of a difference is how many gained and lost documents it holds. These are drawn
/// directly: first how many of the n documents flip, then how many of those are gains, each binomial. That is the
/// distribution that drawing the documents one by one has. Where a task has no gains or no losses its two counts are
/// taken half a document higher, or the interval would not know that there could have been any.
pub fn resampled_interval(tasks: &[Flips], seed: u32, resamples: usize) -> [f64; 2] {
    let mut random = Random::new(seed);
    let mut strata: Vec<Stratum> = tasks.iter().filter(|flips| flips.documents() > 0).map(Stratum::new).collect();
    if strata.is_empty() || resamples == 0 {
        return [f64::NAN; 2];
    }
    let k = strata.len() as f64;
    let mut draws: Vec<f64> =
        (0..resamples).map(|_| strata.iter_mut().map(|s| s.draw(&mut random)).sum::<f64>() / k).collect();
    draws.sort_by(f64::total_cmp);
    let tail = resamples / 40;
    [draws[tail], draws[resamples - 1 - tail]]
}

/// The documents of one task.
struct Stratum {
    documents: f64,
    flipped: Binomial,
    /// Share of the gains among the flips.
    gains: f64,
    /// By number of flips, how many are gains.
    gained: HashMap<usize, Binomial>,
}

impl Stratum {
    fn new(flips: &Flips) -> Self {
        let half = if flips.gained == 0 || flips.lost == 0 { 0.5 } else { 0.0 };
        let (gained, lost) = (flips.gained as f64 + half, flips.lost as f64 + half);
        let documents = flips.documents();
        Stratum {
            documents: documents as f64,
            flipped: Binomial::new(documents, (gained + lost) / (documents as f64 + 2.0 * half)),
            gains: gained / (gained + lost),
            gained: HashMap::new(),
        }
    }

    /// The difference in one resample.
    fn draw(&mut self, random: &mut Random) -> f64 {
        let flips = self.flipped.draw(random.random());
        let gains = self.gains;
        let gained = self.gained.entry(flips).or_insert_with(|| Binomial::new(flips, gains)).draw(random.random());
        (2.0 * gained as f64 - flips as f64) / self.documents
    }
}
