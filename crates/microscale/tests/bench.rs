//! Measurements of a model without a checkpoint, through the library.

use microscale::bench::{Entry, Machine, Peaks, Phase, Plan, Report, Run, Watch, measure};
use microscale::model::{Config, Error, Llama, PackedSize, RandomWeights, Recipe};
use microscale::tensor::Cpu;
use serde_json::Value;

/// Counts how often it is asked.
#[derive(Default)]
struct Watcher {
    asked: u32,
    heard: Vec<(Run, f64)>,
}

impl Watch for Watcher {
    type Error = Error;

    fn before(&mut self) -> Result<Peaks, Error> {
        self.asked += 1;
        Ok(Peaks { read: f64::from(self.asked), products: 1e11 })
    }

    fn after(&mut self, run: Run, seconds: f64) -> Result<Peaks, Error> {
        self.heard.push((run, seconds));
        self.before()
    }
}

#[test]
fn a_model_of_any_shape_is_measured() {
    let json = br#"{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 96, "intermediate_size": 160, "num_hidden_layers": 2}"#;
    let weights = RandomWeights::new(Config::from_json(json, "tiny".as_ref()).unwrap(), 1);
    let recipe = Recipe::parse("w4a8-attn8").unwrap().for_generation().unwrap();
    let model = Llama::load(Cpu::new(), &weights, &recipe).unwrap();
    let plan = Plan { prefill: vec![6], decode: vec![3], context: 2, repetitions: 3 };
    let mut watcher = Watcher::default();
    let timings = measure(&model, &recipe, &plan, &mut watcher).unwrap();
    assert_eq!(timings.iter().map(|t| t.run).collect::<Vec<_>>(), plan.runs());
    let repeated: Vec<_> = timings.iter().flat_map(|t| t.repetitions.iter().map(|r| (t.run, r.seconds))).collect();
    assert_eq!(watcher.heard, repeated);
    let beside: Vec<f64> = timings.iter().flat_map(|t| &t.repetitions).map(|r| r.peaks.read).collect();
    assert_eq!(beside, [1.5, 3.5, 5.5, 7.5, 9.5, 11.5]);
    // Two layers of four attention and three MLP matrices, and the head.
    let weights = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 160 * 64) + 96 * 64;
    assert_eq!(timings[1].run.phase, Phase::Decode);
    assert_eq!(timings[1].bytes_per_token, f64::from(weights) * 4.25 / 8.0);
    assert_eq!(timings[0].bytes_per_token, timings[1].bytes_per_token / 6.0);
    assert_eq!(PackedSize::of(model.config(), &recipe).layer_weights + 96 * 64, weights as usize);
    let nothing = measure(&model, &recipe, &Plan { decode: vec![0], ..plan }, &mut watcher);
    assert!(nothing.unwrap_err().to_string().contains("decode 0 after 2"));

    let entry = |timing| Entry {
        model: "tiny".to_owned(),
        recipe: recipe.name.clone(),
        timing,
        load_s: 0.1,
        peak_memory_bytes: Some(1),
    };
    let report = Report {
        machine: Machine { cpu: "CPU".to_owned(), isa: "scalar".to_owned(), threads: 1 },
        results: timings.into_iter().map(entry).collect(),
    };
    let parsed: Value = serde_json::from_str(&report.to_json().to_string()).unwrap();
    let keys: Vec<&String> = parsed["results"][1].as_object().unwrap().keys().collect();
    let documented = [
        "model",
        "recipe",
        "phase",
        "tokens",
        "context",
        "threads",
        "tokens_per_s",
        "bytes_per_token",
        "bits_per_weight",
        "gb_s",
        "gflop_s",
        "share_of_read_peak",
        "share_of_bf16_peak",
        "peaks_beside",
        "load_s",
        "peak_memory_bytes",
    ];
    assert_eq!(keys, documented);
    assert!(parsed["results"][1]["tokens_per_s"]["median"].as_f64().unwrap() > 0.0);
}
