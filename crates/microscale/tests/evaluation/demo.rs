//! The demo world does what it is there for: it has a trained model, formats cost what they cost, and TorchMX agrees.

use crate::support::{Agreement, answers, expected, tasks};
use microscale::demo;
use microscale::eval::statistics::Flips;
use microscale::eval::{Answers, Task, Verdict, average};
use microscale::model::Recipe;

/// Whether each document of all tasks is right, by the metric that enters the average.
fn right(tasks: &[Task], answers: &Answers, row: usize) -> Vec<bool> {
    let pairs = tasks.iter().zip(&answers.rows[row].tasks);
    pairs
        .flat_map(|(task, row)| {
            task.verdicts(&row.documents).into_iter().map(|verdict| verdict.unwrap().by(task.definition.headline))
        })
        .collect()
}

fn mean(tasks: &[Task], answers: &Answers, row: usize) -> f64 {
    let scores: Vec<_> = tasks.iter().zip(&answers.rows[row].tasks).map(|(t, a)| t.score(&a.documents)).collect();
    average(&scores).value
}

#[test]
fn fp4_costs_accuracy_and_int8_does_not() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), tasks(demo::tasks(), None));
    assert!(tasks.len() == 5 && tasks.iter().all(|t| t.documents.len() >= 300));
    let answers = answers(&checkpoint, &["bf16", "int8", "w4a4"], &tasks, 256);
    let [bf16, int8, w4a4] = [0, 1, 2].map(|row| mean(&tasks, &answers, row));
    let flips = Flips::of(right(&tasks, &answers, 0).into_iter().zip(right(&tasks, &answers, 2)));
    println!("bf16 {bf16:.4}, int8 {int8:.4}, w4a4 {w4a4:.4}: {flips:?}, p = {:.2e}", flips.p());
    assert!((0.65..=0.85).contains(&bf16), "bf16 {bf16}");
    assert!((bf16 - int8).abs() < 0.01, "int8 {int8}");
    assert!(bf16 - w4a4 >= 0.02 && flips.lost > flips.gained && flips.p() < 0.01, "w4a4 {w4a4}, {flips:?}");
}

#[test]
fn torchmx_and_transformers_agree() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), tasks(demo::tasks(), None));
    let runs = [
        ("bf16", include_str!("../../../../demo/reference/bf16.jsonl")),
        ("w6a8-attn6", include_str!("../../../../demo/reference/w6a8-attn6.jsonl")),
    ];
    let answers = answers(&checkpoint, &runs.map(|run| run.0), &tasks, 256);
    for (row, (recipe, text)) in runs.into_iter().enumerate() {
        let expected = expected(text);
        let agreement = Agreement::of(&answers, row, &expected, [1e-3, 0.02]);
        assert_eq!(agreement.compared, expected.len());
        let [narrow, wide] = agreement.shares();
        // Their log-likelihoods in our documents: how many are predicted the same?
        let mut theirs = answers.clone();
        for task in &mut theirs.rows[row].tasks {
            for (doc, choices) in task.documents.iter_mut().enumerate() {
                for (choice, answer) in choices.iter_mut().flatten().enumerate() {
                    answer.log_likelihood = expected[&(task.task.clone(), doc, choice)];
                }
            }
        }
        let (ours, theirs) = (predictions(&tasks, &answers, row), predictions(&tasks, &theirs, row));
        let same = ours.iter().zip(&theirs).filter(|(a, b)| a == b).count() as f64 / ours.len() as f64;
        println!("{recipe}: {same:.4} of documents predicted the same, {narrow:.4} within 1e-3, {wide:.4} within 2%");
        assert!(same >= 0.99 && narrow >= 0.85 && wide >= 0.98, "{recipe}: {same}, {agreement:?}");
    }
}

/// The choice of the highest log-likelihood (per character where the task's headline metric says so), per document.
fn predictions(tasks: &[Task], answers: &Answers, row: usize) -> Vec<usize> {
    let pairs = tasks.iter().zip(&answers.rows[row].tasks);
    pairs
        .flat_map(|(task, row)| {
            task.documents.iter().zip(&row.documents).map(|(document, answers)| {
                // The verdict says whether one choice is the predicted one: ask of each in turn.
                (0..document.choices.len())
                    .find(|&gold| {
                        let asked = microscale::eval::Document { gold, ..document.clone() };
                        Verdict::of(&asked, answers.as_ref().unwrap()).by(task.definition.headline)
                    })
                    .unwrap()
            })
        })
        .collect()
}

#[test]
fn the_default_rows_are_known_recipes() {
    for name in ["bf16", "int8", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6", "w4a4"] {
        assert!(Recipe::presets().iter().any(|preset| preset.name == name), "{name}");
    }
}
