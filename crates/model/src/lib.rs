//! LLaMA-class models whose tensors are held in MX formats chosen per role.

mod error;
mod score;
mod tokenizer;

pub use error::Error;
pub use score::{Outcome, Request, Scorer};
pub use tokenizer::Tokenizer;
