//! The CPU backend: the kernels of [`kernel`], for the instruction set chosen at run time, on rayon's threads.

mod kernel;
pub mod peaks;
mod session;
mod simd;

use std::ops::Range;

use half::bf16;
use rayon::prelude::*;

use crate::Matrix;
use crate::backend::{Attention, Backend, BlockFormat, KeyValueLayout, Linear, Rotation, TokenScore, WeightMatrix};
pub(crate) use kernel::quantize::Quantizer;
use kernel::{attention, cache::Cache, linear, operand::Operand, panels::Panels, rows};
use simd::code_stride;
pub use simd::{Isa, UnsupportedIsa};

/// The CPU backend.
#[derive(Clone, Copy, Debug)]
pub struct Cpu {
    isa: Isa,
}

impl Cpu {
    /// With the fastest instruction set the CPU has.
    pub fn new() -> Cpu {
        Cpu { isa: Isa::best() }
    }

    /// With this instruction set, one of [`Isa::available`].
    pub fn with_isa(isa: Isa) -> Cpu {
        Cpu { isa }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Backend for Cpu {
    type Weight = Panels;
    type Activation = Matrix;
    type Operand = Operand;
    type Cache = Cache;

    fn session<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        session::run(work)
    }

    fn passes<R: Send>(&self, count: usize, work: impl Fn(usize) -> R + Send + Sync) -> Vec<R> {
        (0..count).into_par_iter().with_max_len(1).map(work).collect()
    }

    fn weight(&self, matrix: WeightMatrix) -> Panels {
        Panels::new(matrix, code_stride(self.isa))
    }

    fn upload(&self, matrix: Matrix) -> Matrix {
        matrix
    }

    fn download(&self, x: &Matrix) -> Matrix {
        x.clone()
    }

    fn gather(&self, x: &Matrix, which: &[u32]) -> Matrix {
        rows::gather(x, which)
    }

    fn rms_norm(&self, x: &Matrix, weight: &[bf16], eps: f32) -> Matrix {
        rows::rms_norm(self.isa, x, weight, eps)
    }

    fn operand(&self, x: &Matrix, format: Option<BlockFormat>) -> Operand {
        Operand::new(self.isa, x, format)
    }

    fn linear<const N: usize>(&self, x: &Operand, weights: [Linear<'_, Panels>; N]) -> [Matrix; N] {
        linear::linear(self.isa, x, weights)
    }

    fn rope(&self, x: Matrix, rotation: &Rotation) -> Matrix {
        rows::rope(self.isa, x, rotation)
    }

    fn cache(&self, layout: &KeyValueLayout) -> Cache {
        Cache::new(layout)
    }

    fn append(&self, caches: &mut [&mut Cache], k: &Matrix, v: &Matrix, sequences: &[Range<usize>]) {
        attention::append(self.isa, caches, k, v, sequences);
    }

    fn attention(&self, q: &Matrix, caches: &[&Cache], sequences: &[Range<usize>], a: &Attention) -> Matrix {
        attention::attention(self.isa, q, caches, sequences, a)
    }

    fn gated(&self, gate: Matrix, up: &Matrix) -> Matrix {
        rows::gated(self.isa, gate, up)
    }

    fn add(&self, x: Matrix, y: &Matrix) -> Matrix {
        rows::add(self.isa, x, y)
    }

    fn scores(&self, logits: &Matrix, targets: &[u32]) -> Vec<TokenScore> {
        rows::scores(self.isa, logits, targets)
    }
}
