//! What a table can show of a row beside its formats.

use super::{NONE, Report, RowReport, percent, signed_percent, value_and_error};
use crate::statistics::{Comparison, Conclusion, DivergenceSummary};
use crate::tasks::title;

/// A column, or for `Tasks` several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// Accuracy ± standard error, one column per task.
    Tasks,
    /// Unweighted mean of the tasks.
    Average,
    /// Its difference from the first row.
    Delta,
    /// 95 % interval of that difference.
    Interval,
    /// Documents gained and lost.
    Flips,
    /// Exact p of McNemar's test on them.
    P,
    /// Larger p of the two one-sided t-tests.
    Tost,
    /// Whether the row is as good as the first.
    Verdict,
    /// Mean Kullback-Leibler divergence from the first row, per token.
    Kl,
    /// What 99 % of the tokens' divergences do not exceed.
    Kl99,
    /// At which share of the tokens both rows find the same one most likely.
    Top1,
    /// Mean change of the right choice's log-likelihood.
    Gold,
}

impl Column {
    /// All of them, in the order of the table.
    pub const ALL: [Column; 12] = [
        Column::Tasks,
        Column::Average,
        Column::Delta,
        Column::Interval,
        Column::Flips,
        Column::P,
        Column::Tost,
        Column::Verdict,
        Column::Kl,
        Column::Kl99,
        Column::Top1,
        Column::Gold,
    ];

    /// Those a table has unless others are asked for.
    pub const DEFAULT: [Column; 6] =
        [Column::Tasks, Column::Average, Column::Delta, Column::Interval, Column::Verdict, Column::Kl];

    /// Whether it needs the first row's distributions beside the others'.
    pub fn needs_divergence(self) -> bool {
        matches!(self, Column::Kl | Column::Kl99 | Column::Top1)
    }

    /// What `--columns` calls it.
    pub fn name(self) -> &'static str {
        match self {
            Column::Tasks => "tasks",
            Column::Average => "average",
            Column::Delta => "delta",
            Column::Interval => "interval",
            Column::Flips => "flips",
            Column::P => "p",
            Column::Tost => "tost",
            Column::Verdict => "verdict",
            Column::Kl => "kl",
            Column::Kl99 => "kl99",
            Column::Top1 => "top1",
            Column::Gold => "gold",
        }
    }

    /// The column of this name.
    pub fn from_name(name: &str) -> Option<Column> {
        Column::ALL.into_iter().find(|column| column.name() == name)
    }

    fn head(self) -> &'static str {
        match self {
            Column::Tasks => "",
            Column::Average => "Aver. Acc. (%)",
            Column::Delta => "Acc. Δ (%)",
            Column::Interval => "Δ 95 %",
            Column::Flips => "Flips",
            Column::P => "McNemar p",
            Column::Tost => "TOST p",
            Column::Verdict => "Verdict",
            Column::Kl => "KL (nats)",
            Column::Kl99 => "KL 99 %",
            Column::Top1 => "Top-1 (%)",
            Column::Gold => "Gold Δ (nats)",
        }
    }

    /// The cell in two parts; a narrow table puts the second on a line of its own.
    fn cell(self, row: &RowReport) -> (String, String) {
        let paired = |show: &dyn Fn(&Comparison) -> (String, String)| {
            row.paired.as_ref().map_or((NONE.to_owned(), String::new()), |paired| show(&paired.average))
        };
        let single = |show: &dyn Fn(&Comparison) -> String| paired(&|c| (show(c), String::new()));
        let apart = |show: &dyn Fn(&DivergenceSummary) -> String| {
            single(&|c| c.divergence.as_ref().map_or(NONE.to_owned(), show))
        };
        match self {
            Column::Tasks => (String::new(), String::new()),
            Column::Average => (percent(row.average.value), String::new()),
            Column::Delta => (signed_percent(row.delta), String::new()),
            Column::Interval => paired(&|c| {
                let [low, high] = c.interval.map(|end| signed_percent(Some(end)));
                (format!("[{low},"), format!("{high}]"))
            }),
            Column::Flips => paired(&|c| (format!("+{}", c.flips.gained), format!("-{}", c.flips.lost))),
            Column::P => single(&|c| probability(c.p)),
            Column::Tost => single(&|c| probability(c.equivalence.t)),
            Column::Verdict => paired(&|c| match c.conclusion {
                Conclusion::Open { documents: Some(n) } => ("can't tell".to_owned(), format!("(n ≥ {n})")),
                other => (other.text(), String::new()),
            }),
            Column::Kl => apart(&|d| nats(d.mean)),
            Column::Kl99 => apart(&|d| nats(d.p99)),
            Column::Top1 => apart(&|d| percent(d.agreement)),
            Column::Gold => single(&|c| format!("{:+.4}", c.gold.value)),
        }
    }
}

/// Three digits that count.
fn nats(value: f64) -> String {
    let digits = if value >= 0.1 {
        3
    } else if value >= 0.01 {
        4
    } else {
        5
    };
    format!("{value:.digits$}")
}

/// Three digits after the point, or the order of magnitude.
fn probability(p: f64) -> String {
    if p >= 0.0005 || p.is_nan() { format!("{p:.3}") } else { format!("{p:.0e}") }
}

impl Report {
    /// Heads of all columns after the formats.
    pub(super) fn heads(&self) -> Vec<String> {
        let tasks = || self.task_names().into_iter().map(|task| title(task).to_owned()).collect();
        let heads = |column: &Column| if *column == Column::Tasks { tasks() } else { vec![column.head().to_owned()] };
        self.shown.iter().flat_map(heads).collect()
    }

    /// A row's cells under those heads, each in two parts.
    pub(super) fn cells(&self, row: &RowReport) -> Vec<(String, String)> {
        let task = |name: &str| match row.score(name) {
            Some(score) => value_and_error(score.headline()),
            None => (NONE.to_owned(), String::new()),
        };
        let tasks = || self.task_names().into_iter().map(task).collect();
        let cells = |column: &Column| if *column == Column::Tasks { tasks() } else { vec![column.cell(row)] };
        self.shown.iter().flat_map(cells).collect()
    }
}
