//! LLaMA-class models whose tensors are held in MX formats chosen per role.

mod checkpoint;
mod config;
mod error;
mod llama;
mod recipe;
mod rope;
mod score;
mod scorer;
mod tokenizer;
mod weights;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use config::{Architecture, Config};
pub use error::Error;
pub use llama::{Batch, KeyValueCache, Llama};
pub use recipe::{Recipe, Role, ValueBlocks};
pub use rope::{Frequencies, Rope, Scaling};
pub use safetensors::Dtype;
pub use score::{Outcome, Request, Scorer};
pub use scorer::{Limits, ModelScorer};
pub use tokenizer::Tokenizer;
pub use weights::{Ends, Layer, LayerSource, Projection, Reader, Resident};
