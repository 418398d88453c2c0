//! The accuracy table: one line per row, in the columns of the published one.

mod columns;
mod csv;
mod json;
mod markdown;
mod text;

pub use columns::Column;
use serde_json::{Map, Value};

use crate::metrics::{Estimate, TaskScore, average};
use crate::statistics::Paired;
use crate::tasks::title;

/// A finished table and where it came from.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Everything that decides the numbers, in the order to show it.
    pub manifest: Map<String, Value>,
    /// The manifest said in a line, for below the table.
    pub manifest_line: String,
    /// The rows; accuracies are compared with the first.
    pub rows: Vec<RowReport>,
    /// The columns of text and Markdown after the formats; CSV and JSON have all.
    pub shown: Vec<Column>,
    /// Margin of the verdicts, in 0…1.
    pub margin: f64,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct RowReport {
    /// Name of the recipe.
    pub recipe: String,
    /// What the column `Model` shows.
    pub model: String,
    /// Heads and values of the columns between the model and the tasks.
    pub columns: Vec<(String, String)>,
    /// What each role holds, for JSON.
    pub roles: Map<String, Value>,
    /// Scores by task, in the order of the columns.
    pub tasks: Vec<(String, TaskScore)>,
    /// Unweighted mean of the tasks' headline metrics.
    pub average: Estimate,
    /// Its difference from the first row's; none in the first row.
    pub delta: Option<f64>,
    /// The comparison with the first row, document by document; none in the first row.
    pub paired: Option<Paired>,
}

impl Report {
    /// A table of `rows`, whose deltas are set against the first.
    pub fn new(manifest: Map<String, Value>, manifest_line: String, mut rows: Vec<RowReport>) -> Self {
        let first = rows.first().map(|row| row.average.value);
        for (index, row) in rows.iter_mut().enumerate() {
            row.delta = first.filter(|_| index > 0).map(|first| row.average.value - first);
        }
        Report { manifest, manifest_line, rows, shown: Column::DEFAULT.to_vec(), margin: 0.01 }
    }

    /// The table for a terminal of `width` columns: where it does not fit, standard errors and heads go onto second
    /// lines, then long cells are broken. Percent with two decimals.
    pub fn to_text(&self, width: usize) -> String {
        text::render(self, width)
    }

    /// The table in Markdown. Percent with two decimals.
    pub fn to_markdown(&self) -> String {
        markdown::render(self)
    }

    /// The table as comma-separated values, one line per row; all numbers in full, in 0..1.
    pub fn to_csv(&self) -> String {
        csv::render(self)
    }

    /// The table as JSON with its manifest; all numbers in full, in 0..1, undefined ones null.
    pub fn to_json(&self) -> Value {
        json::render(self)
    }

    /// The tasks of all rows, in order of first appearance.
    fn task_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.rows.iter().flat_map(|row| &row.tasks) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// The heads of the columns between the model and the tasks.
    fn column_heads(&self) -> Vec<&str> {
        self.rows.first().map_or(Vec::new(), |row| row.columns.iter().map(|(head, _)| head.as_str()).collect())
    }

    /// What the task columns show and over how many documents.
    fn legend(&self) -> String {
        let tasks = self.task_names().into_iter().map(|name| {
            let scores: Vec<&TaskScore> = self.rows.iter().filter_map(|row| row.score(name)).collect();
            let metric = scores.first().map_or("", |score| score.headline_metric().name());
            let most = scores.iter().map(|score| score.n).max().unwrap_or(0);
            let least = scores.iter().map(|score| score.n).min().unwrap_or(0);
            let count = if least == most { most.to_string() } else { format!("{least} to {most}") };
            format!("{} {metric} (n={count})", title(name))
        });
        let tasks: Vec<String> = tasks.collect();
        let mut legend = format!(
            "{}-shot accuracy in % ± standard error: {}. Aver. Acc. is their unweighted mean.",
            self.shots(),
            tasks.join(", ")
        );
        if self.rows.iter().any(|row| row.paired.is_some()) && self.shown.contains(&Column::Verdict) {
            legend += &format!(
                " Verdict: whether the average stays within {} points of the first row's, in pairs of documents.",
                100.0 * self.margin
            );
        }
        legend
    }

    /// Examples before each question, as the manifest says.
    fn shots(&self) -> u64 {
        self.manifest.get("shots").and_then(Value::as_u64).unwrap_or(0)
    }
}

impl RowReport {
    /// A row of the scores of its tasks; [`Report::new`] sets its delta.
    pub fn new(recipe: String, model: String, tasks: Vec<(String, TaskScore)>) -> Self {
        let average = average(tasks.iter().map(|(_, score)| score));
        RowReport { recipe, model, columns: Vec::new(), roles: Map::new(), tasks, average, delta: None, paired: None }
    }

    fn score(&self, task: &str) -> Option<&TaskScore> {
        self.tasks.iter().find(|(name, _)| name == task).map(|(_, score)| score)
    }
}

const MODEL_HEAD: &str = "Model";
/// Stands where there is no number.
const NONE: &str = "–";

/// Percent with two decimals.
fn percent(value: f64) -> String {
    if value.is_finite() { format!("{:.2}", 100.0 * value) } else { NONE.to_owned() }
}

/// A difference in percent with its sign; zero has none.
fn signed_percent(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => {
            let shown = format!("{:+.2}", 100.0 * value);
            if shown == "-0.00" || shown == "+0.00" { "0.00".to_owned() } else { shown }
        }
        _ => NONE.to_owned(),
    }
}

/// Value and standard error as two texts; the second is empty where it is undefined.
fn value_and_error(estimate: Estimate) -> (String, String) {
    let error = estimate.stderr.filter(|stderr| stderr.is_finite()).map(|stderr| format!("±{}", percent(stderr)));
    (percent(estimate.value), error.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn sample() -> Report {
        let row = |recipe: &str, offset: f64, role: Option<&str>| {
            let estimate = |value: f64| Estimate { value: value - offset, stderr: Some(0.0046) };
            let score = |value: f64| TaskScore { n: 100, acc: estimate(value), acc_norm: Some(estimate(value + 0.05)) };
            let mut tasks: Vec<(String, TaskScore)> = ["piqa", "arc_easy", "arc_challenge", "hellaswag"]
                .into_iter()
                .zip([0.70, 0.76, 0.48, 0.74])
                .map(|(name, value)| (name.to_owned(), score(value)))
                .collect();
            tasks.push(("winogrande".to_owned(), TaskScore { n: 50, acc: estimate(0.73), acc_norm: None }));
            let mut report = RowReport::new(recipe.to_owned(), "LLaMA 3.1 8B".to_owned(), tasks);
            let heads = ["ProjW", "ProjA", "MlpW", "MlpA", "Query", "Key", "Value", "Atten W"];
            let shown = role.unwrap_or("bf16");
            report.columns = heads.into_iter().map(|head| (head.to_owned(), shown.to_owned())).collect();
            report.roles.insert("proj_weight".to_owned(), role.into());
            report
        };
        let mut manifest = Map::new();
        manifest.insert("model".to_owned(), "llama".into());
        manifest.insert("seed".to_owned(), 7.into());
        let line = "model llama · scale rule floor · seed 7".to_owned();
        Report::new(manifest, line, vec![row("bf16", 0.0, None), row("w6a8", 0.0125, Some("fp6_e3m2"))])
    }

    #[test]
    fn deltas_are_against_the_first_row() {
        let report = sample();
        assert_eq!(report.rows[0].delta, None);
        assert!((report.rows[1].delta.unwrap() + 0.0125).abs() < 1e-12);
        // acc_norm of four tasks, acc of the fifth.
        assert!((report.rows[0].average.value - (0.75 + 0.81 + 0.53 + 0.79 + 0.73) / 5.0).abs() < 1e-12);
    }

    #[test]
    fn the_legend_names_the_metric_of_each_task() {
        let mut report = sample();
        let legend = report.legend();
        assert!(legend.contains("ARC-Challenge acc_norm (n=100), HellaSwag acc_norm (n=100), WinoGrande acc (n=50)"));
        report.rows[1].tasks[4].1.n = 17;
        assert!(report.legend().contains("WinoGrande acc (n=17 to 50)"));
    }

    #[test]
    fn numbers_are_shown_as_percent() {
        assert_eq!(percent(0.73264), "73.26");
        assert_eq!(percent(f64::NAN), "–");
        assert_eq!(signed_percent(Some(0.0147)), "+1.47");
        assert_eq!(signed_percent(Some(-0.00001)), "0.00");
        assert_eq!(signed_percent(None), "–");
        assert_eq!(value_and_error(Estimate { value: 0.7326, stderr: Some(0.0046) }), ("73.26".into(), "±0.46".into()));
        assert_eq!(value_and_error(Estimate { value: 1.0, stderr: None }), ("100.00".into(), String::new()));
    }
}
