//! From log-likelihoods to accuracies, by the harness's definitions.

use crate::runner::Answer;
use crate::tasks::{Definition, Document, Metric};

/// What the metrics say of one document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    /// The choice of the highest log-likelihood is right.
    pub acc: bool,
    /// The choice of the highest log-likelihood per character is right.
    pub acc_norm: bool,
}

impl Verdict {
    /// Judges the answers to a document, one for each choice.
    pub fn of(document: &Document, answers: &[Answer]) -> Self {
        let sums: Vec<f64> = answers.iter().map(|answer| answer.log_likelihood).collect();
        // Characters are Unicode code points of the bare choice; an empty choice divides by zero, as in numpy.
        let lengths = document.choices.iter().map(|choice| choice.chars().count() as f64);
        let means: Vec<f64> = sums.iter().zip(lengths).map(|(sum, length)| sum / length).collect();
        Verdict { acc: argmax(&sums) == Some(document.gold), acc_norm: argmax(&means) == Some(document.gold) }
    }

    /// The verdict of one metric.
    pub fn by(self, metric: Metric) -> bool {
        match metric {
            Metric::Acc => self.acc,
            Metric::AccNorm => self.acc_norm,
        }
    }
}

/// Numpy's `argmax`: the first of equals, and the first NaN above everything.
fn argmax(values: &[f64]) -> Option<usize> {
    if let Some(nan) = values.iter().position(|value| value.is_nan()) {
        return Some(nan);
    }
    let mut best: Option<usize> = None;
    for (index, value) in values.iter().enumerate() {
        if best.is_none_or(|best| *value > values[best]) {
            best = Some(index);
        }
    }
    best
}

/// A mean with its standard error; of zeros and ones, both in 0..1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// The mean; NaN over nothing.
    pub value: f64,
    /// Sample standard deviation (n − 1) over √n; undefined for n < 2.
    pub stderr: Option<f64>,
}

impl Estimate {
    /// The mean and standard error of right and wrong answers.
    pub fn of(right: impl IntoIterator<Item = bool>) -> Self {
        Self::of_numbers(&right.into_iter().map(|right| if right { 1.0 } else { 0.0 }).collect::<Vec<f64>>())
    }

    /// The mean and standard error of some numbers.
    pub fn of_numbers(scores: &[f64]) -> Self {
        let n = scores.len() as f64;
        let mean = scores.iter().sum::<f64>() / n;
        // Summed as the harness does, so that the last digit agrees with its files.
        let squares: f64 = scores.iter().map(|score| (score - mean) * (score - mean)).sum();
        let stderr = (scores.len() > 1).then(|| (squares / (n - 1.0)).sqrt() / n.sqrt());
        Estimate { value: mean, stderr }
    }
}

/// The scores of one task under one row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TaskScore {
    /// Number of documents judged.
    pub n: usize,
    /// Accuracy.
    pub acc: Estimate,
    /// Accuracy by log-likelihood per character, where the task reports it.
    pub acc_norm: Option<Estimate>,
}

impl TaskScore {
    /// Scores from the verdicts of the documents that were judged.
    pub fn of(definition: &Definition, verdicts: &[Verdict]) -> Self {
        Self::by(definition.headline, verdicts)
    }

    /// The same for a task of this headline metric.
    pub fn by(headline: Metric, verdicts: &[Verdict]) -> Self {
        let by = |metric: Metric| Estimate::of(verdicts.iter().map(|verdict| verdict.by(metric)));
        let acc_norm = (headline == Metric::AccNorm).then(|| by(Metric::AccNorm));
        TaskScore { n: verdicts.len(), acc: by(Metric::Acc), acc_norm }
    }

    /// The estimate that enters the average: `acc_norm` where the task has it, else `acc`.
    pub fn headline(&self) -> Estimate {
        self.acc_norm.unwrap_or(self.acc)
    }

    /// The metric of [`headline`](Self::headline).
    pub fn headline_metric(&self) -> Metric {
        if self.acc_norm.is_some() { Metric::AccNorm } else { Metric::Acc }
    }
}

/// The unweighted mean of the tasks' headline estimates; its standard error is √(Σ se²) / k, the tasks being
/// independent.
pub fn average<'a>(scores: impl IntoIterator<Item = &'a TaskScore>) -> Estimate {
    let headlines: Vec<Estimate> = scores.into_iter().map(TaskScore::headline).collect();
    let k = headlines.len() as f64;
    let value = headlines.iter().map(|estimate| estimate.value).sum::<f64>() / k;
    let squares: Option<f64> = headlines.iter().map(|estimate| estimate.stderr.map(|stderr| stderr * stderr)).sum();
    Estimate { value, stderr: squares.filter(|_| k > 0.0).map(|squares| squares.sqrt() / k) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(choices: &[&str], gold: usize) -> Document {
        Document {
            contexts: vec!["c".to_owned()],
            choices: choices.iter().map(|&choice| choice.to_owned()).collect(),
            gold,
            target: gold.to_string(),
            doc: serde_json::Value::Null,
        }
    }

    fn verdict(choices: &[&str], gold: usize, sums: &[f64]) -> (bool, bool) {
        let answers: Vec<Answer> =
            sums.iter().map(|&log_likelihood| Answer { log_likelihood, greedy: false }).collect();
        let verdict = Verdict::of(&document(choices, gold), &answers);
        (verdict.acc, verdict.acc_norm)
    }

    #[test]
    fn argmax_is_numpys() {
        assert_eq!(argmax(&[]), None);
        assert_eq!(argmax(&[-1.0, -1.0]), Some(0));
        assert_eq!(argmax(&[-2.0, -1.0, -1.0]), Some(1));
        assert_eq!(argmax(&[5.0, f64::NAN, f64::NAN, f64::INFINITY]), Some(1));
        assert_eq!(argmax(&[f64::NEG_INFINITY, f64::NEG_INFINITY]), Some(0));
    }

    #[test]
    fn lengths_are_code_points_untrimmed() {
        // -6/3 against -9/6: per character the second wins, by sum the first.
        assert_eq!(verdict(&["abc", "abcdef"], 1, &[-6.0, -9.0]), (false, true));
        // "日本語" is 3 characters, 9 bytes.
        assert_eq!(verdict(&["日本語", "abcd"], 1, &[-6.0, -7.0]), (false, true));
        // The space at the end counts: -6/4 against -5/3.
        assert_eq!(verdict(&["abc ", "abc"], 0, &[-6.0, -5.0]), (false, true));
    }

    #[test]
    fn an_empty_choice_divides_by_zero() {
        assert_eq!(verdict(&["", "a"], 1, &[-1.0, -2.0]), (false, true));
        // 0/0 is NaN, which wins over everything.
        assert_eq!(verdict(&["a", ""], 1, &[-1.0, 0.0]), (true, true));
    }

    #[test]
    fn standard_error_is_the_closed_form() {
        let estimate = Estimate::of((0..1267).map(|i| i < 641));
        let p = 641.0 / 1267.0;
        assert_eq!(estimate.value, p);
        assert!((estimate.stderr.unwrap() - (p * (1.0 - p) / 1266.0f64).sqrt()).abs() < 1e-15);
        // As lm-eval 0.4.13 writes it, to the last digit.
        assert_eq!(Estimate::of([true, false, false]).stderr, Some(0.33333333333333337));
        assert_eq!(Estimate::of([true]), Estimate { value: 1.0, stderr: None });
        assert!(Estimate::of([]).value.is_nan());
    }

    #[test]
    fn the_average_takes_acc_norm_where_there_is_one() {
        let score = |acc: f64, acc_norm: Option<f64>, stderr: Option<f64>| TaskScore {
            n: 10,
            acc: Estimate { value: acc, stderr },
            acc_norm: acc_norm.map(|value| Estimate { value, stderr }),
        };
        let scores = [score(0.1, Some(0.6), Some(0.03)), score(0.2, None, Some(0.04))];
        let mean = average(&scores);
        assert!((mean.value - 0.4).abs() < 1e-15);
        assert!((mean.stderr.unwrap() - 0.025).abs() < 1e-15);
        assert_eq!(average(&[scores[0], score(0.2, None, None)]).stderr, None);
        assert_eq!(average(&[]).stderr, None);
        assert!(average(&[]).value.is_nan());
    }
}
