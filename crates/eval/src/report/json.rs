//! The table as JSON.

use serde_json::{Map, Value, json};

use super::{Report, RowReport};
use crate::metrics::TaskScore;
use crate::statistics::Comparison;

pub(super) fn render(report: &Report) -> Value {
    json!({ "manifest": report.manifest, "rows": report.rows.iter().map(row).collect::<Vec<_>>() })
}

fn row(row: &RowReport) -> Value {
    let paired = |name: &str| row.paired.as_ref()?.tasks.iter().find(|(task, _)| task == name).map(|(_, c)| c);
    let with_paired = |name: &str, score: &TaskScore| {
        let mut value = task(score);
        value["paired"] = paired(name).map(comparison).into();
        value
    };
    let tasks: Map<String, Value> =
        row.tasks.iter().map(|(name, score)| (name.clone(), with_paired(name, score))).collect();
    json!({
        "recipe": row.recipe,
        "roles": row.roles,
        "tasks": tasks,
        "average": row.average.value,
        "delta": row.delta,
        "paired": row.paired.as_ref().map(|paired| comparison(&paired.average)),
    })
}

/// A comparison with the first row; accuracies in 0…1.
pub(super) fn comparison(c: &Comparison) -> Value {
    let needed = match c.conclusion {
        crate::statistics::Conclusion::Open { documents } => documents,
        _ => None,
    };
    json!({
        "n": c.documents,
        "gained": c.flips.gained,
        "lost": c.flips.lost,
        "difference": c.difference,
        "interval": c.interval,
        "mcnemar_p": c.p,
        "tost_p": c.equivalence.t,
        "score_p": c.equivalence.score,
        "verdict": c.conclusion.name(),
        "documents_needed": needed,
        "gold_delta": c.gold.value,
        "gold_delta_stderr": c.gold.stderr,
        "kl_mean": c.divergence.map(|d| d.mean),
        "kl_p99": c.divergence.map(|d| d.p99),
        "top1_agreement": c.divergence.map(|d| d.agreement),
        "tokens": c.divergence.map(|d| d.tokens),
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
        assert_eq!(keys(row), ["recipe", "roles", "tasks", "average", "delta", "paired"]);
        assert_eq!(keys(&row["tasks"]), ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"]);
        assert_eq!(keys(&row["tasks"]["piqa"]), ["n", "acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "paired"]);
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
