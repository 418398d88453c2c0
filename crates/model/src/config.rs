//! A `config.json`, checked once: whoever holds a [`Config`] may allocate and multiply by what it says.

mod fields;
mod rotary;

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Error, Rope};
use fields::Fields;

/// Bounds on what a configuration may ask for: far above any model, far below what would overflow a product of two.
const MAX_VOCABULARY: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_INTERMEDIATE: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 14;
/// Largest context length.
pub(crate) const MAX_POSITIONS: usize = 1 << 24;

/// The model families that run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// `LlamaForCausalLM`.
    Llama,
    /// `Qwen2ForCausalLM`: LLaMA with biases on the q, k and v projections.
    Qwen2,
}

impl Architecture {
    /// Every family.
    pub const ALL: [Architecture; 2] = [Self::Llama, Self::Qwen2];

    /// The name in `architectures`: `LlamaForCausalLM`.
    pub fn name(self) -> &'static str {
        match self {
            Architecture::Llama => "LlamaForCausalLM",
            Architecture::Qwen2 => "Qwen2ForCausalLM",
        }
    }
}

/// The shape of a model, from its `config.json`.
///
/// `heads` is a multiple of `kv_heads`, `head_dim` is even, and every product of two sizes fits a `usize`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The model family.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Number of layers (`num_hidden_layers`).
    pub layers: usize,
    /// Query heads (`num_attention_heads`).
    pub heads: usize,
    /// Key and value heads (`num_key_value_heads`).
    pub kv_heads: usize,
    /// Values per head.
    pub head_dim: usize,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f64,
    /// Rotary position embedding.
    pub rope: Rope,
    /// Context length the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the embedding also serves as `lm_head`.
    pub tie_word_embeddings: bool,
    /// Whether q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection of attention has a bias.
    pub o_bias: bool,
    /// Whether gate, up and down have a bias.
    pub mlp_bias: bool,
    /// Beginning-of-sequence id, where the file gives one.
    pub bos: Option<u32>,
    /// End-of-sequence ids, where the file gives any; the first is the principal one.
    pub eos: Vec<u32>,
}

impl Config {
    /// Reads and checks a `config.json`; `origin` names it in errors. Absent keys take transformers' defaults, except
    /// the sizes of the model and the BOS and EOS ids, which the tokenizer knows better.
    ///
    /// # Errors
    /// Not JSON; an architecture, activation, sliding window or quantization that is not supported; a size that is
    /// missing, absurd or does not fit the others. Each names file, key, found and expected.
    pub fn from_json(bytes: &[u8], origin: &Path) -> Result<Config, Error> {
        let object = object(bytes, origin)?;
        let fields = Fields::new(&object, origin);
        let architecture = supported(fields)?;
        let [hidden_size, heads, kv_heads, head_dim] = attention_shape(fields)?;
        let qwen2 = architecture == Architecture::Qwen2;
        let positions = if qwen2 { 32768 } else { 2048 };
        let max_position_embeddings = fields.count("max_position_embeddings", Some(positions), 1..=MAX_POSITIONS)?;
        if qwen2 {
            refuse_sliding_window(fields, max_position_embeddings)?;
        }
        let bias = !qwen2 && fields.flag("attention_bias", false)?;
        let vocab_size = fields.count("vocab_size", None, 1..=MAX_VOCABULARY)?;
        let bos = special_ids(fields, "bos_token_id", vocab_size)?;
        let eos = special_ids(fields, "eos_token_id", vocab_size)?;
        Ok(Config {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", None, 1..=MAX_INTERMEDIATE)?,
            layers: fields.count("num_hidden_layers", None, 1..=MAX_LAYERS)?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: fields
                .number("rms_norm_eps", Some(1e-6), "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))?,
            rope: rotary::rope(fields, head_dim, max_position_embeddings)?,
            max_position_embeddings,
            tie_word_embeddings: fields.flag("tie_word_embeddings", false)?,
            qkv_bias: qwen2 || bias,
            o_bias: bias,
            mlp_bias: !qwen2 && fields.flag("mlp_bias", false)?,
            bos: bos.first().copied(),
            eos,
        })
    }

    /// The end-of-sequence ids of a `generation_config.json`; empty where it names none.
    ///
    /// # Errors
    /// Not JSON, or ids that are none of this model's.
    pub(crate) fn end_tokens_of(&self, bytes: &[u8], origin: &Path) -> Result<Vec<u32>, Error> {
        special_ids(Fields::new(&object(bytes, origin)?, origin), "eos_token_id", self.vocab_size)
    }
}

/// The architecture, if the model is one that runs here as it is.
fn supported(fields: Fields<'_>) -> Result<Architecture, Error> {
    if fields.get("quantization_config").is_some() {
        let expected = "none: bring models of other programs here with `microscale convert --to native`, or give the bf16 original";
        return Err(fields.error("quantization_config", expected));
    }
    let named = |name: &str| Architecture::ALL.into_iter().find(|a| a.name() == name);
    let architecture = match fields.get("architectures") {
        // Some older files give only the family.
        None => match fields.text("model_type")? {
            Some("llama") => Some(Architecture::Llama),
            Some("qwen2") => Some(Architecture::Qwen2),
            _ => None,
        },
        Some(Value::Array(names)) => names.first().and_then(Value::as_str).and_then(named),
        Some(_) => None,
    };
    let known = Architecture::ALL.map(Architecture::name).join(", ");
    let architecture = architecture.ok_or_else(|| fields.error("architectures", format!("one of {known}")))?;
    match fields.text("hidden_act")? {
        None | Some("silu") => Ok(architecture),
        Some(_) => Err(fields.error("hidden_act", "\"silu\", the only activation supported")),
    }
}

/// hidden_size, heads, kv_heads and head_dim, which must fit each other.
fn attention_shape(fields: Fields<'_>) -> Result<[usize; 4], Error> {
    let hidden_size = fields.count("hidden_size", None, 1..=MAX_WIDTH)?;
    let heads = fields.count("num_attention_heads", None, 1..=MAX_HEADS)?;
    let kv_heads = fields.count("num_key_value_heads", Some(heads), 1..=MAX_HEADS)?;
    if heads % kv_heads != 0 {
        return Err(fields.error("num_key_value_heads", format!("a divisor of num_attention_heads, which is {heads}")));
    }
    if fields.get("head_dim").is_none() && hidden_size % heads != 0 {
        let expected = format!("a multiple of num_attention_heads, which is {heads}, or a head_dim beside it");
        return Err(fields.error("hidden_size", expected));
    }
    let head_dim = fields.count("head_dim", Some(hidden_size / heads), 1..=MAX_HEAD_DIM)?;
    if head_dim % 2 != 0 {
        let key = if fields.get("head_dim").is_some() { "head_dim" } else { "hidden_size" };
        let expected = format!("an even head_dim, which rotary embedding needs, not {head_dim}");
        return Err(fields.error(key, expected));
    }
    Ok([hidden_size, heads, kv_heads, head_dim])
}

/// A window that never cuts anything off is fine; one that does would need another attention.
fn refuse_sliding_window(fields: Fields<'_>, max_position_embeddings: usize) -> Result<(), Error> {
    if !fields.flag("use_sliding_window", false)? {
        return Ok(());
    }
    // An absent window is 4096 tokens to transformers, null is none.
    let window = match fields.get("sliding_window") {
        None if fields.is_null("sliding_window") => return Ok(()),
        None => Some(4096),
        Some(window) => window.as_u64(),
    };
    if window.is_some_and(|w| w >= max_position_embeddings as u64) {
        return Ok(());
    }
    let reason = "attention over a sliding window is not supported";
    let expected = format!("at least max_position_embeddings ({max_position_embeddings}): {reason}");
    Err(fields.error("sliding_window", expected))
}

/// Token ids, which must be in the vocabulary.
fn special_ids(fields: Fields<'_>, key: &str, vocab_size: usize) -> Result<Vec<u32>, Error> {
    let ids = fields.token_ids(key)?;
    match ids.iter().all(|&id| (id as usize) < vocab_size) {
        true => Ok(ids),
        false => Err(fields.error(key, format!("ids below vocab_size, which is {vocab_size}"))),
    }
}

/// The JSON object that one of a model's configuration files is.
fn object(bytes: &[u8], origin: &Path) -> Result<Map<String, Value>, Error> {
    let file = origin.file_name().map_or("configuration".into(), |name| name.to_string_lossy());
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::checkpoint(origin, format!("holds no JSON object; this is not a model's {file}"))),
        Err(e) => Err(Error::checkpoint(origin, format!("not valid JSON ({e}); fetch the model's {file} again"))),
    }
}
