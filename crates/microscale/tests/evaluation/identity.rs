//! The same bits whatever the instruction set, the number of threads, the batch, or the company in it.

use crate::support::{scored, tasks};
use microscale::demo;
use microscale::eval::{Answers, Task};
use microscale::model::{Limits, Llama, Recipe};
use microscale::tensor::{Cpu, Isa};

const RECIPES: [&str; 4] = ["bf16", "w6a8-attn6", "w4a4", "int8-attn8i"];

fn limits(batch_size: Option<usize>) -> Limits {
    Limits { batch_size, max_length: 256 }
}

/// Every log-likelihood as bits, in the order of rows, tasks, documents and choices.
fn bits(answers: &Answers) -> Vec<u64> {
    let tasks = answers.rows.iter().flat_map(|row| &row.tasks);
    let documents = tasks.flat_map(|task| &task.documents).map(|d| d.as_ref().unwrap());
    documents.flatten().map(|answer| answer.log_likelihood.to_bits()).collect()
}

fn sample() -> Vec<Task> {
    tasks(demo::tasks(), Some(12))
}

#[test]
fn instruction_sets() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), tasks(demo::tasks(), Some(4)));
    let run = |isa| bits(&scored(&checkpoint, &RECIPES, &tasks, limits(None), isa));
    let expected = run(Isa::Scalar);
    assert!(expected.len() > 200);
    for isa in Isa::available() {
        assert!(run(isa) == expected, "{isa} differs from scalar");
    }
}

#[test]
fn threads() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), sample());
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&scored(&checkpoint, &RECIPES, &tasks, limits(None), Isa::best())))
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert!(run(threads) == one, "{threads} threads differ from one");
    }
}

#[test]
fn batches_and_company() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), sample());
    let run = |tasks: &[Task], batch| bits(&scored(&checkpoint, &RECIPES, tasks, limits(batch), Isa::best()));
    let one = run(&tasks, Some(1));
    for batch in [Some(2), Some(16), None] {
        assert!(run(&tasks, batch) == one, "batches of {batch:?} differ from single sequences");
    }
    // The second task by itself, in batches of other lengths and neighbours.
    let alone = scored(&checkpoint, &RECIPES, &tasks[1..2], limits(Some(16)), Isa::best());
    let among = scored(&checkpoint, &RECIPES, &tasks, limits(Some(16)), Isa::best());
    for (alone, among) in alone.rows.iter().zip(&among.rows) {
        assert_eq!(alone.tasks[0], among.tasks[1]);
    }
}

/// In causal mode a token's logits do not depend on what follows; in sequence mode with V quantized they may.
#[test]
fn causal_value_blocks_see_only_the_past() {
    let checkpoint = demo::checkpoint().unwrap();
    let tokens: Vec<u32> = (0..75).map(|i| (i * 37 + 5) % 1000).collect();
    let logits = |recipe: &Recipe, n: usize| {
        let model = Llama::load(Cpu::new(), &checkpoint, recipe).unwrap();
        model.logits(&tokens[..n]).unwrap()
    };
    for (mode, equal) in [("causal", true), ("sequence", false)] {
        let recipe = Recipe::parse(&format!("proj=fp6/fp8,mlp=fp6/fp8,attn=fp4,value-blocks={mode}")).unwrap();
        let whole = logits(&recipe, tokens.len());
        let cuts = [1, 31, 32, 33, 50, 64, 70];
        let same = cuts.iter().all(|&n| logits(&recipe, n).values() == &whole.values()[..n * whole.columns()]);
        assert_eq!(same, equal, "{mode}");
    }
}
