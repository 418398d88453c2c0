//! GGUF, llama.cpp's file: MXFP4 in its own blocks, MXINT8 as Q8_0, everything else in bf16, Q8_0 or f32.

mod container;
mod names;
mod q8_0;
mod read;
mod tokenizer;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;
