//! Quantized files that are damaged or lie: errors, never panics, and no memory that the files do not justify.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use microscale_formats::{E4M3, Ties};
use microscale_model::{
    Checkpoint, Contents, FileQuantization, Float, Llama, ModelOutput, Progress, RandomWeights, Recipe, TensorSource,
    compare, dequantize_file, quantize_file, quantize_model,
};
use microscale_tensor::Cpu;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 36, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 40, "intermediate_size": 37, "num_hidden_layers": 1, "head_dim": 18,
    })
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// The weights of a small model, as a file's content.
fn plain() -> Vec<u8> {
    let (model, shapes) = (
        RandomWeights::new(
            microscale_model::Config::from_json(config().to_string().as_bytes(), Path::new("config.json")).unwrap(),
            1,
        ),
        [
            ("model.embed_tokens.weight", vec![40, 36]),
            ("model.norm.weight", vec![36]),
            ("lm_head.weight", vec![40, 36]),
            ("model.layers.0.input_layernorm.weight", vec![36]),
            ("model.layers.0.post_attention_layernorm.weight", vec![36]),
            ("model.layers.0.self_attn.q_proj.weight", vec![36, 36]),
            ("model.layers.0.self_attn.k_proj.weight", vec![18, 36]),
            ("model.layers.0.self_attn.v_proj.weight", vec![18, 36]),
            ("model.layers.0.self_attn.o_proj.weight", vec![36, 36]),
            ("model.layers.0.mlp.gate_proj.weight", vec![37, 36]),
            ("model.layers.0.mlp.up_proj.weight", vec![37, 36]),
            ("model.layers.0.mlp.down_proj.weight", vec![36, 37]),
        ],
    );
    let tensors: BTreeMap<&str, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = model.read(name, &shape).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (*name, TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

/// The same quantized by `recipe`.
fn packed(recipe: &str) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let output = folder.path().join("out");
    let recipe = Recipe::parse(recipe).unwrap();
    quantize_model(&open(plain()).unwrap(), &recipe, &output, &ModelOutput::default(), &go_on).unwrap();
    std::fs::read(output.join("model.safetensors")).unwrap()
}

fn open(weights: Vec<u8>) -> Result<Checkpoint, String> {
    open_with(config().to_string(), weights)
}

fn open_with(config: String, weights: Vec<u8>) -> Result<Checkpoint, String> {
    let leak = |bytes: Vec<u8>| -> &'static [u8] { Box::leak(bytes.into_boxed_slice()) };
    Checkpoint::from_memory("model", leak(config.into_bytes()), leak(weights), b"{}").map_err(|e| e.to_string())
}

/// Opens the file and loads the model by the recipe that it names.
fn load(weights: Vec<u8>) -> Result<(), String> {
    load_with(config().to_string(), weights)
}

fn load_with(config: String, weights: Vec<u8>) -> Result<(), String> {
    let checkpoint = open_with(config, weights)?;
    let recipe = checkpoint.quantization().map_or_else(Recipe::bf16, |q| q.recipe.clone()).for_scoring();
    let model = Llama::load(Cpu::new(), &checkpoint, &recipe).map_err(|e| e.to_string())?;
    model.logits(&[1, 2, 3]).map(|_| ()).map_err(|e| e.to_string())
}

/// Header and data of a file.
fn split(file: &[u8]) -> (Map<String, Value>, &[u8]) {
    let (length, rest) = file.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

fn join(header: &Map<String, Value>, data: &[u8]) -> Vec<u8> {
    let header = Value::Object(header.clone()).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A change that keeps a JSON text readable more often than not: one of its numbers or words becomes another.
fn change(text: &str, random: &mut Random) -> String {
    let numbers = ["0", "1", "37", "64", "4097", "18446744073709551615", "1099511627777", "-1", "1e99", "null", "[]"];
    let words = ["fp4_e2m1", "int8", "bf16", "mse", "nothing", "lm_head.weight", "U8", "BF16", "F4", "true", ""];
    let parts: Vec<(usize, &str)> = text
        .match_indices(|c: char| c.is_ascii_alphanumeric())
        .map(|(at, _)| at)
        .filter(|&at| at == 0 || !text.as_bytes()[at - 1].is_ascii_alphanumeric())
        .map(|at| {
            let rest = &text[at..];
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '.').unwrap_or(rest.len());
            (at, &rest[..end])
        })
        .collect();
    let (at, part) = parts[random.below(parts.len())];
    let number = part.bytes().all(|byte| byte.is_ascii_digit());
    let new = if number { numbers[random.below(numbers.len())] } else { words[random.below(words.len())] };
    format!("{}{new}{}", &text[..at], &text[at + part.len()..])
}

#[test]
fn mutations_never_panic() {
    let mut random = Random(4);
    let folder = tempfile::tempdir().unwrap();
    let (path, output) = (folder.path().join("file"), folder.path().join("out"));
    let (mut opened, mut refused) = (0, 0);
    for recipe in ["w6a8", "proj=int8,mlp=fp4,attn=fp6"] {
        let weights = packed(recipe);
        load(weights.clone()).unwrap();
        let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
        for round in 0..1000 {
            let (mut bytes, mut config) = (weights.clone(), config().to_string());
            match round % 5 {
                // Bytes of the header, of the data, words of the header, of its metadata, of config.json.
                0 => (0..=random.below(3))
                    .for_each(|_| bytes[random.below(header)] = b"0129-\"[]{},:ftu\\"[random.below(16)]),
                1 => (0..=random.below(9)).for_each(|_| {
                    let at = header + random.below(weights.len() - header);
                    bytes[at] = random.below(256) as u8;
                }),
                2 => {
                    let text = std::str::from_utf8(&bytes[8..header]).unwrap();
                    let text = change(text, &mut random);
                    bytes = [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &weights[header..]].concat();
                }
                3 => {
                    let (mut header, data) = split(&weights);
                    let notes = header["__metadata__"].as_object_mut().unwrap();
                    let key = notes.keys().nth(random.below(notes.len())).unwrap().clone();
                    let text = notes[&key].as_str().unwrap();
                    notes[&key] = Value::String(change(text, &mut random));
                    bytes = join(&header, data);
                }
                _ => config = change(&config, &mut random),
            }
            match load_with(config, bytes.clone()) {
                Ok(()) => opened += 1,
                Err(message) => {
                    assert!(!message.is_empty() && message.len() < 10_000);
                    refused += 1;
                }
            }
            if round % 5 > 1 {
                std::fs::write(&path, &bytes).unwrap();
                if let Ok(contents) = Contents::of_file(&path) {
                    assert!(compare(&contents, &contents).unwrap().same());
                }
                let _ = dequantize_file(&path, &output, Float::Bf16, &go_on);
                let options =
                    FileQuantization { format: E4M3.into(), ties: Ties::Even, unpacked: false, select: &|_| true };
                let _ = quantize_file(&path, &output, &options, &go_on);
            }
        }
    }
    assert!(opened > 200 && refused > 800, "{opened} opened, {refused} refused");
}

#[test]
fn notes_that_lie() {
    let weights = packed("w6a8");
    let (header, data) = split(&weights);
    let name = "model.layers.0.mlp.down_proj.weight";
    let with = |change: &dyn Fn(&mut Map<String, Value>)| {
        let mut header = header.clone();
        change(&mut header);
        load(join(&header, data)).unwrap_err()
    };
    let note = |key: &str, value: Option<&str>| {
        with(&|header| {
            let notes = header["__metadata__"].as_object_mut().unwrap();
            notes.remove(key);
            value.map(|value| notes.insert(key.to_owned(), json!(value)));
        })
    };
    let entry = |change: &dyn Fn(&mut Value)| {
        with(&|header| {
            let text = header["__metadata__"]["microscale.tensors"].as_str().unwrap();
            let mut tensors: Value = serde_json::from_str(text).unwrap();
            change(&mut tensors[name]);
            header["__metadata__"]["microscale.tensors"] = json!(tensors.to_string());
        })
    };
    let large = 1u64 << 40;
    for (message, words) in [
        (note("microscale.layout", Some("2")), "microscale.layout is \"2\""),
        (note("microscale.layout", None), "shape [40, 27]; expected [40, 36]"),
        (note("microscale.recipe", None), "names no recipe"),
        (note("microscale.recipe", Some("name = 1")), "microscale.recipe of"),
        (note("microscale.recipe", Some("[mlp]\nweight = \"fp6\"")), "the recipe leaves it bf16"),
        (note("microscale.source_sha256", None), "lacks microscale.source_sha256"),
        (note("microscale.tensors", Some("{}")), "not quantized; expected fp6_e3m2"),
        (note("microscale.tensors", Some("[")), "microscale.tensors of its metadata cannot be used"),
        (entry(&|e| e["element"] = json!("fp9")), "unknown element \"fp9\""),
        (entry(&|e| e["scale_rule"] = json!("up")), "unknown scale rule \"up\""),
        (entry(&|e| e["scale_rule"] = json!("even")), "by config.json and recipe"),
        (entry(&|e| e["element"] = json!("fp4")), "expected U8 [36, 19] for the codes"),
        (entry(&|e| e["element"] = json!("fp6_e2m3")), "by config.json and recipe"),
        (entry(&|e| e["block_size"] = json!(0)), "blocks of 0"),
        (entry(&|e| e["block_size"] = json!(16)), "expected U8 [36, 3] for the scales"),
        (entry(&|e| e["shape"] = json!([36, 0])), "shape [36, 0]"),
        (entry(&|e| e["shape"] = json!([large + 1, large + 1])), "described with the shape"),
        (entry(&|e| e["shape"] = json!([large, large])), "expected U8"),
        (entry(&|e| e["shape"] = json!([36, 36])), "expected U8 [36, 27]"),
        (entry(&|e| e["unpacked"] = json!(true)), "expected U8 [36, 37]"),
        (with(&|header| drop(header.remove(&format!("{name}_scale")))), "invalid offset"),
    ] {
        assert!(message.contains(words), "{message}");
    }
    // Of the data, what quantization never gives: a scale that is NaN, and the unused integer.
    let poisoned = |recipe: &str, tensor: &str, byte: u8| {
        let mut weights = packed(recipe);
        let (header, data) = split(&weights);
        let start = weights.len() - data.len() + header[tensor]["data_offsets"][0].as_u64().unwrap() as usize;
        weights[start] = byte;
        load(weights).unwrap_err()
    };
    assert!(poisoned("w4a4", &format!("{name}_scale"), 0xFF).contains("1 of 72 blocks are not finite"));
    assert!(poisoned("int8", name, 0x80).contains("1 of 1332 codes are not finite or not used"));
    assert!(poisoned("w8a8", name, 0x7F).contains("1 of 1332 codes are not finite or not used"));
}
