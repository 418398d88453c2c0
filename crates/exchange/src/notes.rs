//! What this program adds to the metadata of other programs' files, so that nothing is lost on the way back.

use std::collections::BTreeMap;
use std::path::Path;

use microscale_formats::Ties;
use microscale_model::transfer::{Container, Placed, safetensors_header};
use microscale_model::{Error, Recipe};
use serde_json::{Map, Value};

use crate::source::{About, Source, checkpoint};

const PREFIX: &str = "microscale.";
/// The version of these notes.
const KEY: &str = "microscale.exchange";
const EDITION: &str = "1";
const KEY_VERSION: &str = "microscale.version";
const KEY_SOURCE: &str = "microscale.source";
const KEY_SOURCE_SHA256: &str = "microscale.source_sha256";
/// Left out where they go to even.
const KEY_TIES: &str = "microscale.ties";
const KEY_RECIPE: &str = "microscale.recipe";
/// The text of the model's `config.json` before a kind's keys were put there.
const KEY_CONFIG: &str = "microscale.config";

/// The notes of a checkpoint, as texts by key; without a hash if that of its source is not known yet.
pub(crate) fn texts(source: &Source) -> BTreeMap<String, String> {
    let about = &source.about;
    let mut texts = about.kept.clone();
    let mut note = |key: &str, text: Option<String>| text.map(|text| texts.insert(key.to_owned(), text));
    note(KEY, Some(EDITION.to_owned()));
    note(KEY_VERSION, Some(about.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())));
    note(KEY_SOURCE, Some(about.source.clone().unwrap_or_else(|| source.name.clone())));
    note(KEY_SOURCE_SHA256, about.source_sha256.clone());
    note(KEY_TIES, (about.ties != Ties::Even).then(|| about.ties.name().to_owned()));
    note(KEY_RECIPE, about.recipe.as_ref().map(Recipe::to_toml));
    note(KEY_CONFIG, String::from_utf8(source.config.clone()).ok().filter(|text| !text.is_empty()));
    texts
}

/// The notes with a hash that was not known before.
pub(crate) fn with_hash(texts: &BTreeMap<String, String>, source_sha256: &str) -> BTreeMap<String, String> {
    let mut texts = texts.clone();
    texts.entry(KEY_SOURCE_SHA256.to_owned()).or_insert_with(|| source_sha256.to_owned());
    texts
}

/// What metadata says in such notes, and the text of `config.json` in them; `path` is named in errors.
///
/// # Errors
/// Notes of another version; a recipe that cannot be read.
pub(crate) fn read<'a>(
    texts: impl Iterator<Item = (&'a str, &'a str)>,
    path: &Path,
) -> Result<(About, Option<String>), Error> {
    let mut texts: BTreeMap<String, String> = texts.map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
    let edition = texts.remove(KEY);
    let mut about = About::default();
    let mut config = None;
    if let Some(edition) = edition {
        if edition != EDITION {
            let reason = format!("{KEY} of its metadata is {edition:?}, this version reads \"{EDITION}\"");
            return Err(checkpoint(path, reason));
        }
        let origin = format!("{KEY_RECIPE} of {}", path.display());
        about.recipe = texts.get(KEY_RECIPE).map(|text| Recipe::from_toml(text, &origin)).transpose()?;
        if let Some(name) = texts.get(KEY_TIES) {
            let unknown = || checkpoint(path, format!("{KEY_TIES} of its metadata is {name:?}, which is not known"));
            about.ties = Ties::from_name(name).ok_or_else(unknown)?;
        }
        about.source = texts.remove(KEY_SOURCE);
        about.source_sha256 = texts.remove(KEY_SOURCE_SHA256);
        about.version = texts.remove(KEY_VERSION);
        config = texts.remove(KEY_CONFIG);
    }
    texts.retain(|key, _| !key.starts_with(PREFIX));
    about.kept = texts;
    Ok((about, config))
}

/// A safetensors file with such notes.
pub(crate) struct Noted(pub(crate) BTreeMap<String, String>);

impl Container for Noted {
    fn header(&self, outputs: &[Placed], source_sha256: &str) -> Vec<u8> {
        let texts = with_hash(&self.0, source_sha256);
        let about: Map<String, Value> = texts.into_iter().map(|(key, text)| (key, Value::String(text))).collect();
        safetensors_header(about, outputs)
    }
}
