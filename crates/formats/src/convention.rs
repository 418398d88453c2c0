//! Which scale rule and which ties each tool means by "MX".

use crate::element::{E2M1, E2M3, E3M2, E4M3, E5M2, ElementFormat, Ties};
use crate::scale::ScaleRule;

/// How a tool quantizes a block, as far as two options say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Convention {
    /// What to call it.
    pub name: &'static str,
    /// How the scale follows from the values.
    pub scale_rule: ScaleRule,
    /// Where values halfway between two codes go.
    pub ties: Ties,
    /// The formats it is known for.
    pub elements: &'static [ElementFormat],
    /// The tool, and how this is known.
    pub tool: &'static str,
    /// What the tool does otherwise, beyond the two options; empty if nothing is known.
    pub deviations: &'static str,
}

const FLOATS: &[ElementFormat] = &[E5M2, E4M3, E3M2, E2M3, E2M1];
const FP4: &[ElementFormat] = &[E2M1];
const FP4_FP8: &[ElementFormat] = &[E4M3, E2M1];

const TORCHAO: &str = "torchao 0.18, to_mx; compared";
const TORCHAO_DEVIATIONS: &str = "where the scale's byte is 0, values are divided by 2^-126 instead of 2^-127 (by 1 under rceil); blocks with infinities \
     get another scale than NaN";
const MLX_DEVIATIONS: &str = "a block of zeros has the scale 1 (byte 127); infinities and NaN do not make the scale NaN; magnitudes far below \
     2^-100 wrap around";
const MLX_CPU_DEVIATIONS: &str = "a block of zeros has the scale 1 (byte 127), and what rounds to zero loses its sign; infinities and NaN do not make the \
     scale NaN; magnitudes far below 2^-100 wrap around";

/// A convention whose deviations are still to be named.
const fn of(
    name: &'static str,
    scale_rule: ScaleRule,
    ties: Ties,
    elements: &'static [ElementFormat],
    tool: &'static str,
) -> Convention {
    Convention { name, scale_rule, ties, elements, tool, deviations: "" }
}

impl Convention {
    /// All that are known. "Compared" means that the tool's own output is in `tests/conventions.txt`, or (TorchMX,
    /// microxcaling) among the vectors of the tensor crate.
    pub const ALL: [Convention; 16] = [
        of("ocp", ScaleRule::Floor, Ties::Even, &ElementFormat::ALL, "OCP MX 1.0, section 6.3; TorchMX; compared"),
        of("torchao-floor", ScaleRule::Floor, Ties::Even, FLOATS, TORCHAO).but(TORCHAO_DEVIATIONS),
        of("torchao-ceil", ScaleRule::Ceil, Ties::Even, FLOATS, TORCHAO).but(TORCHAO_DEVIATIONS),
        of("torchao-rceil", ScaleRule::Rceil, Ties::Even, FLOATS, TORCHAO).but(TORCHAO_DEVIATIONS),
        of("torchao-even", ScaleRule::Even, Ties::Even, FLOATS, TORCHAO).but(TORCHAO_DEVIATIONS),
        of(
            "microxcaling",
            ScaleRule::Floor,
            Ties::Away,
            &ElementFormat::ALL,
            "microxcaling, round=\"nearest\"; by its source",
        ),
        of(
            "microxcaling-even",
            ScaleRule::Floor,
            Ties::Even,
            &ElementFormat::ALL,
            "microxcaling, round=\"even\"; compared",
        ),
        of(
            "quark",
            ScaleRule::Even,
            Ties::Even,
            &[E4M3, E3M2, E2M3, E2M1],
            "AMD Quark 0.13, scale_calculation_mode even; scales compared",
        )
        .but("a block of zeros has another scale than byte 0"),
        of(
            "compressed-tensors",
            ScaleRule::Even,
            Ties::Even,
            &[E2M3, E2M1],
            "compressed-tensors 0.20, generate_mx_scales and casts; compared",
        )
        .but("MXFP8 rounds the largest value to one fraction bit, which is rceil but for a largest value of 448·2^e"),
        of("modelopt", ScaleRule::Rceil, Ties::Zero, FP4, "NVIDIA ModelOpt 0.47, MXFP4QTensor; compared")
            .but("zeros have the code of -0"),
        of(
            "mlx",
            ScaleRule::Rceil,
            Ties::Even,
            FP4_FP8,
            "MLX 0.32, mx.quantize; MXFP8 compared, MXFP4 on the GPU by its source",
        )
        .but(MLX_DEVIATIONS),
        of("mlx-cpu", ScaleRule::Rceil, Ties::Zero, FP4, "MLX 0.32, MXFP4 on the CPU; compared")
            .but(MLX_CPU_DEVIATIONS),
        of(
            "mlx-0.31",
            ScaleRule::Rnearest,
            Ties::Even,
            FP4_FP8,
            "MLX up to 0.31; MXFP8 compared, MXFP4 on the GPU by its source",
        )
        .but(MLX_DEVIATIONS),
        of("mlx-0.31-cpu", ScaleRule::Rnearest, Ties::Zero, FP4, "MLX up to 0.31, MXFP4 on the CPU; compared")
            .but(MLX_CPU_DEVIATIONS),
        of("ggml", ScaleRule::Floor, Ties::Zero, FP4, "gguf 0.19, quants.MXFP4, as llama.cpp's reference; compared")
            .but("what rounds to zero loses its sign; newer llama.cpp searches the scale by squared error"),
        of("mistralrs", ScaleRule::Rfloor, Ties::Away, FP4, "mistral.rs, MXFP4; by its source"),
    ];

    const fn but(self, deviations: &'static str) -> Convention {
        Convention { deviations, ..self }
    }

    /// The convention of this name, in any case.
    pub fn from_name(name: &str) -> Option<&'static Convention> {
        const ALL: &[Convention] = &Convention::ALL;
        ALL.iter().find(|c| c.name.eq_ignore_ascii_case(name))
    }
}
