//! The weights of a model, held in the formats of a recipe.

use std::sync::Arc;

use half::bf16;
use microscale_tensor::{Backend, BlockFormat, Linear, Matrix, WeightMatrix};

use crate::checkpoint::{EMBEDDING, HEAD};
use crate::{Config, Error, Recipe, Role};

/// A weight with its bias, if it has one.
pub struct Projection<B: Backend> {
    /// `[outputs, inputs]`, in the backend's layout.
    pub weight: B::Weight,
    /// One per output.
    pub bias: Option<Vec<bf16>>,
}

impl<B: Backend> Projection<B> {
    /// As the backend takes it.
    pub fn linear(&self) -> Linear<'_, B::Weight> {
        Linear { weight: &self.weight, bias: self.bias.as_deref() }
    }
}

/// One transformer layer.
pub struct Layer<B: Backend> {
    /// RMSNorm before attention, `[hidden]`.
    pub input_norm: Vec<bf16>,
    /// `[heads · head_dim, hidden]`.
    pub q: Projection<B>,
    /// `[kv_heads · head_dim, hidden]`.
    pub k: Projection<B>,
    /// `[kv_heads · head_dim, hidden]`.
    pub v: Projection<B>,
    /// `[hidden, heads · head_dim]`.
    pub o: Projection<B>,
    /// RMSNorm before the MLP, `[hidden]`.
    pub post_attention_norm: Vec<bf16>,
    /// `[intermediate, hidden]`.
    pub gate: Projection<B>,
    /// `[intermediate, hidden]`.
    pub up: Projection<B>,
    /// `[hidden, intermediate]`.
    pub down: Projection<B>,
}

/// What comes before the first layer and after the last.
pub struct Ends<B: Backend> {
    /// `[vocabulary, hidden]`, always bf16.
    pub embedding: B::Activation,
    /// RMSNorm after the last layer, `[hidden]`.
    pub norm: Vec<bf16>,
    /// `[vocabulary, hidden]`; of a tied model a copy of the embedding, quantized.
    pub head: B::Weight,
}

/// Where a model's tensors come from: a checkpoint, or a generator of random ones.
pub trait TensorSource {
    /// The model's shape.
    fn config(&self) -> &Config;

    /// The tensor of this Hugging Face name and shape as bf16, in row-major order.
    ///
    /// # Errors
    /// A tensor that is not there or cannot be read.
    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Error>;

    /// The weight of this name and shape `[outputs, inputs]`, quantized along its inputs as `format` says, or bf16. A
    /// source that holds it quantized hands that out.
    ///
    /// # Errors
    /// As [`read`](Self::read), and a weight that is not to be had in this format.
    fn weight(
        &self,
        name: &str,
        [rows, columns]: [usize; 2],
        format: Option<BlockFormat>,
    ) -> Result<WeightMatrix, Error> {
        let matrix = Matrix::new(rows, columns, self.read(name, &[rows, columns])?);
        Ok(WeightMatrix::new(matrix, format))
    }

    /// Whether weights can be had in the formats of `recipe`.
    ///
    /// # Errors
    /// The role of a weight that cannot, and why.
    fn check_recipe(&self, _recipe: &Recipe) -> Result<(), Error> {
        Ok(())
    }

    /// The name of the output head; of a tied model, of the embedding.
    fn head(&self) -> &str {
        if self.config().tie_word_embeddings { EMBEDDING } else { HEAD }
    }
}

/// Where the forward pass gets its layers from.
///
/// Resident layers are handed out from memory; a source that streams them from disk reads ahead behind this call.
pub trait LayerSource<B: Backend> {
    /// Layer `index`, counted from 0.
    ///
    /// # Errors
    /// A weight that cannot be read.
    fn layer(&self, index: usize) -> Result<Arc<Layer<B>>, Error>;
}

/// All layers in memory.
pub struct Resident<B: Backend> {
    layers: Vec<Arc<Layer<B>>>,
}

impl<B: Backend> Resident<B> {
    /// Reads and quantizes every layer, one tensor after another, so that beside the packed model only one tensor is
    /// ever held in full.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn load(reader: &Reader<'_, B>) -> Result<Self, Error> {
        let layers = 0..reader.source.config().layers;
        Ok(Resident { layers: layers.map(|i| reader.layer(i).map(Arc::new)).collect::<Result<_, _>>()? })
    }
}

impl<B: Backend> LayerSource<B> for Resident<B> {
    fn layer(&self, index: usize) -> Result<Arc<Layer<B>>, Error> {
        Ok(Arc::clone(&self.layers[index]))
    }
}

/// Reads a model's tensors under their Hugging Face names and quantizes them as a recipe says.
pub struct Reader<'a, B: Backend> {
    /// Lays the weights out.
    pub backend: &'a B,
    /// Has the tensors.
    pub source: &'a dyn TensorSource,
    /// Says which format each is held in.
    pub recipe: &'a Recipe,
}

impl<B: Backend> Reader<'_, B> {
    /// Layer `index`.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn layer(&self, index: usize) -> Result<Layer<B>, Error> {
        let c = self.source.config();
        let (hidden, inner) = (c.hidden_size, c.intermediate_size);
        let (q, kv) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let attention = |part: &str, shape, bias| {
            self.projection(&name(&format!("self_attn.{part}_proj")), shape, bias, Role::ProjectionWeight)
        };
        let mlp =
            |part: &str, shape| self.projection(&name(&format!("mlp.{part}_proj")), shape, c.mlp_bias, Role::MlpWeight);
        Ok(Layer {
            input_norm: self.source.read(&name("input_layernorm.weight"), &[hidden])?,
            q: attention("q", [q, hidden], c.qkv_bias)?,
            k: attention("k", [kv, hidden], c.qkv_bias)?,
            v: attention("v", [kv, hidden], c.qkv_bias)?,
            o: attention("o", [hidden, q], c.o_bias)?,
            post_attention_norm: self.source.read(&name("post_attention_layernorm.weight"), &[hidden])?,
            gate: mlp("gate", [inner, hidden])?,
            up: mlp("up", [inner, hidden])?,
            down: mlp("down", [hidden, inner])?,
        })
    }

    /// Embedding, final norm and head.
    ///
    /// # Errors
    /// A tensor that cannot be read.
    pub fn ends(&self) -> Result<Ends<B>, Error> {
        let c = self.source.config();
        let shape = [c.vocab_size, c.hidden_size];
        Ok(Ends {
            embedding: self.backend.upload(Matrix::new(shape[0], shape[1], self.source.read(EMBEDDING, &shape)?)),
            norm: self.source.read("model.norm.weight", &[c.hidden_size])?,
            head: self.weight(self.source.head(), shape, Role::HeadWeight)?,
        })
    }

    fn projection(&self, name: &str, shape: [usize; 2], bias: bool, role: Role) -> Result<Projection<B>, Error> {
        let weight = self.weight(&format!("{name}.weight"), shape, role)?;
        let bias = bias.then(|| self.source.read(&format!("{name}.bias"), &shape[..1])).transpose()?;
        Ok(Projection { weight, bias })
    }

    fn weight(&self, name: &str, shape: [usize; 2], role: Role) -> Result<B::Weight, Error> {
        let matrix = self.source.weight(name, shape, block_format(self.recipe, role))?;
        Ok(self.backend.weight(matrix))
    }
}

/// How `recipe` quantizes `role`; `None` leaves it bf16.
pub(crate) fn block_format(recipe: &Recipe, role: Role) -> Option<BlockFormat> {
    recipe.format(role).map(|element| BlockFormat {
        element,
        block_size: recipe.block_size,
        scale_rule: recipe.scale_rule.for_format(element),
    })
}
