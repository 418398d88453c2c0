//! The five tasks on their real data: requests, accuracies and tokens against other implementations.

use std::fs;
use std::path::{Path, PathBuf};

use microscale_eval::python_random::Random;
use microscale_eval::{Answer, Catalog, Document, Estimate, Files, Task};
use microscale_model::Tokenizer;
use microscale_testing::shared;
use serde_json::Value;
use sha2::{Digest, Sha256};

const TASKS: [&str; 5] = ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"];

fn load(shared: &Path, name: &str) -> Task {
    Catalog::discover(Files::open(&shared.join("data/tasks")).unwrap()).unwrap().load(name).unwrap()
}

fn read_json(path: PathBuf) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn json_lines(path: PathBuf) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A text as Python's `json.dumps` writes it: ASCII only.
fn ascii_json(text: &str, out: &mut String) {
    for c in Value::from(text).to_string().chars() {
        if (' '..='~').contains(&c) {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                *out += &format!("\\u{unit:04x}");
            }
        }
    }
}

/// SHA-256 of `json.dumps` of all (context, continuation) pairs.
fn requests_sha256(documents: &[&Document]) -> String {
    let mut json = String::from("[");
    for document in documents {
        for choice in 0..document.choices.len() {
            json += if json.len() > 1 { ", [" } else { "[" };
            ascii_json(document.context(choice), &mut json);
            json += ", ";
            ascii_json(&document.continuation(choice), &mut json);
            json += "]";
        }
    }
    json += "]";
    Sha256::digest(json.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn close(found: f64, golden: &Value, what: &str) {
    let golden = golden.as_f64().unwrap_or_else(|| panic!("{what}: no golden value"));
    assert!((found - golden).abs() <= 1e-15, "{what}: {found} is not {golden}");
}

fn matches_golden(estimate: Estimate, golden: &Value, metric: &str, task: &str) {
    close(estimate.value, &golden[metric], &format!("{task} {metric}"));
    close(estimate.stderr.unwrap(), &golden[format!("{metric}_stderr")], &format!("{task} {metric}_stderr"));
}

/// Golden values of lm-evaluation-harness v0.3.0: the hash of all requests in shuffled order, and the accuracies of a
/// model that draws its log-likelihoods.
#[test]
fn requests_and_scores_are_the_harnesss() {
    let Some(shared) = shared("requests_and_scores_are_the_harnesss") else { return };
    let goldens = read_json(shared.join("data/tasks/lm_eval_goldens.json"));
    for name in TASKS {
        let mut task = load(&shared, name);
        Random::new(42).shuffle(&mut task.documents);
        let documents: Vec<&Document> = task.documents.iter().collect();
        assert_eq!(requests_sha256(&documents), goldens[name]["requests_sha256"].as_str().unwrap(), "{name}");

        let mut random = Random::new(42);
        let mut draw = || Answer { log_likelihood: -random.random(), greedy: false };
        let answers: Vec<Option<Vec<Answer>>> =
            documents.iter().map(|document| Some(document.choices.iter().map(|_| draw()).collect())).collect();
        let score = task.score(&answers);
        matches_golden(score.acc, &goldens[name], "acc", name);
        assert_eq!(score.acc_norm.is_some(), goldens[name].get("acc_norm").is_some());
        if let Some(acc_norm) = score.acc_norm {
            matches_golden(acc_norm, &goldens[name], "acc_norm", name);
        }
        assert_eq!(score.n, goldens[name]["docs"].as_u64().unwrap() as usize);
    }
}

#[test]
fn request_counts_are_the_published_ones() {
    let Some(shared) = shared("request_counts_are_the_published_ones") else { return };
    let counts = TASKS.map(|name| load(&shared, name).request_count());
    assert_eq!(counts, [3676, 9501, 4687, 40168, 2534]);
}

/// 500 hard raw records with what lm_eval 0.4.13's own code makes of them.
#[test]
fn hellaswag_is_cleaned_as_the_harness_cleans_it() {
    let Some(shared) = shared("hellaswag_is_cleaned_as_the_harness_cleans_it") else { return };
    let expected = json_lines(shared.join("reference/hellaswag_raw.jsonl"));
    assert_eq!(expected.len(), 500);
    let raw: Vec<String> = expected.iter().map(|record| record["raw"].to_string()).collect();
    let files = Files::from_memory("raw", [("hellaswag_val.jsonl", raw.join("\n").into_bytes())]);
    let task = Catalog::discover(files).unwrap().load("hellaswag").unwrap();
    assert_eq!(task.documents.len(), 500);
    for (document, expected) in task.documents.iter().zip(&expected) {
        assert_eq!(document.context(0), expected["query"].as_str().unwrap());
        assert_eq!(Value::from(document.choices.clone()), expected["choices"]);
        assert_eq!(Value::from(document.gold), expected["gold"]);
    }
}

/// 506 texts with their ids from tiktoken, without special tokens.
#[test]
fn the_llama3_tokenizer_gives_tiktokens_ids() {
    let Some(shared) = shared("the_llama3_tokenizer_gives_tiktokens_ids") else { return };
    let folder = shared.join("data/tokenizers/llama3");
    let path = folder.join("tokenizer.json");
    let tokenizer = Tokenizer::from_bytes(&fs::read(&path).unwrap(), &path).unwrap();
    let vectors = json_lines(folder.join("vectors.jsonl"));
    assert_eq!(vectors.len(), 506);
    for vector in vectors {
        let text = vector["text"].as_str().unwrap();
        let ids: Vec<u64> = vector["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect();
        let found: Vec<u64> = tokenizer.encode(text, false).unwrap().into_iter().map(u64::from).collect();
        assert_eq!(found, ids, "{text:?}");
        let with_bos = tokenizer.encode(text, true).unwrap();
        assert_eq!((with_bos[0], with_bos.len()), (128_000, ids.len() + 1));
    }
}

/// lm_eval 0.4.8's log-likelihoods of a bf16 model on whole tasks, with the accuracies it made of them.
#[test]
fn accuracies_follow_from_the_log_likelihoods() {
    let Some(shared) = shared("accuracies_follow_from_the_log_likelihoods") else { return };
    let folder = shared.join("reference/stories260K");
    let expected = read_json(folder.join("full_bf16.json"));
    for name in ["piqa", "arc_easy", "winogrande"] {
        let task = load(&shared, name);
        let mut answers: Vec<Option<Vec<Answer>>> = vec![None; task.documents.len()];
        for line in json_lines(folder.join(format!("full_bf16_{name}.jsonl"))) {
            let [document, choice, characters] = [0, 1, 2].map(|i| line[i].as_u64().unwrap() as usize);
            assert_eq!(task.documents[document].choices[choice].chars().count(), characters);
            let known = answers[document].get_or_insert_default();
            assert_eq!(known.len(), choice);
            known.push(Answer { log_likelihood: line[3].as_f64().unwrap(), greedy: line[4].as_bool().unwrap() });
        }
        let score = task.score(&answers);
        assert_eq!(score.n, expected[name]["n"].as_u64().unwrap() as usize);
        close(score.acc.value, &expected[name]["acc"], name);
        if let Some(acc_norm) = score.acc_norm {
            close(acc_norm.value, &expected[name]["acc_norm"], name);
        }
    }
}
