//! The rotary position keys of a `config.json`, in the old form (`rope_theta`, `rope_scaling`) and the new
//! (`rope_parameters`).

use super::fields::Fields;
use crate::Error;
use crate::rope::{Rope, Scaling};
use microscale_tensor::math;

const KNOWN: &str = "one of default, linear, dynamic, yarn, longrope, llama3";

/// Reads theta and the scaling for heads of `dim` values.
///
/// # Errors
/// An unknown type, and a parameter of the type that is missing or out of range.
pub(super) fn rope(config: Fields<'_>, dim: usize, max_position_embeddings: usize) -> Result<Rope, Error> {
    let parameters = config.object("rope_parameters", "rope_parameters.")?;
    let scaling = match parameters {
        Some(parameters) => Some(parameters),
        None => config.object("rope_scaling", "rope_scaling.")?,
    };
    let outer = match parameters {
        Some(parameters) if parameters.get("rope_theta").is_some() => parameters,
        _ => config,
    };
    // At theta = 1 every pair would turn equally fast, and yarn divides by its logarithm.
    let theta = outer.number("rope_theta", Some(10000.0), "a number above 1", |x| x > 1.0)?;
    for fields in [Some(config), scaling].into_iter().flatten() {
        fields
            .number("partial_rotary_factor", Some(1.0), "1: rotating part of a head is not supported", |x| x == 1.0)?;
    }
    let scaling = match scaling {
        None => Scaling::Default,
        Some(fields) => read_scaling(fields, config, dim, max_position_embeddings)?,
    };
    Ok(Rope { theta, scaling, max_position_embeddings })
}

/// The scaling that `fields` describes.
fn read_scaling(fields: Fields<'_>, config: Fields<'_>, dim: usize, maximum: usize) -> Result<Scaling, Error> {
    let positive = |key: &str, default| fields.number(key, default, "a positive number", |x| x > 0.0);
    let factor = || positive("factor", None);
    Ok(match kind(fields)? {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: factor()? },
        "dynamic" if dim <= 2 => return Err(fields.error("rope_type", "a type other than dynamic for a head_dim of 2")),
        "dynamic" => Scaling::Dynamic { factor: factor()? },
        "yarn" => {
            let factor = factor()?;
            Scaling::Yarn {
                factor,
                attention_factor: positive("attention_factor", Some(0.1 * math::ln(factor) + 1.0))?,
                beta_fast: positive("beta_fast", Some(32.0))?,
                beta_slow: positive("beta_slow", Some(1.0))?,
            }
        }
        "longrope" => long_rope(fields, config, dim, maximum)?,
        "llama3" => {
            let low_freq_factor = positive("low_freq_factor", None)?;
            Scaling::Llama3 {
                factor: factor()?,
                low_freq_factor,
                high_freq_factor: fields
                    .number("high_freq_factor", None, "a number above low_freq_factor", |x| x > low_freq_factor)?,
                original_max_position_embeddings: positive("original_max_position_embeddings", None)?,
            }
        }
        _ => {
            let key = if fields.get("rope_type").is_some() { "rope_type" } else { "type" };
            return Err(fields.error(key, KNOWN));
        }
    })
}

/// The type under `rope_type`, or `type` as it was called first.
fn kind<'a>(fields: Fields<'a>) -> Result<&'a str, Error> {
    match (fields.text("rope_type")?, fields.text("type")?) {
        (Some(a), Some(b)) if a != b => Err(fields.error("type", format!("{a:?}, which rope_type says"))),
        (Some(kind), _) | (None, Some(kind)) => Ok(kind),
        (None, None) => Err(fields.error("rope_type", KNOWN)),
    }
}

/// LongRoPE as transformers 4.44.2 has it: the long factors for every length if the context was extended at all.
fn long_rope(fields: Fields<'_>, config: Fields<'_>, dim: usize, maximum: usize) -> Result<Scaling, Error> {
    let (long, short) = (fields.numbers("long_factor", dim / 2)?, fields.numbers("short_factor", dim / 2)?);
    let original = |f: Fields<'_>| f.count("original_max_position_embeddings", None, 2..=super::MAX_POSITIONS);
    let (original, factor) = if config.get("original_max_position_embeddings").is_some() {
        let original = original(config)?;
        (original, maximum as f64 / original as f64)
    } else if fields.get("factor").is_none() && fields.get("original_max_position_embeddings").is_some() {
        let original = original(fields)?;
        (original, maximum as f64 / original as f64)
    } else {
        (maximum, fields.number("factor", None, "a positive number", |x| x > 0.0)?)
    };
    let default = if factor <= 1.0 { 1.0 } else { (1.0 + math::ln(factor) / math::ln(original as f64)).sqrt() };
    let attention_factor = fields.number("attention_factor", Some(default), "a positive number", |x| x > 0.0)?;
    Ok(Scaling::LongRope { factors: if factor > 1.0 { long } else { short }, attention_factor })
}
