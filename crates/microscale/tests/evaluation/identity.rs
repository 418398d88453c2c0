//! The same bits whatever the instruction set, the number of threads, the batch, or the company in it.

use std::ops::ControlFlow;

use crate::support::{scored, tasks};
use microscale::demo;
use microscale::eval::{Answers, Encoder, Error, Task, TaskRequests, run};
use microscale::model::{Error as ModelError, Limits, Llama, ModelScorer, Recipe};
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

/// Common beginnings computed once, layers read as they are needed: the same bits, also of what tells rows apart.
#[test]
fn shared_prefixes_and_streamed_layers() {
    let (checkpoint, tasks) = (demo::checkpoint().unwrap(), sample());
    let tokenizer = checkpoint.tokenizer().unwrap();
    let encoder = Encoder::new(&tokenizer, 256);
    let requests: Vec<TaskRequests> = tasks.iter().map(|task| encoder.encode_task(task).unwrap()).collect();
    let causal = "proj=fp6/fp8,mlp=fp6/fp8,attn=fp6,value-blocks=causal";
    let blocks = "proj=fp6/fp8,mlp=fp6/fp8,attn=fp6,block=16";
    let recipes = ["bf16", "w6a8", "w6a8-attn6", causal, blocks];
    let recipes: Vec<Recipe> = recipes.iter().map(|name| Recipe::parse(name).unwrap()).collect();
    let run = |share: bool, memory: Option<usize>| {
        let scorer = ModelScorer::new(Cpu::new(), &checkpoint, recipes.clone(), limits(None));
        let mut scorer = scorer.share_prefixes(share).memory(memory);
        run(&mut scorer, &[0, 1, 2, 3, 4], &requests, &mut |_| ControlFlow::Continue(()))
    };
    let alone = run(false, None).unwrap();
    // What is refused names the least there must be, which leaves none for activations between layers.
    let Err(Error::Model(ModelError::Memory { needed, .. })) = run(true, Some(1)) else { panic!("not refused") };
    assert_eq!(alone.counts.shared_tokens, 0);
    for (share, memory) in [(true, None), (true, Some(needed)), (false, Some(needed))] {
        let other = run(share, memory).unwrap();
        assert!(bits(&other) == bits(&alone), "sharing {share}, memory {memory:?}");
        assert!(other.rows == alone.rows, "sharing {share}, memory {memory:?}");
        assert_eq!(share, other.counts.shared_tokens * 10 > other.counts.input_tokens, "{:?}", other.counts);
    }
    assert!(alone.rows[0].tasks[0].divergence.kl.is_empty());
    let tokens = alone.rows[1].tasks[0].divergence.kl.len();
    assert!(tokens > 0 && alone.rows[1].tasks[0].divergence.agreed <= tokens);
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
