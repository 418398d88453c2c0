//! Reading a GGUF file.

use std::collections::BTreeMap;

use microscale_formats::{BLOCK, E2M1, INT8, ScaleRule};
use microscale_model::{Dtype, Error, MappedFile, is_companion};
use microscale_tensor::BlockFormat;
use serde_json::{Map, Value as Json, json};

use super::container::{Found, Header, Info, Type};
use super::names;
use super::write::{KEY_FILE, KEY_OUTTYPE, KEY_TOKENIZER, TOKENIZER};
use crate::open::set_rule;
use crate::repack::Packing;
use crate::source::{Place, Source, Stored, Tensor, checkpoint, object};
use crate::write::role;
use crate::{Kind, Outtype, notes};

/// Reads a GGUF file: of this program, or of llama.cpp.
pub(crate) fn read(file: MappedFile) -> Result<Source, Error> {
    let path = file.path().to_owned();
    let fail = |reason: String| checkpoint(&path, reason);
    let header = Header::parse(file.bytes()).map_err(fail)?;
    let texts = header.pairs.iter().filter_map(|(key, value)| match value {
        Found::Text(text) if key.starts_with("microscale.") && !key.starts_with(KEY_FILE) => Some((*key, *text)),
        _ => None,
    });
    let (mut about, original) = notes::read(texts, &path)?;
    let recorded = about.source_sha256.is_some();
    // With --outtype q8_0 such integers may be anything but what the recipe says is INT8.
    let others = header.text(KEY_OUTTYPE) == Some(Outtype::Q8_0.name());
    let recipe = about.recipe.clone();
    let int8 = |name: &str| recipe.as_ref().and_then(|recipe| recipe.format(role(name)?)) == Some(INT8);
    about.kept = kept(&header);
    let config = match original {
        Some(text) => {
            object(text.as_bytes(), &path)?;
            text.into_bytes()
        }
        None => format!("{:#}\n", Json::Object(config(&header).map_err(fail)?)).into_bytes(),
    };
    let head_dim = head_dim(&header).map_err(fail)?;
    let mut tensors = Vec::new();
    for info in header.tensors.iter().filter(|info| info.name != "rope_freqs.weight") {
        let name = names::from_gguf(&info.name)
            .ok_or_else(|| fail(format!("tensor {}: is none of a LLaMA's or Qwen 2's", info.name)))?;
        let mx = recorded && (!others || int8(&name));
        tensors
            .push(tensor(info, name, head_dim, mx).map_err(|reason| fail(format!("tensor {}: {reason}", info.name)))?);
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    let rule = about.recipe.as_ref().map_or(ScaleRule::Even, |recipe| recipe.scale_rule);
    set_rule(&mut tensors, rule);
    let packed = tensors.iter().any(|tensor| tensor.format().is_some());
    let companions = companions(&header);
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    Ok(Source {
        name,
        kind: packed.then_some(Kind::Gguf),
        config,
        stored_config: None,
        files: vec![file],
        tensors,
        companions,
        about,
        path,
    })
}

/// A tensor under its Hugging Face name. `mx` says whether integers of 8 bits are: if this program wrote them as such.
fn tensor(info: &Info, name: String, head_dim: Option<usize>, mx: bool) -> Result<Tensor, String> {
    let at = Place { file: 0, offset: info.offset };
    let blocks = |element| Stored::Packed {
        format: BlockFormat { element, block_size: BLOCK, scale_rule: ScaleRule::default() },
        packing: Packing::Blocks,
        codes: at,
        scales: None,
    };
    let stored = match info.kind {
        Type::F32 => Stored::Plain { dtype: Dtype::F32, at },
        Type::F16 => Stored::Plain { dtype: Dtype::F16, at },
        Type::Bf16 => Stored::Plain { dtype: Dtype::BF16, at },
        Type::Mxfp4 => blocks(E2M1),
        Type::Q8_0 if mx => blocks(INT8),
        Type::Q8_0 => {
            return Err("is Q8_0, whose scales are any number; MX has powers of two. Convert the original".to_owned());
        }
    };
    let turned = head_dim.filter(|_| names::turned(&name).is_some());
    Ok(Tensor { name, shape: info.shape.clone(), stored, turned })
}

/// Rows of a head, if the model is one whose queries and keys llama.cpp turns.
fn head_dim(header: &Header<'_>) -> Result<Option<usize>, String> {
    if architecture(header)? != "llama" {
        return Ok(None);
    }
    let count = |key: &str| header.count(&format!("llama.{key}")).map(|count| count as usize);
    let of_width = || Some(count("embedding_length")? / count("attention.head_count").filter(|&heads| heads > 0)?);
    let found = count("rope.dimension_count").or_else(|| count("attention.key_length")).or_else(of_width);
    match found {
        Some(head_dim) if (2..=1 << 14).contains(&head_dim) && head_dim % 2 == 0 => Ok(Some(head_dim)),
        found => Err(format!("has heads of {found:?} values; expected an even number")),
    }
}

fn architecture<'a>(header: &Header<'a>) -> Result<&'a str, String> {
    match header.text("general.architecture") {
        Some(known @ ("llama" | "qwen2")) => Ok(known),
        Some(other) => Err(format!("holds a model of the kind {other:?}; expected llama or qwen2")),
        None => Err("does not say what kind of model it holds (general.architecture)".to_owned()),
    }
}

/// A `config.json` made of the pairs.
fn config(header: &Header<'_>) -> Result<Map<String, Json>, String> {
    let architecture = architecture(header)?;
    let key = |key: &str| format!("{architecture}.{key}");
    let count = |name: &str| header.count(&key(name)).ok_or_else(|| format!("lacks the key {}", key(name)));
    let number = |name: &str| header.number(&key(name));
    // Numbers are held in f32; the shortest decimal that gives it is what was meant.
    let decimal = |number: f64| (number as f32).to_string().parse::<f64>().map_or(json!(number), |n| json!(n));
    let mut config = Map::new();
    let class = if architecture == "llama" { "LlamaForCausalLM" } else { "Qwen2ForCausalLM" };
    config.insert("architectures".to_owned(), json!([class]));
    config.insert("model_type".to_owned(), json!(architecture));
    config.insert("hidden_act".to_owned(), json!("silu"));
    for (name, there) in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("max_position_embeddings", "context_length"),
    ] {
        config.insert(name.to_owned(), json!(count(there)?));
    }
    let heads = count("attention.head_count")?;
    config.insert("num_key_value_heads".to_owned(), json!(count("attention.head_count_kv").unwrap_or(heads)));
    header
        .count(&key("attention.key_length"))
        .into_iter()
        .for_each(|n| drop(config.insert("head_dim".to_owned(), json!(n))));
    let vocabulary = header.count(&key("vocab_size")).or_else(|| header.length("tokenizer.ggml.tokens"));
    let rows = header.tensors.iter().find(|info| info.name == "token_embd.weight").map(|info| info.shape[0] as u64);
    let vocabulary = rows.or(vocabulary).ok_or("does not say how large its vocabulary is")?;
    config.insert("vocab_size".to_owned(), json!(vocabulary));
    let epsilon = number("attention.layer_norm_rms_epsilon").ok_or("lacks attention.layer_norm_rms_epsilon")?;
    config.insert("rms_norm_eps".to_owned(), decimal(epsilon));
    config.insert("rope_theta".to_owned(), decimal(number("rope.freq_base").unwrap_or(10_000.0)));
    config.insert("rope_scaling".to_owned(), scaling(header, architecture)?);
    let has = |name: &str| header.tensors.iter().any(|info| info.name == name);
    config.insert("tie_word_embeddings".to_owned(), json!(!has("output.weight")));
    if architecture == "llama" {
        config.insert("attention_bias".to_owned(), json!(has("blk.0.attn_q.bias")));
        config.insert("mlp_bias".to_owned(), json!(has("blk.0.ffn_up.bias")));
    }
    for (name, there) in
        [("bos_token_id", "tokenizer.ggml.bos_token_id"), ("eos_token_id", "tokenizer.ggml.eos_token_id")]
    {
        header.count(there).into_iter().for_each(|id| drop(config.insert(name.to_owned(), json!(id))));
    }
    config.insert("torch_dtype".to_owned(), json!("bfloat16"));
    Ok(config)
}

/// What `config.json` says of the rotary embedding.
fn scaling(header: &Header<'_>, architecture: &str) -> Result<Json, String> {
    if header.tensors.iter().any(|info| info.name == "rope_freqs.weight") {
        return Err("has frequencies of its own (rope_freqs.weight), of which config.json's numbers cannot be told; \
                    convert the original"
            .to_owned());
    }
    let key = |key: &str| format!("{architecture}.rope.scaling.{key}");
    let factor = header.number(&key("factor"));
    match (header.text(&key("type")), factor) {
        (None | Some("none"), _) => Ok(Json::Null),
        (Some("linear"), Some(factor)) => Ok(json!({"rope_type": "linear", "factor": factor})),
        (Some(other), _) => Err(format!("scales its rotary embedding by {other:?}; known are none and linear")),
    }
}

/// The files that this program put there.
fn companions(header: &Header<'_>) -> Vec<(String, Vec<u8>)> {
    let mut files: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for (key, value) in &header.pairs {
        let Found::Text(text) = value else { continue };
        let name = match key.strip_prefix(KEY_FILE) {
            Some(name) if is_companion(name) => name, // no other may be put beside the weights
            _ if *key == KEY_TOKENIZER => TOKENIZER,
            _ => continue,
        };
        files.insert(name.to_owned(), text.as_bytes().to_vec());
    }
    files.into_iter().collect()
}

/// Texts of the file's metadata that are neither GGUF's nor this program's: what a safetensors file had.
fn kept(header: &Header<'_>) -> BTreeMap<String, String> {
    let theirs = |key: &str| {
        ["general.", "tokenizer.", "llama.", "qwen2.", "microscale."].iter().any(|prefix| key.starts_with(prefix))
    };
    let texts = header.pairs.iter().filter_map(|(key, value)| match value {
        Found::Text(text) if !theirs(key) => Some(((*key).to_owned(), (*text).to_owned())),
        _ => None,
    });
    texts.collect()
}
