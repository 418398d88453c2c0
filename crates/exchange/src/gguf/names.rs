//! The names of a LLaMA's tensors here and there.

/// A part of a layer at Hugging Face, and in GGUF.
const PARTS: [(&str, &str); 9] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];
/// Outside of layers.
const ENDS: [(&str, &str); 3] =
    [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];

/// What a GGUF file calls a tensor of a Hugging Face name.
pub(crate) fn to_gguf(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    if let Some((_, there)) = ENDS.iter().find(|(here, _)| *here == module) {
        return Some(format!("{there}.{kind}"));
    }
    let (layer, part) = module.strip_prefix("model.layers.")?.split_once('.')?;
    layer.parse::<u32>().ok()?;
    let (_, there) = PARTS.iter().find(|(here, _)| *here == part)?;
    Some(format!("blk.{layer}.{there}.{kind}"))
}

/// The Hugging Face name of a tensor of a GGUF file.
pub(crate) fn from_gguf(name: &str) -> Option<String> {
    let (module, kind) = name.rsplit_once('.').filter(|(_, kind)| ["weight", "bias"].contains(kind))?;
    if let Some((here, _)) = ENDS.iter().find(|(_, there)| *there == module) {
        return Some(format!("{here}.{kind}"));
    }
    let (layer, part) = module.strip_prefix("blk.")?.split_once('.')?;
    let layer: u32 = layer.parse().ok()?;
    let (here, _) = PARTS.iter().find(|(_, there)| *there == part)?;
    Some(format!("model.layers.{layer}.{here}.{kind}"))
}

/// Whether llama.cpp has the rows of this tensor of a LLaMA in another order, for its rotary embedding: 0 for queries,
/// 1 for keys.
pub(crate) fn turned(name: &str) -> Option<usize> {
    let module = name.rsplit_once('.').map(|(module, _)| module)?;
    ["self_attn.q_proj", "self_attn.k_proj"].iter().position(|part| module.ends_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_and_back() {
        for name in ["lm_head.weight", "model.layers.31.self_attn.q_proj.bias", "model.layers.0.mlp.down_proj.weight"] {
            assert_eq!(from_gguf(&to_gguf(name).unwrap()).unwrap(), name);
        }
        assert_eq!(to_gguf("model.layers.3.input_layernorm.weight").unwrap(), "blk.3.attn_norm.weight");
        assert!(
            to_gguf("model.layers.0.self_attn.rotary_emb.inv_freq").is_none()
                && from_gguf("rope_freqs.weight").is_none()
        );
        assert_eq!([turned("model.layers.0.self_attn.k_proj.weight"), turned("lm_head.weight")], [Some(1), None]);
    }
}
