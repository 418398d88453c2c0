//! A small model to convert, and what the tests say about folders.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use microscale_exchange::{Kind, Options, Source, convert};
use microscale_formats::Ties;
use microscale_model::transfer::Progress;
use microscale_model::{Checkpoint, Config, Dtype, ModelOutput, RandomWeights, Recipe, TensorSource, quantize_model};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

pub(crate) fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

pub(crate) fn config(tied: bool) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "num_attention_heads": 2,
        "num_key_value_heads": 1, "vocab_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
        "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": tied,
    })
}

/// The model's files in bf16, of weights in `columns` for one whose width is not that of [`config`].
pub(crate) fn checkpoint(config: &Value) -> Checkpoint {
    let text = config.to_string();
    let parsed = Config::from_json(text.as_bytes(), Path::new("config.json")).unwrap();
    let number = |key: &str| config[key].as_u64().unwrap() as usize;
    let [hidden, inner, vocabulary, layers] =
        ["hidden_size", "intermediate_size", "vocab_size", "num_hidden_layers"].map(number);
    let keys = number("num_key_value_heads") * hidden / number("num_attention_heads");
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let weights = RandomWeights::new(parsed, 1);
    let tensors: BTreeMap<String, (Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let bytes = weights.read(&name, &shape).unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
            (name, (shape, bytes))
        })
        .collect();
    let views = tensors
        .iter()
        .map(|(name, (shape, bytes))| (name.as_str(), TensorView::new(Dtype::BF16, shape.clone(), bytes).unwrap()));
    let notes = [("format".to_owned(), "pt".to_owned())].into_iter().collect();
    let weights = safetensors::serialize(views, Some(notes)).unwrap();
    let leak = |bytes: Vec<u8>| -> &'static [u8] { Box::leak(bytes.into_boxed_slice()) };
    Checkpoint::from_memory("small", leak(text.into_bytes()), leak(weights), TOKENIZER.as_bytes()).unwrap()
}

/// A tokenizer as LLaMA 3 has it, of few tokens.
pub(crate) const TOKENIZER: &str = r#"{"added_tokens": [{"id": 0, "content": "<s>", "special": true}], "normalizer": null,
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Split", "pattern": {"Regex":
    "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+"}, "behavior": "Isolated"}]},
    "model": {"type": "BPE", "ignore_merges": true, "vocab": {"a": 1, "b": 2, "ab": 3}, "merges": ["a b"]}}"#;

/// A folder that goes with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The model by a recipe, in the native layout.
    pub(crate) fn quantized(&self, name: &str, config: &Value, recipe: &str) -> PathBuf {
        let output = self.path(name);
        let recipe = Recipe::parse(recipe).unwrap();
        let options = ModelOutput { ties: Ties::Zero, ..ModelOutput::default() };
        quantize_model(&checkpoint(config), &recipe, &output, &options, &go_on).unwrap();
        output
    }

    /// Converts, and answers where to.
    pub(crate) fn convert(&self, from: &Path, to: Kind, name: &str) -> Result<PathBuf, String> {
        let output = self.path(name);
        let options = match to {
            Kind::Native => Options::default(),
            _ => Options { shard_size: 20_000, ..Options::default() },
        };
        let source = Source::open(from).map_err(|e| e.to_string())?;
        convert(&source, to, &output, &options, &go_on).map_err(|e| e.to_string())?;
        Ok(output)
    }
}

/// Names and contents of a folder's files.
pub(crate) fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}
