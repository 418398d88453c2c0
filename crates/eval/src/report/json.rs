//! The table as JSON.

use serde_json::{Map, Value, json};

use super::{Report, RowReport};
use crate::metrics::TaskScore;

pub(super) fn render(report: &Report) -> Value {
    json!({ "manifest": report.manifest, "rows": report.rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &RowReport) -> Value {
    let tasks: Map<String, Value> = row.tasks.iter().map(|(name, score)| (name.clone(), task(score))).collect();
    json!({
        "recipe": row.recipe,
        "roles": row.roles,
        "tasks": tasks,
        "average": row.average.value,
        "delta": row.delta,
    })
}

/// NaN, which JSON lacks, becomes null; so does what is undefined.
fn task(score: &TaskScore) -> Value {
    json!({
        "n": score.n,
        "acc": score.acc.value,
        "acc_stderr": score.acc.stderr,
        "acc_norm": score.acc_norm.map(|estimate| estimate.value),
        "acc_norm_stderr": score.acc_norm.and_then(|estimate| estimate.stderr),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Estimate;

    #[test]
    fn the_schema_is_the_published_one() {
        let json = super::super::tests::sample().to_json();
        let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json), ["manifest", "rows"]);
        let row = &json["rows"][1];
        assert_eq!(keys(row), ["recipe", "roles", "tasks", "average", "delta"]);
        assert_eq!(keys(&row["tasks"]), ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"]);
        assert_eq!(keys(&row["tasks"]["piqa"]), ["n", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr"]);
        assert_eq!(json["rows"][0]["delta"], Value::Null);
        assert_eq!(json["rows"][0]["roles"]["proj_weight"], Value::Null);
        assert_eq!(row["roles"]["proj_weight"], "fp6_e3m2");
        assert_eq!(row["tasks"]["winogrande"]["acc_norm"], Value::Null);
        assert!(row["average"].as_f64().unwrap() < 1.0);
    }

    #[test]
    fn what_is_undefined_is_null() {
        let none = TaskScore { n: 0, acc: Estimate::of([]), acc_norm: Some(Estimate::of([])) };
        let json = task(&none);
        assert_eq!(json.to_string(), r#"{"n":0,"acc":null,"acc_stderr":null,"acc_norm":null,"acc_norm_stderr":null}"#);
    }
}
