//! How much memory a model's weights take under a recipe.

use microscale_formats::packed_len;

use crate::{Config, Recipe, Role};

/// The weights of a model, packed: codes at their true width and a byte of scale per block, or bf16.
///
/// A layer's and the head's matrices are what every token is multiplied by; a tied head is a copy of the embedding and
/// counts by itself. A backend's own layout may pad them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackedSize {
    /// Weights in the matrices of all layers.
    pub layer_weights: usize,
    /// Bytes they take.
    pub layer_bytes: usize,
    /// Weights in the output head.
    pub head_weights: usize,
    /// Bytes they take.
    pub head_bytes: usize,
    /// Bytes of what is always bf16: embedding, norms, biases.
    pub other_bytes: usize,
    /// Values in the largest matrix, which is in memory as bf16 while it is quantized.
    pub largest_matrix: usize,
}

impl PackedSize {
    /// The sizes of a model of this shape under `recipe`.
    pub fn of(config: &Config, recipe: &Recipe) -> PackedSize {
        let bytes = |role: Role, [rows, columns]: [usize; 2]| match recipe.format(role) {
            Some(format) => rows * (packed_len(columns, format.bits()) + columns.div_ceil(recipe.block_size)),
            None => rows * columns * 2,
        };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q, kv) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
        let projection = Role::ProjectionWeight;
        let matrices = [
            (projection, [q, hidden], config.qkv_bias),
            (projection, [kv, hidden], config.qkv_bias),
            (projection, [kv, hidden], config.qkv_bias),
            (projection, [hidden, q], config.o_bias),
            (Role::MlpWeight, [inner, hidden], config.mlp_bias),
            (Role::MlpWeight, [inner, hidden], config.mlp_bias),
            (Role::MlpWeight, [hidden, inner], config.mlp_bias),
        ];
        let layer = |of: &dyn Fn(Role, [usize; 2]) -> usize| matrices.iter().map(|&(r, shape, _)| of(r, shape)).sum();
        let weights: usize = layer(&|_, [rows, columns]| rows * columns);
        let packed: usize = layer(&bytes);
        let biases: usize = matrices.iter().map(|&(_, [rows, _], bias)| if bias { rows } else { 0 }).sum();
        let head = [config.vocab_size, hidden];
        PackedSize {
            layer_weights: config.layers * weights,
            layer_bytes: config.layers * packed,
            head_weights: head[0] * head[1],
            head_bytes: bytes(Role::HeadWeight, head),
            other_bytes: 2 * (head[0] * head[1] + config.layers * (2 * hidden + biases) + hidden),
            largest_matrix: matrices.iter().map(|&(_, [r, c], _)| r * c).fold(head[0] * head[1], usize::max),
        }
    }

    /// Bytes of the whole model.
    pub fn total_bytes(&self) -> usize {
        self.layer_bytes + self.head_bytes + self.other_bytes
    }

    /// Bits per weight of the matrices, scales included.
    pub fn bits_per_weight(&self) -> f64 {
        8.0 * (self.layer_bytes + self.head_bytes) as f64 / (self.layer_weights + self.head_weights) as f64
    }
}
