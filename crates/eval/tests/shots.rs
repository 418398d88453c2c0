//! Examples before the documents: every request is the one lm-eval makes, for all tasks and several numbers of examples.

use std::path::Path;

use microscale_eval::{Catalog, Files};
use serde_json::Value;
use sha2::{Digest, Sha256};

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/shots")
}

#[test]
fn examples_are_drawn_and_rendered_as_the_harness_does() {
    let golden: Value = serde_json::from_str(&std::fs::read_to_string(folder().join("shots.json")).unwrap()).unwrap();
    let catalog = Catalog::discover(Files::open(&folder().join("data")).unwrap()).unwrap();
    assert_eq!(catalog.names(), ["piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande"]);
    for (name, by_shots) in golden["tasks"].as_object().unwrap() {
        let pool = catalog.examples(name).unwrap();
        for (shots, expected) in by_shots.as_object().unwrap() {
            let mut task = catalog.load(name).unwrap();
            task.add_shots(&pool, shots.parse().unwrap(), 1234).unwrap();
            let requests = |i: usize| -> Vec<String> {
                let document = &task.documents[i];
                (0..document.choices.len())
                    .map(|c| document.context(c).to_owned() + &document.continuation(c))
                    .collect()
            };
            assert_eq!(requests(0)[0], expected["first"].as_str().unwrap(), "{name}, {shots} examples");
            for (i, hash) in expected["hashes"].as_array().unwrap().iter().enumerate() {
                let found = Sha256::digest(requests(i).join("\0"));
                let found: String = found[..8].iter().map(|byte| format!("{byte:02x}")).collect();
                assert_eq!(found, hash.as_str().unwrap(), "{name}, {shots} examples, document {i}");
            }
            // A limit changes nothing for the documents that are kept.
            let mut limited = catalog.load(name).unwrap();
            limited.limit(3.0);
            limited.add_shots(&pool, shots.parse().unwrap(), 1234).unwrap();
            assert_eq!(limited.documents[..], task.documents[..3]);
        }
    }
}

#[test]
fn examples_that_cannot_be_drawn_are_an_error() {
    let catalog = Catalog::discover(Files::open(&folder().join("data")).unwrap()).unwrap();
    let mut task = catalog.load("piqa").unwrap();
    let pool = catalog.examples("piqa").unwrap();
    assert!(task.add_shots(&pool[..3], 3, 1).unwrap_err().to_string().contains("4 are needed"));
    let files = Files::from_memory("m", [("t.jsonl", br#"{"query":"b","choices":["a"],"gold":0}"#.to_vec())]);
    let error = Catalog::discover(files).unwrap().examples("t").unwrap_err().to_string();
    assert!(error.contains("t (examples)"), "{error}");
}
