//! The seam to the hardware: the operations a LLaMA needs, and the values they work on.

use std::ops::Range;

use half::bf16;
use microscale_formats::{BLOCK, ElementFormat, ScaleRule};

use crate::{Matrix, MxTensor};

/// How a tensor is quantized: element format, values per block, and the rule that chooses a block's scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockFormat {
    /// What an element is.
    pub element: ElementFormat,
    /// Values that share a scale.
    pub block_size: usize,
    /// How the scale is chosen.
    pub scale_rule: ScaleRule,
}

impl From<ElementFormat> for BlockFormat {
    /// Blocks of 32 and the rule `floor`, as in the OCP specification.
    fn from(element: ElementFormat) -> Self {
        BlockFormat { element, block_size: BLOCK, scale_rule: ScaleRule::Floor }
    }
}

/// A weight `[outputs, inputs]` before a backend has laid it out.
#[derive(Clone, Debug)]
pub enum WeightMatrix {
    /// Not quantized.
    Bf16(Matrix),
    /// Quantized along the inputs (axis 1 of 2).
    Mx(MxTensor),
}

impl WeightMatrix {
    /// A bf16 matrix `[outputs, inputs]`, quantized along its inputs or left alone.
    pub fn new(matrix: Matrix, format: Option<BlockFormat>) -> WeightMatrix {
        match format {
            None => WeightMatrix::Bf16(matrix),
            Some(format) => WeightMatrix::Mx(MxTensor::from_matrix(&matrix, format)),
        }
    }

    /// `[outputs, inputs]`.
    pub fn shape(&self) -> [usize; 2] {
        match self {
            WeightMatrix::Bf16(m) => [m.rows(), m.columns()],
            WeightMatrix::Mx(t) => [t.shape()[0], t.shape()[1]],
        }
    }
}

/// A weight and its bias.
#[derive(Debug)]
pub struct Linear<'a, W> {
    /// `[outputs, inputs]`.
    pub weight: &'a W,
    /// One per output.
    pub bias: Option<&'a [bf16]>,
}

/// The cosines and sines of rotary embedding, one row of `head_dim` each per token, rounded to bf16.
#[derive(Clone, Debug)]
pub struct Rotation {
    /// `[tokens, head_dim]`.
    pub cos: Matrix,
    /// `[tokens, head_dim]`.
    pub sin: Matrix,
}

/// The shape and the formats of the keys and values of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyValueLayout {
    /// Key and value heads.
    pub heads: usize,
    /// Features per head.
    pub head_dim: usize,
    /// Key format, blocks along the features; `None` is bf16.
    pub key: Option<BlockFormat>,
    /// Value format, blocks along the sequence.
    pub value: Option<BlockFormat>,
}

/// What attention needs to know beside queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads; a multiple of the key and value heads.
    pub heads: usize,
    /// How keys and values are kept.
    pub keys_values: KeyValueLayout,
    /// Query format, blocks along the features; `None` is bf16.
    pub query: Option<BlockFormat>,
    /// Format of the softmax's output, blocks along the keys.
    pub weights: Option<BlockFormat>,
    /// Whether the value block that holds a query's own token is quantized over the tokens up to it alone
    /// (causal), or over all tokens of the cache (what one full pass of the published system does).
    pub causal_value_blocks: bool,
}

/// How likely one token was.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability, in f64.
    pub log_probability: f64,
    /// Whether no other token was more likely, and none before it as likely.
    pub greedy: bool,
}

/// The operations a LLaMA needs, on one kind of hardware.
///
/// Each is specified to the last bit by [`Reference`](crate::Reference), and [`conformance`](crate::conformance)
/// checks an implementation against it. Arguments of the wrong shape are bugs of the caller: they panic. What takes
/// activations by value may put its result in their place.
pub trait Backend: Sync {
    /// A weight, laid out for this backend.
    type Weight: Send + Sync;
    /// Activations `[tokens, features]`, bf16.
    type Activation: Send + Sync;
    /// Activations quantized once, to be multiplied by several weights.
    type Operand: Send + Sync;
    /// The keys and values of one sequence in one layer. A copy may go on in a way of its own.
    type Cache: Clone + Send + Sync;

    /// Runs `work`, whose operations then start without delay. Operations work outside of it too.
    fn session<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R;

    /// What `work` makes of 0, 1, … `count` − 1, one beside the other as far as the hardware has parts that would each take
    /// one: for passes whose operations are too small to be shared out among these.
    fn passes<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R>;

    /// Lays out a weight.
    fn weight(&self, matrix: WeightMatrix) -> Self::Weight;

    /// Brings activations in.
    fn upload(&self, matrix: Matrix) -> Self::Activation;

    /// Brings activations out.
    fn download(&self, x: &Self::Activation) -> Matrix;

    /// The rows `rows` of `x`, in that order; also the look-up of an embedding.
    fn gather(&self, x: &Self::Activation, rows: &[u32]) -> Self::Activation;

    /// x · rsqrt(mean(x²) + eps) per row, rounded, times `weight`, rounded.
    fn rms_norm(&self, x: &Self::Activation, weight: &[bf16], eps: f32) -> Self::Activation;

    /// Quantizes activations along their features, or prepares them as they are.
    fn operand(&self, x: &Self::Activation, format: Option<BlockFormat>) -> Self::Operand;

    /// x · wᵀ + bias: `[tokens, outputs]`, for several weights at once.
    fn linear<const N: usize>(
        &self,
        x: &Self::Operand,
        weights: [Linear<'_, Self::Weight>; N],
    ) -> [Self::Activation; N];

    /// Rotary position embedding of every head: x·cos + rotate_half(x)·sin, each product rounded.
    fn rope(&self, x: Self::Activation, rotation: &Rotation) -> Self::Activation;

    /// A cache without tokens.
    fn cache(&self, layout: &KeyValueLayout) -> Self::Cache;

    /// Appends the rows `sequences[i]` of keys and values, both `[tokens, heads · head_dim]`, to `caches[i]`.
    fn append(
        &self,
        caches: &mut [&mut Self::Cache],
        k: &Self::Activation,
        v: &Self::Activation,
        sequences: &[Range<usize>],
    );

    /// softmax(q·kᵀ / √head_dim)·v per head, causally masked. The rows `sequences[i]` of the queries `[tokens, heads ·
    /// head_dim]` are those of the last tokens of `caches[i]`, which may be none; together they are all rows, in order.
    fn attention(
        &self,
        q: &Self::Activation,
        caches: &[&Self::Cache],
        sequences: &[Range<usize>],
        attention: &Attention,
    ) -> Self::Activation;

    /// silu(gate), rounded, times up.
    fn gated(&self, gate: Self::Activation, up: &Self::Activation) -> Self::Activation;

    /// x + y.
    fn add(&self, x: Self::Activation, y: &Self::Activation) -> Self::Activation;

    /// The score of `targets[i]` under row i of the logits: log-softmax over the whole vocabulary, in f64.
    fn scores(&self, logits: &Self::Activation, targets: &[u32]) -> Vec<TokenScore>;
}
