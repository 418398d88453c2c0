//! One file per subcommand.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod conform;
pub(crate) mod convert;
pub(crate) mod dequantize;
pub(crate) mod doctor;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod logits;
pub(crate) mod perplexity;
pub(crate) mod quantize;
pub(crate) mod recipes;
pub(crate) mod runs;
pub(crate) mod table;
