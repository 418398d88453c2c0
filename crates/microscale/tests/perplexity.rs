//! Perplexity of a text on the command line.

use std::path::Path;
use std::process::Command;

use microscale::tensor::math;
use microscale_testing::shared;
use serde_json::Value;

fn perplexity(store: &Path, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.arg("perplexity").args(arguments).args(["--format", "json", "--store"]).arg(store);
    command.env_remove("MICROSCALE_ISA");
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn perplexity_of_a_text() {
    let folder = tempfile::tempdir().unwrap();
    let (store, file) = (folder.path().join("runs.sqlite"), folder.path().join("text.txt"));
    let line = "Question: Where does the barber live? Answer: in the small town by the river. ";
    std::fs::write(&file, line.repeat(12)).unwrap();
    let measure =
        |more: &[&str]| perplexity(&store, &[&["demo", file.to_str().unwrap(), "--recipe", "w4a4"], more].concat());
    let apart = measure(&["--window", "64"]);
    let sliding = measure(&["--window", "64", "--stride", "16"]);
    let number = |report: &Value, row: usize, key: &str| report["rows"][row][key].as_f64().unwrap();
    assert_eq!(apart["bytes"], 12 * line.len());
    for report in [&apart, &sliding] {
        let (nats, tokens) = (-number(report, 0, "log_likelihood"), report["tokens"].as_f64().unwrap());
        assert!((number(report, 0, "perplexity") - math::exp(nats / tokens)).abs() < 1e-9);
        let bytes = report["bytes"].as_f64().unwrap();
        assert!((number(report, 0, "bits_per_byte") - nats / bytes / std::f64::consts::LN_2).abs() < 1e-12);
        assert!(number(report, 1, "kl_mean") > 0.0 && report["rows"][0]["kl_mean"].is_null());
    }
    assert_ne!(number(&sliding, 0, "perplexity"), number(&apart, 0, "perplexity"));
    assert_eq!(measure(&["--window", "64", "--stride", "64"])["rows"], apart["rows"]);
}

/// Of a trained model, against lm-eval 0.4.13's windows over the logits of transformers 4.44.2 in bf16, which round
/// elsewhere.
#[test]
fn perplexity_is_that_of_the_harness() {
    let Some(shared) = shared("perplexity_is_that_of_the_harness") else { return };
    let folder = tempfile::tempdir().unwrap();
    let (model, story) = (shared.join("data/models/stories260K"), folder.path().join("story.txt"));
    std::fs::write(&story, include_str!("story.txt")).unwrap();
    for (stride, log_likelihood) in [("64", -802.856), ("16", -750.551)] {
        let [model, file] = [&model, &story].map(|path| path.to_str().unwrap());
        let report =
            perplexity(&folder.path().join("runs.sqlite"), &[model, file, "--window", "64", "--stride", stride]);
        assert_eq!(report["tokens"], 403);
        let found = report["rows"][0]["log_likelihood"].as_f64().unwrap();
        assert!((found / log_likelihood - 1.0).abs() < 1e-3, "stride {stride}: {found} is not near {log_likelihood}");
    }
}
