//! LLaMA-class models whose tensors are held in MX formats chosen per role.

mod batch;
mod block;
mod checkpoint;
mod config;
mod convert;
mod dequantize;
mod divergence;
mod error;
mod folder;
mod generate;
mod llama;
mod mapped_file;
mod measure;
mod native;
mod packed;
mod prefix;
mod quantize;
mod random;
mod recipe;
mod rope;
mod row_weights;
mod score;
mod scorer;
mod shapes;
mod shelf;
mod tail;
mod tokenizer;
pub mod transfer;
mod travel;
mod weights;
mod weights_file;

pub use batch::Batch;
pub use checkpoint::{Checkpoint, Entry, Quantization, TensorInfo, is_companion};
pub use config::{Architecture, Config};
pub use dequantize::{Float, dequantize_file, dequantize_model};
pub use error::Error;
pub use folder::Folder;
pub use generate::{End, Generation, check_prompt};
pub use llama::{KeyValueCache, Llama};
pub use mapped_file::MappedFile;
pub use measure::{
    Comparison, Contents, ConventionDifference, Difference, TensorComparison, TensorReport, WorstBlock, compare,
    differ, report,
};
pub use native::{Notes, PackedTensor, foreign_notes, scale_name};
pub use packed::PackedSize;
pub use quantize::{FileQuantization, ModelOutput, quantize_file, quantize_model};
pub use random::RandomWeights;
pub use recipe::{Recipe, Role, ValueBlocks};
pub use rope::{Frequencies, Rope, Scaling};
pub use safetensors::Dtype;
pub use score::{Divergence, Event, Outcome, Request, Scorer};
pub use scorer::{Limits, ModelScorer};
pub use shapes::Shape;
pub use tokenizer::{TextStream, Tokenizer};
pub use transfer::{Ending, OnProgress, Progress, Transferred, partial_path};
pub use weights::{Ends, Layer, LayerSource, Projection, Reader, Resident, TensorSource};
pub use weights_file::WeightsFile;
