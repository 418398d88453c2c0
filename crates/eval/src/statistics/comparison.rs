//! One row beside the first, over the documents both have answered.

use super::equivalence::documents_needed;
use super::{DivergenceSummary, Equivalence, Flips, bootstrap_interval};
use crate::metrics::Estimate;
use crate::runner::{Answer, RowAnswers};
use crate::tasks::Task;

/// What level the intervals and verdicts have.
pub const ALPHA: f64 = 0.05;

/// The difference of a row from the first, in one task or in the average.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Documents both rows answered.
    pub documents: usize,
    /// Their flips; for the average, of all tasks together.
    pub flips: Flips,
    /// Accuracy less the first row's, by the headline metric, in 0…1; for the average the mean over tasks.
    pub difference: f64,
    /// Its 95 % interval ([`bootstrap_interval`], stratified by task for the average).
    pub interval: [f64; 2],
    /// Exact two-sided p of McNemar's test on the flips.
    pub p: f64,
    /// The tests for a difference smaller than the margin.
    pub equivalence: Equivalence,
    /// Mean change of the right choice's log-likelihood, in nats, over all documents.
    pub gold: Estimate,
    /// How far the row's distributions over the vocabulary are from the first row's, where that was measured.
    pub divergence: Option<DivergenceSummary>,
    /// What follows.
    pub conclusion: Conclusion,
}

/// Whether a row is as good as the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conclusion {
    /// The difference is smaller than the margin.
    Equivalent,
    /// The accuracy is lower, by more than chance, and not shown to be within the margin.
    Worse,
    /// The accuracy is higher, by more than chance, and not shown to be within the margin.
    Better,
    /// Neither can be said of so few documents; `documents` in all would do with a chance of 80 % if shares stay as
    /// they are, where any number would.
    Open {
        /// Documents needed.
        documents: Option<usize>,
    },
}

impl Conclusion {
    /// One word, for machines.
    pub fn name(self) -> &'static str {
        match self {
            Conclusion::Equivalent => "equivalent",
            Conclusion::Worse => "worse",
            Conclusion::Better => "better",
            Conclusion::Open { .. } => "open",
        }
    }

    /// A word or a short phrase.
    pub fn text(self) -> String {
        match self {
            Conclusion::Open { documents: None } => "can't tell".to_owned(),
            Conclusion::Open { documents: Some(n) } => format!("can't tell; n ≥ {n} would"),
            said => said.name().to_owned(),
        }
    }
}

/// A row beside the first: by task and in the average.
#[derive(Clone, Debug, PartialEq)]
pub struct Paired {
    /// By task, in the order of the tasks given; without those that share no document.
    pub tasks: Vec<(String, Comparison)>,
    /// The unweighted mean of the tasks.
    pub average: Comparison,
}

impl Paired {
    /// Compares the answers of two rows over the documents both have answered; `None` where there are none.
    ///
    /// `margin` in 0…1, `seed` that of the bootstrap.
    pub fn of(tasks: &[Task], rows: [&RowAnswers; 2], margin: f64, seed: u32) -> Option<Self> {
        let mut each = Vec::new();
        let mut changes = Vec::new();
        for ((task, first), second) in tasks.iter().zip(&rows[0].tasks).zip(&rows[1].tasks) {
            let verdicts = [first, second].map(|row| task.verdicts(&row.documents));
            let by = |v: &Option<crate::Verdict>| v.map(|v| v.by(task.definition.headline));
            let pairs = verdicts[0].iter().zip(&verdicts[1]).filter_map(|(a, b)| by(a).zip(by(b)));
            let flips = Flips::of(pairs);
            if flips.documents() == 0 {
                continue;
            }
            let own = gold_changes(task, &first.documents, &second.documents);
            let divergence = DivergenceSummary::of([&second.divergence]);
            let comparison = Comparison { divergence, ..Comparison::of(&[flips], &own, margin, seed) };
            each.push((task.name.clone(), comparison));
            changes.extend(own);
        }
        let flips: Vec<Flips> = each.iter().map(|(_, c)| c.flips).collect();
        if flips.is_empty() {
            return None;
        }
        let divergence = DivergenceSummary::of(rows[1].tasks.iter().map(|task| &task.divergence));
        let average = Comparison { divergence, ..Comparison::of(&flips, &changes, margin, seed) };
        Some(Paired { tasks: each, average })
    }
}

impl Comparison {
    /// The comparison over tasks of these flips and changes of the right choice's log-likelihood.
    pub fn of(tasks: &[Flips], gold: &[f64], margin: f64, seed: u32) -> Self {
        let flips = tasks.iter().fold(Flips::default(), |sum, flips| sum.and(flips));
        let difference = tasks.iter().map(Flips::difference).sum::<f64>() / tasks.len() as f64;
        let interval = bootstrap_interval(tasks, seed);
        let equivalence = Equivalence::test(tasks, margin);
        let p = flips.p();
        // One task has an exact test; the mean of several has the interval.
        let differs = if tasks.len() == 1 { p < ALPHA } else { interval[0] > 0.0 || interval[1] < 0.0 };
        let conclusion = match (equivalence.p() < ALPHA, differs) {
            (true, _) => Conclusion::Equivalent,
            (false, true) if difference < 0.0 => Conclusion::Worse,
            (false, true) => Conclusion::Better,
            (false, false) => Conclusion::Open { documents: documents_needed(tasks, margin) },
        };
        let gold = Estimate::of_numbers(gold);
        let documents = flips.documents();
        Comparison { documents, flips, difference, interval, p, equivalence, gold, divergence: None, conclusion }
    }
}

/// How the log-likelihood of the right choice changed, for each document both rows have answered.
fn gold_changes(task: &Task, first: &[Option<Vec<Answer>>], second: &[Option<Vec<Answer>>]) -> Vec<f64> {
    let pairs = task.documents.iter().zip(first.iter().zip(second));
    let change = pairs.filter_map(|(document, (a, b))| {
        let [a, b] = [a, b].map(|answers| answers.as_ref().and_then(|all| all.get(document.gold)));
        Some(b?.log_likelihood - a?.log_likelihood)
    });
    change.collect()
}
