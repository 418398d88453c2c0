//! Run and judge LLaMA-class models in OCP Microscaling (MX) formats.
//!
//! This crate gathers the parts under one name and holds the [demo world](demo) that the binary carries.
//!
//! Quantize a tensor:
//!
//! ```
//! use microscale::formats::E3M2;
//! use microscale::tensor::MxTensor;
//!
//! # fn main() -> Result<(), microscale::tensor::Error> {
//! let weights: Vec<f32> = (0..4 * 64).map(|i| (i as f32).sin()).collect();
//! let packed = MxTensor::quantize(&weights, &[4, 64], 1, E3M2.into())?;
//! assert_eq!(packed.bytes(), 4 * (48 + 2)); // 64 codes of 6 bits and two scales in each row
//! let error = packed.dequantize().iter().zip(&weights).map(|(q, w)| (q - w).abs()).fold(0.0, f32::max);
//! assert!(error <= 1.0 / 8.0); // the largest element is 28, so 0.875 at the scale of a block that reaches 1
//! # Ok(())
//! # }
//! ```
//!
//! Score a choice:
//!
//! ```
//! use microscale::model::{Event, Limits, ModelScorer, Recipe, Request, Scorer};
//!
//! # fn main() -> Result<(), microscale::model::Error> {
//! let checkpoint = microscale::demo::checkpoint()?; // or Checkpoint::open("path/to/llama".as_ref())?
//! let recipes = vec![Recipe::bf16(), Recipe::parse("w6a8-attn6")?];
//! let limits = Limits { batch_size: None, max_length: 256 };
//! let mut scorer = ModelScorer::new(microscale::tensor::Cpu::new(), &checkpoint, recipes, limits);
//! let tokens = checkpoint.tokenizer()?.encode("Question: where", true)?;
//! let request = Request { context: tokens.len() - 1, tokens };
//! scorer.score(&[0, 1], &[request], &mut |event| {
//!     if let Event::Scored(outcome) = event {
//!         println!("row {}: log-likelihood {:.3}", outcome.row, outcome.log_likelihood);
//!     }
//!     std::ops::ControlFlow::Continue(())
//! })?;
//! # Ok(())
//! # }
//! ```

pub mod bench;
pub mod demo;
pub mod hub;

pub use microscale_eval as eval;
pub use microscale_exchange as exchange;
pub use microscale_formats as formats;
pub use microscale_model as model;
pub use microscale_tensor as tensor;

/// The README's examples, run as tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadMe;
