//! The tensors a configuration calls for, under their Hugging Face names.

use crate::{Config, Role};

/// The embedding, `[vocabulary, hidden]`.
pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head, `[vocabulary, hidden]`, where it is not the embedding.
pub(crate) const HEAD: &str = "lm_head.weight";

/// A tensor that a model has.
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
    /// The role of one that a recipe may quantize.
    pub(crate) role: Option<Role>,
}

/// Every tensor of the model; `own_head` says whether the head is one of them.
pub(super) fn tensors(config: &Config, own_head: bool) -> impl Iterator<Item = Expected> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let plain = |name: &str, shape| Expected { name: name.to_owned(), shape, role: None };
    let outer = [plain(EMBEDDING, vec![vocab, hidden]), plain("model.norm.weight", vec![hidden])];
    let head = Expected { role: Some(Role::HeadWeight), ..plain(HEAD, vec![vocab, hidden]) };
    outer.into_iter().chain(own_head.then_some(head)).chain((0..config.layers).flat_map(|i| layer(config, i)))
}

/// Every tensor of layer `i`.
fn layer(config: &Config, i: usize) -> impl Iterator<Item = Expected> {
    let hidden = config.hidden_size;
    let norms = ["input_layernorm", "post_attention_layernorm"].into_iter().map(move |name| Expected {
        name: format!("model.layers.{i}.{name}.weight"),
        shape: vec![hidden],
        role: None,
    });
    let linears = linears(config).into_iter().flat_map(move |(name, [rows, columns], bias)| {
        let role = if name.starts_with("mlp") { Role::MlpWeight } else { Role::ProjectionWeight };
        let tensor =
            |part: &str, shape, role| Expected { name: format!("model.layers.{i}.{name}.{part}"), shape, role };
        let weight = tensor("weight", vec![rows, columns], Some(role));
        let bias = bias.then(|| tensor("bias", vec![rows], None));
        [Some(weight), bias].into_iter().flatten()
    });
    norms.chain(linears)
}

/// The biases that the configuration says the model has not.
pub(super) fn denied(config: &Config) -> impl Iterator<Item = String> {
    let without = linears(config).into_iter().filter(|(_, _, bias)| !bias);
    let names: Vec<&str> = without.map(|(name, ..)| name).collect();
    (0..config.layers)
        .flat_map(move |i| names.iter().map(|name| format!("model.layers.{i}.{name}.bias")).collect::<Vec<_>>())
}

/// Name, shape [out, in] and bias of a layer's linear maps.
fn linears(config: &Config) -> [(&'static str, [usize; 2], bool); 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    [
        ("self_attn.q_proj", [queries, hidden], config.qkv_bias),
        ("self_attn.k_proj", [keys, hidden], config.qkv_bias),
        ("self_attn.v_proj", [keys, hidden], config.qkv_bias),
        ("self_attn.o_proj", [hidden, queries], config.o_bias),
        ("mlp.gate_proj", [inner, hidden], config.mlp_bias),
        ("mlp.up_proj", [inner, hidden], config.mlp_bias),
        ("mlp.down_proj", [hidden, inner], config.mlp_bias),
    ]
}
