//! Rotary position embedding: how fast each pair of a head turns with the position.
//!
//! The orders of operation and the roundings are those of transformers 4.44.2's `modeling_rope_utils.py` on a CPU;
//! powers go through f64 and [`math`], so that every platform gives the same bits.

use microscale_tensor::math;

/// Base and scaling of the rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths (`rope_theta`), above 1.
    pub theta: f64,
    /// How the series is stretched for long contexts.
    pub scaling: Scaling,
    /// Context length of the configuration, which `dynamic` and `yarn` refer to.
    pub max_position_embeddings: usize,
}

/// The kinds of `rope_scaling`, with their parameters as the configuration names them.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the parameters are documented where transformers documents its configuration")]
pub enum Scaling {
    /// No scaling.
    Default,
    /// All frequencies divided by the factor.
    Linear { factor: f64 },
    /// NTK scaling of theta once a sequence is longer than `max_position_embeddings`.
    Dynamic { factor: f64 },
    /// Slow pairs interpolated, fast pairs kept, a ramp between (arXiv 2309.00071).
    Yarn { factor: f64, attention_factor: f64, beta_fast: f64, beta_slow: f64 },
    /// One factor per pair (arXiv 2402.13753).
    LongRope { factors: Vec<f32>, attention_factor: f64 },
    /// LLaMA 3.1's: long wavelengths divided by the factor, short ones kept, a ramp between.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
}

/// What a forward pass needs to rotate queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Frequencies {
    /// Radians per position, one per pair of a head: `dim / 2` values.
    pub inverse: Vec<f32>,
    /// Multiplies cosine and sine, in f32, before they are rounded to bf16.
    pub attention_factor: f32,
}

impl Rope {
    /// The frequencies for heads of `dim` values in a sequence of `sequence_length` tokens.
    ///
    /// Only `dynamic` looks at the length; see [`changes_beyond`](Self::changes_beyond). There transformers also remembers
    /// the longest sequence it has seen; here the result depends on this sequence alone.
    pub fn inverse_frequencies(&self, dim: usize, sequence_length: usize) -> Frequencies {
        let plain = || powers(self.theta, dim).map(|p| 1.0 / p);
        let mut attention = 1.0;
        let inverse = match &self.scaling {
            Scaling::Default => plain().collect(),
            Scaling::Linear { factor } => plain().map(|inv| inv / *factor as f32).collect(),
            Scaling::Dynamic { factor } => {
                powers(self.dynamic_theta(*factor, dim, sequence_length), dim).map(|p| 1.0 / p).collect()
            }
            Scaling::Yarn { factor, attention_factor, beta_fast, beta_slow } => {
                attention = *attention_factor as f32;
                self.yarn(*factor, [*beta_fast, *beta_slow], dim)
            }
            Scaling::LongRope { factors, attention_factor } => {
                attention = *attention_factor as f32;
                powers(self.theta, dim).zip(factors).map(|(p, factor)| 1.0 / (factor * p)).collect()
            }
            &Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings: old } => {
                plain().map(|inv| llama3(inv, factor, [low_freq_factor, high_freq_factor], old)).collect()
            }
        };
        Frequencies { inverse, attention_factor: attention }
    }

    /// The longest sequence for which the frequencies are those of every shorter one; `None` if there is no such limit.
    ///
    /// Beyond it keys that were rotated earlier would have to be rotated again, so generation must stop there.
    pub fn changes_beyond(&self) -> Option<usize> {
        matches!(self.scaling, Scaling::Dynamic { .. }).then_some(self.max_position_embeddings)
    }

    /// Theta of NTK scaling. In transformers the length is an integer tensor, which turns the arithmetic into f32.
    fn dynamic_theta(&self, factor: f64, dim: usize, sequence_length: usize) -> f64 {
        let (maximum, exponent) = (self.max_position_embeddings, dim as f64 / (dim as f64 - 2.0));
        if sequence_length <= maximum {
            let stretch = factor * maximum as f64 / maximum as f64 - (factor - 1.0);
            return self.theta * math::pow(stretch, exponent);
        }
        let stretch = factor as f32 * sequence_length as f32 / maximum as f32 - (factor - 1.0) as f32;
        f64::from(self.theta as f32 * math::pow(f64::from(stretch), exponent) as f32)
    }

    /// YaRN: between `low` and `high` a ramp leads from the kept frequencies to the interpolated ones.
    fn yarn(&self, factor: f64, [beta_fast, beta_slow]: [f64; 2], dim: usize) -> Vec<f32> {
        let rotations = |beta: f64| {
            let ratio = self.max_position_embeddings as f64 / (beta * 2.0 * std::f64::consts::PI);
            dim as f64 * math::ln(ratio) / (2.0 * math::ln(self.theta))
        };
        let low = rotations(beta_fast).floor().max(0.0);
        let mut high = rotations(beta_slow).ceil().min(dim as f64 - 1.0);
        if low == high {
            high += 0.001; // as the original does, to keep the division below defined
        }
        let (start, width) = (low as f32, (high - low) as f32);
        let blend = |(i, p): (usize, f32)| {
            let kept = 1.0 - ((i as f32 - start) / width).clamp(0.0, 1.0);
            1.0 / (factor as f32 * p) * (1.0 - kept) + 1.0 / p * kept
        };
        powers(self.theta, dim).enumerate().map(blend).collect()
    }
}

/// theta^(2i/dim) for every pair i, the exponent in f32, the power through f64.
fn powers(theta: f64, dim: usize) -> impl Iterator<Item = f32> {
    (0..dim).step_by(2).map(move |i| math::pow(theta, f64::from(i as f32 / dim as f32)) as f32)
}

/// LLaMA 3.1's scaling of one frequency; `old` is the context length before scaling.
fn llama3(inv: f32, factor: f64, [low, high]: [f64; 2], old: f64) -> f32 {
    let wavelength = std::f64::consts::TAU as f32 / inv;
    let factor = factor as f32;
    if wavelength > (old / low) as f32 {
        return inv / factor;
    }
    if wavelength < (old / high) as f32 {
        return inv;
    }
    let smooth = (old as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * inv / factor + smooth * inv
}
