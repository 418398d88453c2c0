//! Logits against TorchMX's own, on the tiny random models: every bit of all 20 runs.

use std::path::Path;

use half::bf16;
use microscale_model::{Checkpoint, Llama, Recipe};
use microscale_tensor::{Cpu, Isa, Reference};
use safetensors::SafeTensors;

/// The runs' names in the reference file, as recipes.
fn recipe(name: &str) -> Recipe {
    let text = match name {
        "w6a8-qkv6" => "w6a8-attn6",
        "w6a6-qkv6" => "w6a6-attn6",
        "int8-all" => "proj=int8,mlp=int8,attn=int8",
        "e2m3-all" => "proj=e2m3,mlp=e2m3,attn=e2m3",
        other => other,
    };
    Recipe::parse(text).unwrap().for_scoring()
}

struct Run {
    name: String,
    tokens: Vec<u32>,
    logits: Vec<bf16>,
}

fn runs(model: &Path) -> Vec<Run> {
    let bytes = std::fs::read(model.join("torchmx_logits.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<_> = file.names().into_iter().filter(|n| !n.starts_with("tokens")).collect();
    names.sort();
    let run = |name: &str| {
        let set = name.rsplit_once('.').unwrap().1;
        let tokens = file.tensor(&format!("tokens.{set}")).unwrap();
        let tokens = tokens.data().as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let logits = file.tensor(name).unwrap();
        let logits = logits.data().as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b)).collect();
        Run { name: name.to_owned(), tokens, logits }
    };
    names.into_iter().map(run).collect()
}

fn differences(expected: &[bf16], found: &[bf16]) -> usize {
    assert_eq!(expected.len(), found.len());
    expected.iter().zip(found).filter(|(e, f)| e.to_bits() != f.to_bits()).count()
}

#[test]
fn every_bit_of_torchmx() {
    let Some(shared) = microscale_testing::shared("every_bit_of_torchmx") else { return };
    let mut count = 0;
    for model in ["llama-tiny", "qwen2-tiny"] {
        let folder = shared.join("reference").join(model);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for run in runs(&folder) {
            let recipe = recipe(run.name.rsplit_once('.').unwrap().0);
            for isa in Isa::available() {
                let logits =
                    Llama::load(Cpu::with_isa(isa), &checkpoint, &recipe).unwrap().logits(&run.tokens).unwrap();
                assert_eq!(differences(&run.logits, logits.values()), 0, "{model} {} on {isa}", run.name);
            }
            count += 1;
        }
    }
    assert_eq!(count, 20, "runs");
}

/// The slow reference path on the shorter runs.
#[test]
fn the_reference_backend_too() {
    let Some(shared) = microscale_testing::shared("the_reference_backend_too") else { return };
    for model in ["llama-tiny", "qwen2-tiny"] {
        let folder = shared.join("reference").join(model);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        for run in runs(&folder).into_iter().filter(|r| r.name.ends_with("t45")) {
            let recipe = recipe(run.name.rsplit_once('.').unwrap().0);
            let logits = Llama::load(Reference, &checkpoint, &recipe).unwrap().logits(&run.tokens).unwrap();
            assert_eq!(differences(&run.logits, logits.values()), 0, "{model} {}", run.name);
        }
    }
}
