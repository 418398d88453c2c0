//! The table as comma-separated values (RFC 4180, with line feeds).

use super::Report;
use crate::metrics::Estimate;
use crate::statistics::{Comparison, Conclusion, DivergenceSummary};

pub(super) fn render(report: &Report) -> String {
    let tasks = report.task_names();
    let mut heads = vec!["model".to_owned(), "recipe".to_owned()];
    heads.extend(report.column_heads().into_iter().map(str::to_owned));
    for task in &tasks {
        let parts = ["n", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr"];
        heads.extend(parts.map(|part| format!("{task}_{part}")));
    }
    heads.extend(["average", "average_stderr", "delta"].map(str::to_owned));
    heads.extend(PAIRED.map(str::to_owned));
    let mut lines = vec![heads];
    for row in &report.rows {
        let mut cells = vec![row.model.clone(), row.recipe.clone()];
        cells.extend(row.columns.iter().map(|(_, value)| value.clone()));
        for task in &tasks {
            let score = row.score(task);
            cells.push(score.map(|score| score.n.to_string()).unwrap_or_default());
            cells.extend(estimate(score.map(|score| score.acc)));
            cells.extend(estimate(score.and_then(|score| score.acc_norm)));
        }
        cells.extend(estimate(Some(row.average)));
        cells.push(number(row.delta));
        cells.extend(paired(row.paired.as_ref().map(|paired| &paired.average)));
        lines.push(cells);
    }
    let quoted =
        lines.into_iter().map(|cells| cells.iter().map(|cell| quote(cell)).collect::<Vec<_>>().join(",") + "\n");
    quoted.collect()
}

/// The comparison with the first row, in the average.
const PAIRED: [&str; 13] = [
    "interval_low",
    "interval_high",
    "gained",
    "lost",
    "mcnemar_p",
    "tost_p",
    "score_p",
    "verdict",
    "documents_needed",
    "gold_delta",
    "kl_mean",
    "kl_p99",
    "top1_agreement",
];

fn paired(comparison: Option<&Comparison>) -> [String; 13] {
    let Some(c) = comparison else { return Default::default() };
    let needed = match c.conclusion {
        Conclusion::Open { documents: Some(n) } => n.to_string(),
        _ => String::new(),
    };
    let [low, high] = c.interval.map(|end| number(Some(end)));
    let [p, tost, score, gold] =
        [c.p, c.equivalence.t, c.equivalence.score, c.gold.value].map(|value| number(Some(value)));
    let [gained, lost] = [c.flips.gained, c.flips.lost].map(|n| n.to_string());
    let apart = |value: fn(&DivergenceSummary) -> f64| number(c.divergence.as_ref().map(value));
    let [kl, kl99, top1] = [apart(|d| d.mean), apart(|d| d.p99), apart(|d| d.agreement)];
    [low, high, gained, lost, p, tost, score, c.conclusion.name().to_owned(), needed, gold, kl, kl99, top1]
}

fn estimate(estimate: Option<Estimate>) -> [String; 2] {
    [number(estimate.map(|estimate| estimate.value)), number(estimate.and_then(|estimate| estimate.stderr))]
}

/// The shortest digits that read back; empty where there is no number.
fn number(value: Option<f64>) -> String {
    value.filter(|value| value.is_finite()).map(|value| value.to_string()).unwrap_or_default()
}

fn quote(cell: &str) -> String {
    if cell.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_line_per_row_in_full() {
        let mut report = super::super::tests::sample();
        report.rows[0].model = "a \"b\", c".to_owned();
        let csv = report.to_csv();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("model,recipe,ProjW,ProjA,MlpW,MlpA,Query,Key,Value,Atten W,piqa_n,piqa_acc,"));
        assert!(lines[0].contains("winogrande_acc_norm_stderr,average,average_stderr,delta,interval_low,"));
        assert!(lines[1].starts_with("\"a \"\"b\"\", c\",bf16,bf16,"));
        assert!(lines[1].contains(",50,0.73,0.0046,,,") && lines[1].ends_with(','));
        assert_eq!(lines[2].split(',').count(), lines[0].split(',').count());
        assert!(lines[2].contains("0.6875") && lines[2].contains(&report.rows[1].average.value.to_string()));
    }
}
