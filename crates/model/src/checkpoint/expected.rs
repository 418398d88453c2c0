//! The tensors a configuration calls for, under their Hugging Face names.

use crate::Config;

/// Name and shape of every tensor of the model.
pub(super) fn tensors(config: &Config) -> impl Iterator<Item = (String, Vec<usize>)> {
    let (vocab, hidden) = (config.vocab_size, config.hidden_size);
    let outer = [("model.embed_tokens.weight", vec![vocab, hidden]), ("model.norm.weight", vec![hidden])];
    let head = (!config.tie_word_embeddings).then(|| ("lm_head.weight", vec![vocab, hidden]));
    let outer = outer.into_iter().chain(head).map(|(name, shape)| (name.to_owned(), shape));
    outer.chain((0..config.layers).flat_map(|i| layer(config, i)))
}

/// Name and shape of every tensor of layer `i`.
fn layer(config: &Config, i: usize) -> impl Iterator<Item = (String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let norms = ["input_layernorm", "post_attention_layernorm"]
        .into_iter()
        .map(move |name| (format!("model.layers.{i}.{name}.weight"), vec![hidden]));
    let linears = linears(config).into_iter().flat_map(move |(name, [rows, columns], bias)| {
        let weight = (format!("model.layers.{i}.{name}.weight"), vec![rows, columns]);
        let bias = bias.then(|| (format!("model.layers.{i}.{name}.bias"), vec![rows]));
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
