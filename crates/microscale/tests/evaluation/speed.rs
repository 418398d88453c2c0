//! What sharing beginnings saves, on HellaSwag with a model of LLaMA 3.2 1B's shape. Not run by itself:
//! `cargo test --release -p microscale --test evaluation -- --ignored sharing --nocapture`.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use microscale::eval::{Encoder, Files, TaskRequests, run};
use microscale::model::{Config, Event, Limits, ModelScorer, RandomWeights, Recipe, Request, Scorer, Shape, Tokenizer};
use microscale::tensor::Cpu;
use microscale_testing::shared;

use crate::support::tasks;

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
    for name in ["w6a8", "proj=fp6/fp8,mlp=fp6/fp8,attn=fp6,value-blocks=causal", "w6a8-attn6"] {
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

/// Five rows of a model of LLaMA 3.1 8B's width, of which eight layers alone are more than the memory allowed.
#[test]
#[ignore = "takes minutes, and several GB"]
fn memory_stays_within_its_bound() {
    let config = Config { layers: 8, ..Shape::named("llama-3.1-8b").unwrap().config() };
    let model = RandomWeights::new(config, 1);
    let recipes = ["bf16", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6"];
    let recipes: Vec<Recipe> = recipes.iter().map(|name| Recipe::parse(name).unwrap()).collect();
    let count: u32 = std::env::var("REQUESTS").ok().and_then(|n| n.parse().ok()).unwrap_or(64);
    let requests: Vec<Request> = (0..count)
        .map(|i| Request { tokens: (0..81).map(|t| (i * 977 + t * 31) % 128_000).collect(), context: 60 })
        .collect();
    let bound = 6_000_000_000;
    let limits = Limits { batch_size: None, max_length: 2048 };
    let mut scorer = ModelScorer::new(Cpu::new(), &model, recipes, limits).memory(Some(bound));
    let start = Instant::now();
    let mut outcomes = 0;
    let sink = &mut |event| {
        outcomes += usize::from(matches!(event, Event::Scored(_)));
        ControlFlow::Continue(())
    };
    scorer.score(&[0, 1, 2, 3, 4], &requests, sink).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap().trim().trim_end_matches(" kB");
    let peak = peak.parse::<usize>().unwrap() * 1024;
    println!("{outcomes} outcomes in {:.0} s, at most {:.2} GB", start.elapsed().as_secs_f64(), peak as f64 / 1e9);
    assert!(peak <= bound, "{peak} bytes");
}
