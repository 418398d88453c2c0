//! Recipes as TOML files.

use std::fmt::Write as _;
use std::path::Path;

use microscale_formats::ElementFormat;
use toml::{Table, Value};

use super::names::{self, unknown};
use super::{Draft, Recipe, Role, error};
use crate::Error;

const KEYS: [&str; 9] =
    ["name", "block-size", "scale-rule", "value-blocks", "projection", "mlp", "attention", "head", "layer"];

/// The tables of formats and, of each, the keys with their roles.
const TABLES: [(&str, &[(&str, Role)]); 4] = [
    ("projection", &[("weight", Role::ProjectionWeight), ("activation", Role::ProjectionActivation)]),
    ("mlp", &[("weight", Role::MlpWeight), ("activation", Role::MlpActivation)]),
    ("head", &[("weight", Role::HeadWeight), ("activation", Role::HeadActivation)]),
    (
        "attention",
        &[("query", Role::Query), ("key", Role::Key), ("value", Role::Value), ("weights", Role::AttentionWeights)],
    ),
];

/// See [`Recipe::from_toml`].
pub(super) fn parse(text: &str, origin: &str) -> Result<Recipe, Error> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        error(format!("{origin} is not valid TOML: {}", e.to_string().trim().replace('\n', " ")))
    })?;
    let mut draft = Draft::default();
    let mut name = None;
    for (key, value) in &table {
        let place = format!("{key} of {origin}");
        match key.as_str() {
            "name" => name = Some(string(value, &place)?),
            "block-size" => {
                let size = value.as_integer().and_then(|n| usize::try_from(n).ok());
                draft.block_size = Some(names::block_size(size, &value.to_string(), &place)?);
            }
            "scale-rule" => draft.scale_rule = names::scale_rule(string(value, &place)?, &place)?,
            "value-blocks" => draft.value_blocks = names::value_blocks(string(value, &place)?, &place)?,
            "layer" => {
                let reason = "[[layer]] is reserved for overrides per layer, which are not supported yet; leave it out";
                return Err(error(format!("{origin}: {reason}")));
            }
            _ => read_formats(&mut draft, key, value, origin)?,
        }
    }
    let stem = || Path::new(origin).file_stem().map_or(origin.to_owned(), |s| s.to_string_lossy().into_owned());
    Ok(draft.finish(&name.map_or_else(stem, str::to_owned)))
}

/// Reads one table of formats.
fn read_formats(draft: &mut Draft, table: &str, value: &Value, origin: &str) -> Result<(), Error> {
    let Some((_, roles)) = TABLES.into_iter().find(|(name, _)| *name == table) else {
        return Err(unknown("key", table, origin, KEYS.into_iter(), &KEYS.join(", ")));
    };
    let Value::Table(entries) = value else {
        return Err(error(format!("{table} of {origin} is {value}; expected a table [{table}]")));
    };
    for (key, value) in entries {
        let Some(&(_, role)) = roles.iter().find(|(name, _)| name == key) else {
            let known: Vec<&str> = roles.iter().map(|(name, _)| *name).collect();
            let place = format!("[{table}] of {origin}");
            return Err(unknown("key", key, &place, known.iter().copied(), &known.join(", ")));
        };
        let place = format!("[{table}] {key} of {origin}");
        draft.set(&[role], names::format(string(value, &place)?, &place)?);
    }
    Ok(())
}

/// A string, or the error that it is none.
fn string<'a>(value: &'a Value, place: &str) -> Result<&'a str, Error> {
    value.as_str().ok_or_else(|| error(format!("{place} is {value}; expected a string in quotes")))
}

/// See [`Recipe::to_toml`]. Every role is written, the head's too.
pub(super) fn write(recipe: &Recipe) -> String {
    let mut text = format!(
        "name = {}\nblock-size = {}\nscale-rule = \"{}\"\nvalue-blocks = \"{}\"\n",
        Value::String(recipe.name.clone()),
        recipe.block_size,
        recipe.scale_rule.name(),
        recipe.value_blocks.name()
    );
    for (table, roles) in TABLES {
        let _ = write!(text, "\n[{table}]\n"); // writing to a String cannot fail
        for &(key, role) in roles {
            let format = recipe.format(role).map_or("bf16", ElementFormat::name);
            let _ = writeln!(text, "{key} = \"{format}\"");
        }
    }
    text
}
