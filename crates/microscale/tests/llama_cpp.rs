//! Next tokens beside llama.cpp's, which crates/exchange/checks/check_llama_cpp.py noted.

use std::collections::BTreeMap;
use std::path::Path;

use half::bf16;
use microscale::demo;
use microscale::model::{Llama, Recipe};
use microscale::tensor::{Backend, Cpu};
use serde_json::{Value, json};

const TOKENS: usize = 32;

fn golden() -> Value {
    serde_json::from_str(include_str!("goldens/llama_cpp.json")).unwrap()
}

fn lists(value: &Value) -> Vec<Vec<u32>> {
    let numbers = |list: &Value| list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
    value.as_array().unwrap().iter().map(numbers).collect()
}

fn model(recipe: &str) -> Llama<Cpu> {
    let recipe = Recipe::parse(recipe).unwrap().for_generation().unwrap();
    Llama::load(Cpu::new(), &demo::checkpoint().unwrap(), &recipe).unwrap()
}

/// The largest logit's index (of equals the first), and how far it is above the second, in steps of bf16 at the largest.
fn most_likely(logits: &[bf16]) -> (u32, f32) {
    let value = |i: usize| logits[i].to_f32();
    let best = (0..logits.len()).rev().max_by(|&a, &b| value(a).total_cmp(&value(b))).unwrap();
    let second = (0..logits.len()).filter(|&i| i != best).map(value).fold(f32::NEG_INFINITY, f32::max);
    let binade = f32::from_bits(value(best).to_bits() & 0x7F80_0000);
    (best as u32, (value(best) - second) / (binade / 128.0))
}

/// The first of a task's prompts, as the task asks them.
fn prompts(task: &str, count: usize, text: impl Fn(&Value) -> String) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/tasks").join(task);
    let lines = std::fs::read_to_string(path).unwrap();
    lines.lines().take(count).map(|line| text(&serde_json::from_str(line).unwrap())).collect()
}

/// Clear is a text at each of whose tokens the largest logit is further above the second than roundings reach: by the
/// golden's margin, of which docs/exchange.md tells.
#[test]
fn clear_greedy_texts_are_the_same() {
    let (golden, model) = (golden(), model("bf16"));
    let count = golden["prompts"].as_u64().unwrap() as usize;
    let string = |text: &Value| text.as_str().unwrap().to_owned();
    let mut asked = prompts("arc/ARC-Easy-Test.jsonl", count, |line| {
        format!("Question: {}\nAnswer:", string(&line["question"]["stem"]))
    });
    asked.extend(prompts("hellaswag/hellaswag_val.jsonl", count, |line| string(&line["ctx"])));
    let tokenizer = demo::checkpoint().unwrap().tokenizer().unwrap();
    let margin = golden["margin"].as_f64().unwrap() as f32;
    let mut clear = BTreeMap::new();
    for (i, text) in asked.iter().enumerate() {
        let (mut cache, mut next, mut ours, mut least) =
            (model.cache(), tokenizer.encode(text, true).unwrap(), vec![], f32::INFINITY);
        for _ in 0..TOKENS {
            let logits = model.extend(&mut cache, &next).unwrap();
            let (token, above) = most_likely(model.backend().download(&logits).row(0));
            next = vec![token];
            ours.push(token);
            least = least.min(above);
        }
        if least > margin {
            clear.insert(i.to_string(), json!(ours));
        }
    }
    assert!(clear.len() >= 20 && margin < 8.0, "{} texts are clear", clear.len());
    assert_eq!(json!(clear), golden["greedy"]);
}

#[test]
fn mxfp4_agrees_on_most_likely_tokens() {
    let golden = golden();
    let model = model(golden["recipe"].as_str().unwrap());
    let (mut same, mut count) = (0, 0);
    for (tokens, likely) in lists(&golden["documents"]).iter().zip(lists(&golden["likely"])) {
        let logits = model.logits(tokens).unwrap();
        assert_eq!(tokens.len(), likely.len());
        same += likely.iter().enumerate().filter(|&(row, &token)| most_likely(logits.row(row)).0 == token).count();
        count += likely.len();
    }
    eprintln!("{same} of {count} most likely tokens are the same");
    assert!(count >= 1000 && same * 100 >= count * 95, "{same} of {count}");
}
