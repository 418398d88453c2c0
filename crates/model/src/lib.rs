//! LLaMA-class models whose tensors are held in MX formats chosen per role.

mod checkpoint;
mod config;
mod error;
mod generate;
mod llama;
mod packed;
mod random;
mod recipe;
mod rope;
mod score;
mod scorer;
mod shapes;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use config::{Architecture, Config};
pub use error::Error;
pub use generate::{End, Generation, check_prompt};
pub use llama::{Batch, KeyValueCache, Llama};
pub use packed::PackedSize;
pub use random::RandomWeights;
pub use recipe::{Recipe, Role, ValueBlocks};
pub use rope::{Frequencies, Rope, Scaling};
pub use safetensors::Dtype;
pub use score::{Outcome, Request, Scorer};
pub use scorer::{Limits, ModelScorer};
pub use shapes::Shape;
pub use tokenizer::{TextStream, Tokenizer};
pub use weights::{Ends, Layer, LayerSource, Projection, Reader, Resident, TensorSource};
