//! What these tests share: scoring whole tasks, and comparing log-likelihoods with another program's.

use std::collections::HashMap;
use std::ops::ControlFlow;

use microscale::eval::{Answers, Catalog, Encoder, Files, Task, TaskRequests, run};
use microscale::model::{Checkpoint, Limits, ModelScorer, Recipe};
use microscale::tensor::{Cpu, Isa};
use serde_json::Value;

/// Every task of `files`, cut to its first `limit` documents.
pub(crate) fn tasks(files: Files, limit: Option<usize>) -> Vec<Task> {
    let catalog = Catalog::discover(files).unwrap();
    let mut tasks: Vec<Task> = catalog.names().iter().map(|name| catalog.load(name).unwrap()).collect();
    if let Some(limit) = limit {
        tasks.iter_mut().for_each(|task| task.limit(limit as f64));
    }
    tasks
}

/// The answers under each recipe.
pub(crate) fn answers(checkpoint: &Checkpoint, recipes: &[&str], tasks: &[Task], max_length: usize) -> Answers {
    scored(checkpoint, recipes, tasks, Limits { batch_size: None, max_length }, Isa::best())
}

/// The same with limits and an instruction set of the caller's.
pub(crate) fn scored(checkpoint: &Checkpoint, recipes: &[&str], tasks: &[Task], limits: Limits, isa: Isa) -> Answers {
    let tokenizer = checkpoint.tokenizer().unwrap();
    let encoder = Encoder::new(&tokenizer, limits.max_length);
    let requests: Vec<TaskRequests> = tasks.iter().map(|task| encoder.encode_task(task).unwrap()).collect();
    let recipes: Vec<Recipe> = recipes.iter().map(|name| Recipe::parse(name).unwrap()).collect();
    let rows: Vec<usize> = (0..recipes.len()).collect();
    let mut scorer = ModelScorer::new(Cpu::with_isa(isa), checkpoint, recipes, limits);
    run(&mut scorer, &rows, &requests, &mut |_| ControlFlow::Continue(())).unwrap()
}

/// Log-likelihoods by task, document and choice, from one JSON object per line.
pub(crate) fn expected(text: &str) -> HashMap<(String, usize, usize), f64> {
    let line = |line: &str| {
        let v: Value = serde_json::from_str(line).unwrap();
        let index = |key: &str| v[key].as_u64().unwrap() as usize;
        ((v["task"].as_str().unwrap().to_owned(), index("doc"), index("choice")), v["loglikelihood"].as_f64().unwrap())
    };
    text.lines().map(line).collect()
}

/// How many log-likelihoods of a row lie within relative `narrow` and `wide` of the expected ones.
#[derive(Debug)]
pub(crate) struct Agreement {
    pub(crate) compared: usize,
    pub(crate) narrow: usize,
    pub(crate) wide: usize,
}

impl Agreement {
    pub(crate) fn of(
        answers: &Answers,
        row: usize,
        expected: &HashMap<(String, usize, usize), f64>,
        [narrow, wide]: [f64; 2],
    ) -> Self {
        let mut agreement = Agreement { compared: 0, narrow: 0, wide: 0 };
        for task in &answers.rows[row].tasks {
            for (doc, choices) in task.documents.iter().enumerate() {
                for (choice, answer) in choices.as_ref().unwrap().iter().enumerate() {
                    let expected = expected[&(task.task.clone(), doc, choice)];
                    let distance = (answer.log_likelihood - expected).abs() / expected.abs();
                    agreement.compared += 1;
                    agreement.narrow += usize::from(distance <= narrow);
                    agreement.wide += usize::from(distance <= wide);
                }
            }
        }
        agreement
    }

    pub(crate) fn shares(&self) -> [f64; 2] {
        [self.narrow, self.wide].map(|n| n as f64 / self.compared as f64)
    }
}
