//! What sharing beginnings saves, on HellaSwag with a model of LLaMA 3.2 1B's shape, and what reading layers as they are
//! needed costs. Not run by themselves: `cargo test --release -p microscale --test evaluation -- --ignored --nocapture`,
//! and before `--ignored` the name of one.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use microscale::eval::{Encoder, Files, TaskRequests, run};
use microscale::model::{
    Checkpoint, Event, Limits, ModelScorer, RandomWeights, Recipe, Request, Scorer, Shape, Tokenizer,
};
use microscale::tensor::Cpu;
use microscale_testing::shared;

use crate::support::tasks;

/// `DOCUMENTS` of them, and of the three recipes those whose name holds `RECIPE`.
#[test]
#[ignore = "takes minutes, and an otherwise idle machine"]
fn sharing_beginnings_saves_time() {
    let Some(shared) = shared("sharing_beginnings_saves_time") else { return };
    let data = shared.join("data");
    let files = Files::open(&data.join("tasks/hellaswag")).unwrap();
    let documents = std::env::var("DOCUMENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let tasks = tasks(files, Some(documents));
    let bytes = std::fs::read(data.join("tokenizers/llama3/tokenizer.json")).unwrap();
    let tokenizer = Tokenizer::from_bytes(&bytes, Path::new("tokenizer.json")).unwrap();
    let requests: Vec<TaskRequests> =
        tasks.iter().map(|task| Encoder::new(&tokenizer, 2048).encode_task(task).unwrap()).collect();
    let model = RandomWeights::new(Shape::named("llama-3.2-1b").unwrap().config(), 1);
    let asked = std::env::var("RECIPE").unwrap_or_default();
    let recipes = ["w6a8", "proj=fp6/fp8,mlp=fp6/fp8,attn=fp6,value-blocks=causal", "w6a8-attn6"];
    for name in recipes.into_iter().filter(|name| name.contains(&asked)) {
        let recipe = Recipe::parse(name).unwrap();
        let time = |share: bool| {
            let limits = Limits { batch_size: None, max_length: 2048 };
            let scorer = ModelScorer::new(Cpu::new(), &model, vec![recipe.clone()], limits);
            let mut scorer = scorer.share_prefixes(share);
            // The weights are made for the first request, and kept.
            let first = requests[0].documents[0][..1].to_vec();
            let first = [TaskRequests { task: "first".to_owned(), documents: vec![first], truncated: 0 }];
            run(&mut scorer, &[0], &first, &mut |_| ControlFlow::Continue(())).unwrap();
            let start = Instant::now();
            let answers = run(&mut scorer, &[0], &requests, &mut |_| ControlFlow::Continue(()));
            (answers.unwrap(), start.elapsed().as_secs_f64())
        };
        let ((with, shared), (without, alone)) = (time(true), time(false));
        assert!(with.rows == without.rows, "{name}");
        let tokens = with.counts.input_tokens as f64 / (with.counts.input_tokens - with.counts.shared_tokens) as f64;
        println!(
            "{name}: {alone:.1} s alone, {shared:.1} s shared: {:.2} x ({tokens:.2} x the tokens)",
            alone / shared
        );
    }
}

/// Five rows of a model whose layers are read as they are needed, against the same model in memory: what that costs,
/// and that memory stays within its bound. `MODEL` is a checkpoint, `MEMORY` the bound in bytes, which holds one layer
/// of each kind and not all; `REQUESTS` of 81 tokens.
#[test]
#[ignore = "takes minutes, an otherwise idle machine and a large checkpoint"]
fn layers_that_are_read_cost_little() {
    let number = |name: &str, usual: usize| std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual);
    let Ok(folder) = std::env::var("MODEL") else { return eprintln!("skipped: MODEL names no checkpoint") };
    let model = Checkpoint::open(Path::new(&folder)).unwrap();
    let (bound, count) = (number("MEMORY", 6_000_000_000), number("REQUESTS", 200) as u32);
    let recipes = ["bf16", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6"].map(|name| Recipe::parse(name).unwrap());
    let tokens = |i: u32| (0..81).map(|t| (i * 977 + t * 31) % 128_000).collect();
    let requests: Vec<Request> = (0..count).map(|i| Request { tokens: tokens(i), context: 60 }).collect();
    let score = |memory: Option<usize>| {
        let limits = Limits { batch_size: None, max_length: 2048 };
        let mut scorer = ModelScorer::new(Cpu::new(), &model, recipes.to_vec(), limits).memory(memory);
        let mut outcomes = Vec::new();
        let sink = &mut |event| {
            if let Event::Scored(outcome) = event {
                outcomes.push(outcome);
            }
            ControlFlow::Continue(())
        };
        // What stays in memory is there after the first request; the file's pages are in the system's cache.
        scorer.score(&[0, 1, 2, 3, 4], &requests[..1], sink).unwrap();
        let start = Instant::now();
        scorer.score(&[0, 1, 2, 3, 4], &requests, sink).unwrap();
        outcomes.sort_by_key(|outcome| (outcome.request, outcome.row));
        (outcomes, start.elapsed().as_secs_f64())
    };
    let (read, streamed) = score(Some(bound));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    let peak = peak.parse::<usize>().unwrap() * 1024;
    let (held, resident) = score(None);
    assert!(read == held);
    println!(
        "{streamed:.1} s read in at most {:.2} GB, {resident:.1} s in memory: {:.0} % of its speed",
        peak as f64 / 1e9,
        100.0 * resident / streamed
    );
    assert!(peak <= bound, "{peak} bytes");
}
