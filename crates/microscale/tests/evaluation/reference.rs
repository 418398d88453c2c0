//! Log-likelihoods and accuracies of stories260K on the real tasks, against lm_eval on TorchMX and on transformers.

use crate::support::{Agreement, answers, expected, tasks};
use microscale::eval::{Files, TaskScore};
use microscale::model::Checkpoint;
use serde_json::Value;

/// The reference files' names as recipes, with what must lie within 1e-3 and within the wider bound.
const RUNS: [(&str, &str); 8] = [
    ("bf16", "bf16"),
    ("w6a8", "w6a8"),
    ("w6a6", "w6a6"),
    ("w6a8-qkv6", "w6a8-attn6"),
    ("w6a6-qkv6", "w6a6-attn6"),
    ("e2m3-all", "proj=e2m3,mlp=e2m3,attn=e2m3"),
    ("w4a8", "w4a8"),
    ("int8-all", "int8-attn8i"),
];

#[test]
fn requests_agree_with_lm_eval_on_torchmx() {
    let Some(shared) = microscale_testing::shared("requests_agree_with_lm_eval_on_torchmx") else { return };
    let checkpoint = Checkpoint::open(&shared.join("data/models/stories260K")).unwrap();
    let tasks = tasks(Files::open(&shared.join("data/tasks")).unwrap(), Some(40));
    let answers = answers(&checkpoint, &RUNS.map(|run| run.1), &tasks, 2048);
    for (row, (file, _)) in RUNS.into_iter().enumerate() {
        let text = std::fs::read_to_string(shared.join(format!("reference/stories260K/{file}.jsonl"))).unwrap();
        let (wide, bars) = if file == "bf16" { (0.01, [0.90, 0.99]) } else { (0.02, [0.85, 0.95]) };
        let agreement = Agreement::of(&answers, row, &expected(&text), [1e-3, wide]);
        let [narrow_share, wide_share] = agreement.shares();
        println!(
            "{file}: {:.1}% within 1e-3, {:.1}% within {wide} of {}",
            narrow_share * 100.0,
            wide_share * 100.0,
            agreement.compared
        );
        assert_eq!(agreement.compared, text.lines().count(), "{file}");
        assert!(narrow_share >= bars[0] && wide_share >= bars[1], "{file}: {agreement:?}");
    }
}

/// Every document of all five tasks: each accuracy within max(3 documents, 0.2%) of transformers'.
#[test]
fn the_full_bf16_run_has_lm_eval_s_accuracies() {
    let Some(shared) = microscale_testing::shared("the_full_bf16_run_has_lm_eval_s_accuracies") else { return };
    let checkpoint = Checkpoint::open(&shared.join("data/models/stories260K")).unwrap();
    let tasks = tasks(Files::open(&shared.join("data/tasks")).unwrap(), None);
    let text = std::fs::read_to_string(shared.join("reference/stories260K/full_bf16.json")).unwrap();
    let expected: Value = serde_json::from_str(&text).unwrap();
    let start = std::time::Instant::now();
    let answers = answers(&checkpoint, &["bf16"], &tasks, 2048);
    println!("scored in {:.0} s", start.elapsed().as_secs_f64());
    for (task, row) in tasks.iter().zip(&answers.rows[0].tasks) {
        let score: TaskScore = task.score(&row.documents);
        let expected = &expected[&task.name];
        assert_eq!(score.n as u64, expected["n"].as_u64().unwrap(), "{}", task.name);
        let bar = (3.0 / score.n as f64).max(0.002);
        for (metric, found) in [("acc", Some(score.acc)), ("acc_norm", score.acc_norm)] {
            let Some(found) = found else { continue };
            let expected = expected[metric].as_f64().unwrap();
            println!("{} {metric}: {:.4}, lm_eval {expected:.4}", task.name, found.value);
            assert!((found.value - expected).abs() <= bar, "{} {metric}: {} is not {expected}", task.name, found.value);
        }
    }
}
