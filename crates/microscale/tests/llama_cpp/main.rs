//! Next tokens beside llama.cpp's, which crates/exchange/checks/check_llama_cpp.py noted.

#[path = "../support/mod.rs"]
mod support;
mod wide;

use std::path::Path;

use half::bf16;
use microscale::demo;
use microscale::model::{Llama, Recipe};
use microscale::tensor::{Backend, Cpu};
use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{Folder, succeeds};
use wide::{Wide, largest};

const TOKENS: usize = 32;

fn golden() -> Value {
    serde_json::from_str(include_str!("../goldens/llama_cpp.json")).unwrap()
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
    let logits: Vec<f32> = logits.iter().map(|x| x.to_f32()).collect();
    let best = largest(&logits);
    let second = (0..logits.len()).filter(|&i| i != best).map(|i| logits[i]).fold(f32::NEG_INFINITY, f32::max);
    let binade = f32::from_bits(logits[best].to_bits() & 0x7F80_0000);
    (best as u32, (logits[best] - second) / (binade / 128.0))
}

/// The golden's prompts as tokens: the first of two tasks, as they are asked there, one task after the other.
fn prompts(golden: &Value) -> Vec<Vec<u32>> {
    let count = golden["prompts"].as_u64().unwrap() as usize;
    let string = |text: &Value| text.as_str().unwrap().to_owned();
    let lines = |task: &str| -> Vec<Value> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../demo/tasks").join(task);
        let lines = std::fs::read_to_string(path).unwrap();
        lines.lines().take(count).map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let questions = lines("arc/ARC-Easy-Test.jsonl").into_iter();
    let questions = questions.map(|line| format!("Question: {}\nAnswer:", string(&line["question"]["stem"])));
    let beginnings = lines("hellaswag/hellaswag_val.jsonl").into_iter().map(|line| string(&line["ctx"]));
    let tokenizer = demo::checkpoint().unwrap().tokenizer().unwrap();
    questions.chain(beginnings).map(|text| tokenizer.encode(&text, true).unwrap()).collect()
}

/// SHA-256 of a GGUF file of ours without the program's version.
fn fingerprint(file: &[u8]) -> String {
    let key = b"microscale.version";
    // A number for the type lies between.
    let at = file.windows(key.len()).position(|window| window == key).unwrap() + key.len() + 4;
    let length = 8 + u64::from_le_bytes(file[at..at + 8].try_into().unwrap()) as usize;
    let hash = Sha256::new().chain_update(&file[..at]).chain_update(&file[at + length..]).finalize();
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What llama.cpp said, it said of these files. Where others are written on purpose, it is to be asked again.
#[test]
fn files_are_those_that_llama_cpp_read() {
    let (golden, folder) = (golden(), Folder::new());
    let (native, plain, mxfp4) = (folder.text("native"), folder.text("plain.gguf"), folder.text("mxfp4.gguf"));
    succeeds(&["convert", "demo", "--to", "gguf", "-o", &plain]);
    succeeds(&["quantize", "demo", "--recipe", golden["recipe"].as_str().unwrap(), "-o", &native]);
    succeeds(&["convert", &native, "--to", "gguf", "-o", &mxfp4]);
    for name in ["plain.gguf", "mxfp4.gguf"] {
        assert_eq!(golden[name], fingerprint(&std::fs::read(folder.path(name)).unwrap()), "{name}");
    }
}

/// llama.cpp has in f32 what is bf16 here. Where this is done as there, texts are the same but for what the order of sums
/// decides: what went into the file is the model.
#[test]
fn greedy_texts_without_our_roundings_are_the_same() {
    let golden = golden();
    let (prompts, theirs) = (prompts(&golden), lists(&golden["greedy"]));
    assert_eq!(prompts.len(), theirs.len());
    let model = Wide::new(&demo::checkpoint().unwrap()).unwrap();
    let ours: Vec<_> = prompts.par_iter().map(|prompt| model.greedy(prompt, TOKENS)).collect();
    let different: Vec<usize> = (0..ours.len()).filter(|&i| ours[i] != theirs[i]).collect();
    eprintln!("{} of {} texts are the same, not {different:?}", ours.len() - different.len(), ours.len());
    let questions = ours.len() / 2;
    for first in [0, questions] {
        assert!(!different.iter().any(|i| (first..first + 20).contains(i)), "{different:?}");
    }
    assert!(different.len() * 50 <= ours.len(), "{different:?}");
}

/// Clear is a text at each of whose tokens the largest logit is further above the second than roundings reach: by the
/// golden's margin, of which docs/exchange.md tells.
#[test]
fn clear_greedy_texts_are_the_same() {
    let (golden, model) = (golden(), model("bf16"));
    let margin = golden["margin"].as_f64().unwrap() as f32;
    let mut clear = 0;
    for (i, (mut next, theirs)) in prompts(&golden).into_iter().zip(lists(&golden["greedy"])).enumerate() {
        let (mut cache, mut ours, mut least) = (model.cache(), vec![], f32::INFINITY);
        for _ in 0..TOKENS {
            let logits = model.extend(&mut cache, &next).unwrap();
            let (token, above) = most_likely(model.backend().download(&logits).row(0));
            next = vec![token];
            ours.push(token);
            least = least.min(above);
        }
        if least > margin {
            clear += 1;
            assert_eq!(ours, theirs, "prompt {i}");
        }
    }
    assert!(clear >= 20 && margin < 8.0, "{clear} texts are clear");
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
