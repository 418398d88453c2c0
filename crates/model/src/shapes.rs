//! The sizes of published models, for measurements without a checkpoint.

use crate::{Architecture, Config, Rope, Scaling};

/// The shape of a published model of the LLaMA 3 family, under its usual name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// `llama-3.1-8b`.
    pub name: &'static str,
    hidden: usize,
    layers: usize,
    /// Query heads, and key and value heads.
    heads: [usize; 2],
    head_dim: usize,
    intermediate: usize,
    /// Whether the embedding is the head too.
    tied: bool,
    /// How far the original context of 8192 tokens is stretched.
    rope_factor: u8,
}

/// What most of them have; not a model.
const USUAL: Shape = Shape {
    name: "",
    hidden: 0,
    layers: 0,
    heads: [32, 8],
    head_dim: 128,
    intermediate: 8192,
    tied: false,
    rope_factor: 8,
};

impl Shape {
    /// Every known one, smallest first.
    #[rustfmt::skip] // a table
    pub const ALL: [Shape; 4] = [
        Shape { name: "llama-3.2-1b", hidden: 2048, layers: 16, head_dim: 64, tied: true, rope_factor: 32, ..USUAL },
        Shape { name: "llama-3.2-3b", hidden: 3072, layers: 28, heads: [24, 8], tied: true, rope_factor: 32, ..USUAL },
        Shape { name: "llama-3.1-8b", hidden: 4096, layers: 32, intermediate: 14336, ..USUAL },
        Shape { name: "llama-3.1-70b", hidden: 8192, layers: 80, heads: [64, 8], intermediate: 28672, ..USUAL },
    ];

    /// The shape of this name, in any case.
    pub fn named(name: &str) -> Option<Shape> {
        Self::ALL.into_iter().find(|shape| shape.name.eq_ignore_ascii_case(name))
    }

    /// What the model's `config.json` says.
    pub fn config(&self) -> Config {
        let max_position_embeddings = 131_072;
        let scaling = Scaling::Llama3 {
            factor: f64::from(self.rope_factor),
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_position_embeddings: 8192.0,
        };
        Config {
            architecture: Architecture::Llama,
            vocab_size: 128_256,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            layers: self.layers,
            heads: self.heads[0],
            kv_heads: self.heads[1],
            head_dim: self.head_dim,
            rms_norm_eps: 1e-5,
            rope: Rope { theta: 500_000.0, scaling, max_position_embeddings },
            max_position_embeddings,
            tie_word_embeddings: self.tied,
            qkv_bias: false,
            o_bias: false,
            mlp_bias: false,
            bos: Some(128_000),
            eos: vec![128_001],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PackedSize, Recipe};

    /// Parameters as the model cards give them; a tied head counts once there.
    #[test]
    fn sizes_are_the_published_ones() {
        for (name, billions) in
            [("llama-3.2-1b", 1.24), ("LLaMA-3.2-3B", 3.21), ("llama-3.1-8b", 8.03), ("llama-3.1-70b", 70.6)]
        {
            let config = Shape::named(name).unwrap().config();
            let size = PackedSize::of(&config, &Recipe::bf16());
            let tied = if config.tie_word_embeddings { size.head_bytes } else { 0 };
            let parameters = (size.total_bytes() - tied) as f64 / 2e9;
            assert!((parameters / billions - 1.0).abs() < 5e-3, "{name}: {parameters}");
        }
        assert_eq!(Shape::named("llama-4"), None);
    }

    #[test]
    fn a_bit_of_scale_for_every_four_weights() {
        let config = Shape::ALL[0].config();
        let bits = |recipe: &str| PackedSize::of(&config, &Recipe::parse(recipe).unwrap()).bits_per_weight();
        assert_eq!([bits("bf16"), bits("w8a8"), bits("w6a8"), bits("w4a8")], [16.0, 8.25, 6.25, 4.25]);
    }
}
