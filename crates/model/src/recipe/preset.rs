//! Preset names: `bf16`, `int8` or `w{n}a{n}`, then suffixes.

use microscale_formats::{E2M1, E3M2, E4M3, ElementFormat, INT8};

use super::names::nearest;
use super::{ATTENTION, Draft, HEAD, MLP, PROJECTION, Recipe, Role, error};
use crate::Error;

/// The presets that are listed. The first seven are the published table's rows.
const LISTED: [&str; 18] = [
    "bf16",
    "w6a8",
    "w6a6",
    "w6a8-attn6",
    "w6a6-attn6",
    "w6a8-mlp6",
    "w6a8-mlp6-attn6",
    "w6a8-attn6-v4",
    "w6a8-attn8",
    "int8",
    "int8-attn8i",
    "w8a8",
    "w8a8-attn8",
    "w4a8",
    "w4a8-attn4",
    "w4a8-attn8",
    "w4a4",
    "w4a4-attn4",
];

/// The listed presets.
pub(super) fn all() -> Vec<Recipe> {
    LISTED.iter().filter_map(|name| read(name)).collect()
}

/// The preset called `name`, listed or not.
pub(super) fn parse(name: &str) -> Result<Recipe, Error> {
    let canonical = name.trim().to_ascii_lowercase();
    read(&canonical).ok_or_else(|| {
        let hint = nearest(&canonical, LISTED.into_iter()).map(|n| format!("; did you mean \"{n}\"?"));
        error(format!(
            "unknown recipe {name:?}{} known: bf16, int8 or w{{4,6,8}}a{{4,6,8}}, then any of -mlp{{n}} -attn{{n}} \
             -q{{n}} -k{{n}} -v{{n}} -p{{n}} with n one of 4, 6, 8, 8i; or an inline text such as \
             proj=fp6/fp8,mlp=fp6; or a file ending in .toml or .json",
            hint.unwrap_or(";".to_owned())
        ))
    })
}

/// The recipe of a lower-case name; `None` if it is none.
fn read(name: &str) -> Option<Recipe> {
    let mut parts = name.split('-');
    let mut draft = Draft::default();
    match parts.next()? {
        "bf16" => {}
        "int8" => draft.set(&[PROJECTION, MLP, HEAD].concat(), Some(INT8)),
        base => {
            let (weight, activation) = base.strip_prefix('w')?.split_once('a')?;
            draft.set(&[Role::ProjectionWeight, Role::MlpWeight], Some(digit(weight)?));
            draft.set(&[Role::ProjectionActivation, Role::MlpActivation], Some(digit(activation)?));
        }
    }
    for suffix in parts {
        let at = suffix.find(|c: char| c.is_ascii_digit())?;
        let roles: &[Role] = match &suffix[..at] {
            "mlp" => &[Role::MlpActivation],
            "attn" => &ATTENTION,
            "q" => &[Role::Query],
            "k" => &[Role::Key],
            "v" => &[Role::Value],
            "p" => &[Role::AttentionWeights],
            _ => return None,
        };
        draft.set(roles, Some(digit(&suffix[at..])?));
    }
    Some(draft.finish(name))
}

/// The format a number of bits stands for.
fn digit(bits: &str) -> Option<ElementFormat> {
    match bits {
        "4" => Some(E2M1),
        "6" => Some(E3M2),
        "8" => Some(E4M3),
        "8i" => Some(INT8),
        _ => None,
    }
}
