//! A model of random weights: as large and as slow as a trained one, without its files.

use half::bf16;
use rayon::prelude::*;

use crate::{Config, Error, TensorSource};

/// Standard deviation of the weights, transformers' `initializer_range`.
const DEVIATION: f64 = 0.02;
/// Values made by one task.
const CHUNK: usize = 1 << 16;
/// Bytes summed into one value.
const SUMMED: u32 = u64::BITS / 8;
/// Sums that can occur: 0 to 255 · 8.
const SUMS: usize = 255 * SUMMED as usize + 1;

/// Normally distributed weights of standard deviation 0.02, norms of 1 and biases of 0, for a model of any shape.
///
/// The values follow from the seed, the tensor's name and the place in it alone.
#[derive(Clone, Debug)]
pub struct RandomWeights {
    config: Config,
    seed: u64,
}

impl RandomWeights {
    /// Weights for a model of this shape.
    pub fn new(config: Config, seed: u64) -> RandomWeights {
        RandomWeights { config, seed }
    }
}

impl TensorSource for RandomWeights {
    fn config(&self) -> &Config {
        &self.config
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Error> {
        let constant =
            if name.ends_with("norm.weight") { Some(bf16::ONE) } else { name.ends_with(".bias").then_some(bf16::ZERO) };
        let mut values = vec![constant.unwrap_or_default(); shape.iter().product()];
        if constant.is_none() {
            let stream = name.bytes().fold(self.seed, |state, byte| mixed(state ^ u64::from(byte)));
            fill(&mut values, stream);
        }
        Ok(values)
    }
}

/// Fills a tensor with normals: value i is made of the i-th number of the stream.
///
/// A sum of eight uniform bytes is as good a normal as a speed measurement needs (it ends at ±4.9 deviations), and
/// takes a few nanoseconds.
fn fill(values: &mut [bf16], stream: u64) {
    let table = normals();
    values.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, values)| {
        for (i, value) in values.iter_mut().enumerate() {
            *value = table[sum_of_bytes(mixed(stream.wrapping_add((chunk * CHUNK + i) as u64)))];
        }
    });
}

/// The weight that a sum of bytes stands for, at its index.
fn normals() -> Vec<bf16> {
    let mean = (SUMS - 1) as f64 / 2.0;
    let variance = f64::from(SUMMED) * (256.0 * 256.0 - 1.0) / 12.0; // of a uniform byte, (256² − 1) / 12
    (0..SUMS).map(|sum| bf16::from_f64((sum as f64 - mean) / variance.sqrt() * DEVIATION)).collect()
}

/// The sum of the eight bytes of a number: pairs first, then the four pairs in the topmost sixteen bits.
fn sum_of_bytes(x: u64) -> usize {
    let even = 0x00FF_00FF_00FF_00FF;
    let pairs = (x & even) + (x >> 8 & even);
    (pairs.wrapping_mul(0x0001_0001_0001_0001) >> 48) as usize
}

/// One step of SplitMix64 (Steele, Lea, Flood 2014), a good mixer of counters.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ x >> 31
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Shape;

    fn read(seed: u64, name: &str, shape: &[usize]) -> Vec<bf16> {
        RandomWeights::new(Shape::ALL[0].config(), seed).read(name, shape).unwrap()
    }

    #[test]
    fn sums_are_sums() {
        for x in [0, u64::MAX, 0x0102_0304_0506_0708, mixed(7)] {
            assert_eq!(sum_of_bytes(x), x.to_le_bytes().map(usize::from).iter().sum::<usize>());
        }
    }

    #[test]
    fn weights_are_normal() {
        let values: Vec<f64> = read(1, "lm_head.weight", &[400, 1000]).iter().map(|x| x.to_f64() / DEVIATION).collect();
        let moment = |power| values.iter().map(|x| x.powi(power)).sum::<f64>() / values.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.01, "{} {}", moment(1), moment(2));
        assert!((moment(4) - 3.0).abs() < 0.2, "{}", moment(4));
        let beyond = values.iter().filter(|x| x.abs() > 1.96).count() as f64 / values.len() as f64;
        assert!((beyond - 0.05).abs() < 0.003, "{beyond}");
        let neighbours = values.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / values.len() as f64;
        assert!(neighbours.abs() < 0.01, "{neighbours}");
        let (norm, bias) = (read(1, "model.norm.weight", &[9]), read(1, "model.layers.0.self_attn.q_proj.bias", &[9]));
        assert!(norm == [bf16::ONE; 9] && bias == [bf16::ZERO; 9]);
    }

    #[test]
    fn weights_follow_from_seed_and_name_alone() {
        let one = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| read(1, "a", &[5, 70_001]))
        };
        assert!(one(1) == one(3));
        assert!(one(1) != read(2, "a", &[5, 70_001]));
        assert!(one(1) != read(1, "b", &[5, 70_001]));
        assert!(one(1)[..1000] == read(1, "a", &[1000]));
    }
}
