//! Recipes in one line: `proj=fp6/fp8,mlp=fp6/fp6,attn=fp6,value=fp4,head=bf16,rule=even`.

use super::names::{self, unknown};
use super::{ATTENTION, Draft, HEAD, MLP, PROJECTION, Recipe, Role, error};
use crate::Error;

const KEYS: [&str; 15] = [
    "proj",
    "mlp",
    "head",
    "attn",
    "query",
    "q",
    "key",
    "k",
    "value",
    "v",
    "weights",
    "p",
    "rule",
    "block",
    "value-blocks",
];

/// Reads the settings from left to right; later ones override earlier ones. The text becomes the name.
pub(super) fn parse(text: &str) -> Result<Recipe, Error> {
    let mut draft = Draft::default();
    for setting in text.split(',').map(str::trim).filter(|s| !s.is_empty()) {
        let Some((key, value)) = setting.split_once('=') else {
            return Err(error(format!("setting {setting:?} in recipe {text:?} has no value; expected key=value")));
        };
        let (key, value) = (key.trim(), value.trim());
        let place = format!("{key} of recipe {text:?}");
        match key {
            "proj" => pair(&mut draft, PROJECTION, value, &place)?,
            "mlp" => pair(&mut draft, MLP, value, &place)?,
            "head" => pair(&mut draft, HEAD, value, &place)?,
            "attn" => draft.set(&ATTENTION, names::format(value, &place)?),
            "query" | "q" => draft.set(&[Role::Query], names::format(value, &place)?),
            "key" | "k" => draft.set(&[Role::Key], names::format(value, &place)?),
            "value" | "v" => draft.set(&[Role::Value], names::format(value, &place)?),
            "weights" | "p" => draft.set(&[Role::AttentionWeights], names::format(value, &place)?),
            "rule" => draft.scale_rule = names::scale_rule(value, &place)?,
            "block" => draft.block_size = Some(names::block_size(value.parse().ok(), value, &place)?),
            "value-blocks" => draft.value_blocks = names::value_blocks(value, &place)?,
            _ => {
                let place = format!("recipe {text:?}");
                return Err(unknown("key", key, &place, KEYS.into_iter(), &KEYS.join(", ")));
            }
        }
    }
    Ok(draft.finish(text.trim()))
}

/// Sets weight and activation from `W/A`, or both from one format.
fn pair(draft: &mut Draft, [weight, activation]: [Role; 2], value: &str, place: &str) -> Result<(), Error> {
    let (w, a) = value.split_once('/').unwrap_or((value, value));
    draft.set(&[weight], names::format(w, place)?);
    draft.set(&[activation], names::format(a, place)?);
    Ok(())
}
