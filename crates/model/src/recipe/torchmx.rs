//! TorchMX 0.1.0's configuration dicts as JSON (`torchmx/config.py`: `QAttentionConfig`, `QLinearConfig`, `MXConfig`).

use std::path::Path;

use microscale_formats::ElementFormat;
use serde_json::{Map, Value};

use super::names::{self, unknown};
use super::{Draft, MLP, PROJECTION, Recipe, Role, error};
use crate::Error;

type Object = Map<String, Value>;

const ATTENTION_KEYS: [(&str, Role); 4] = [
    ("query_config", Role::Query),
    ("key_config", Role::Key),
    ("value_config", Role::Value),
    ("attention_weights_config", Role::AttentionWeights),
];
const KEYS: [&str; 11] = [
    "qattention_config",
    "attention_config",
    "qmlp_config",
    "mlp_config",
    "projection_config",
    "query_config",
    "key_config",
    "value_config",
    "attention_weights_config",
    "weights_config",
    "activations_config",
];

/// See [`Recipe::from_torchmx_json`].
pub(super) fn parse(text: &str, origin: &str) -> Result<(Recipe, Vec<String>), Error> {
    let value: Value = serde_json::from_str(text)
        .map_err(|e| error(format!("{origin} is not valid JSON ({e}); expected TorchMX's dicts")))?;
    let mut reader = Reader { draft: Draft::default(), origin };
    let root = reader.object(&value, "the file")?;
    let linear = root.contains_key("weights_config") || root.contains_key("activations_config");
    if linear {
        for roles in [PROJECTION, MLP] {
            reader.linear(&value, "the file", roles)?;
        }
    } else {
        for (key, value) in root.iter().filter(|(_, v)| !v.is_null()) {
            match key.as_str() {
                "qattention_config" | "attention_config" => {
                    for (key, value) in reader.object(value, key)?.iter().filter(|(_, v)| !v.is_null()) {
                        reader.attention(key, value)?;
                    }
                }
                "qmlp_config" | "mlp_config" => reader.linear(value, key, MLP)?,
                _ => reader.attention(key, value)?,
            }
        }
    }
    let name = Path::new(origin).file_stem().map_or(origin.to_owned(), |s| s.to_string_lossy().into_owned());
    let recipe = reader.draft.finish(&name);
    let warnings = warnings(&recipe, origin);
    Ok((recipe, warnings))
}

/// What TorchMX would do otherwise.
fn warnings(recipe: &Recipe, origin: &str) -> Vec<String> {
    let missing: Vec<&str> =
        ATTENTION_KEYS.iter().filter(|(_, role)| recipe.format(*role).is_none()).map(|(key, _)| *key).collect();
    let mut warnings = Vec::new();
    if (1..4).contains(&missing.len()) {
        warnings.push(format!(
            "{origin} has no {}: TorchMX would ignore the other attention formats, here they are used",
            missing.join(", ")
        ));
    }
    for (what, role) in [("projection_config", Role::ProjectionWeight), ("mlp_config", Role::MlpWeight)] {
        if recipe.format(role).is_none() {
            warnings.push(format!("{origin} has no {what}: TorchMX requires it, here those layers stay bf16"));
        }
    }
    warnings
}

/// The draft being filled, and the file's name for errors.
struct Reader<'a> {
    draft: Draft,
    origin: &'a str,
}

impl Reader<'_> {
    /// One key of a `QAttentionConfig`.
    fn attention(&mut self, key: &str, value: &Value) -> Result<(), Error> {
        if key == "projection_config" {
            return self.linear(value, key, PROJECTION);
        }
        let Some(&(_, role)) = ATTENTION_KEYS.iter().find(|(name, _)| *name == key) else {
            return Err(unknown("key", key, self.origin, KEYS.into_iter(), &KEYS.join(", ")));
        };
        let format = self.element(value, key)?;
        self.draft.set(&[role], Some(format));
        Ok(())
    }

    /// A `QLinearConfig`: weights and activations.
    fn linear(&mut self, value: &Value, place: &str, roles: [Role; 2]) -> Result<(), Error> {
        let keys = ["weights_config", "activations_config"];
        let object = self.object(value, place)?;
        if let Some(key) = object.keys().find(|k| !keys.contains(&k.as_str())) {
            let place = format!("{place} of {}", self.origin);
            return Err(unknown("key", key, &place, keys.into_iter(), &keys.join(", ")));
        }
        for (key, role) in keys.into_iter().zip(roles) {
            let Some(value) = object.get(key) else {
                return Err(error(format!("{place} of {} has no {key}; a QLinearConfig has both", self.origin)));
            };
            let format = self.element(value, &format!("{place}.{key}"))?;
            self.draft.set(&[role], Some(format));
        }
        Ok(())
    }

    /// An `MXConfig`: element format and block size. A recipe has one block size, so they must agree.
    fn element(&mut self, value: &Value, place: &str) -> Result<ElementFormat, Error> {
        let keys = ["elem_dtype_name", "block_size"];
        let object = self.object(value, place)?;
        let place = format!("{place} of {}", self.origin);
        if let Some(key) = object.keys().find(|k| !keys.contains(&k.as_str())) {
            return Err(unknown("key", key, &place, keys.into_iter(), &keys.join(", ")));
        }
        let size = match object.get("block_size") {
            None => microscale_formats::BLOCK,
            Some(n) => names::block_size(n.as_u64().and_then(|n| usize::try_from(n).ok()), &n.to_string(), &place)?,
        };
        match self.draft.block_size {
            Some(earlier) if earlier != size => {
                return Err(error(format!(
                    "block_size {size} in {place}, {earlier} before it; a recipe has one block size"
                )));
            }
            _ => self.draft.block_size = Some(size),
        }
        let name = object.get("elem_dtype_name").and_then(Value::as_str);
        let name = name.ok_or_else(|| error(format!("{place} has no elem_dtype_name, such as \"float6_e3m2\"")))?;
        // TorchMX has no bf16 among its element types: it leaves such roles out.
        names::format(name, &place)?.ok_or_else(|| error(format!("{place} is bf16; leave it out instead")))
    }

    /// An object, or the error that it is none.
    fn object<'v>(&self, value: &'v Value, place: &str) -> Result<&'v Object, Error> {
        value.as_object().ok_or_else(|| error(format!("{place} of {} is not an object {{…}}", self.origin)))
    }
}
