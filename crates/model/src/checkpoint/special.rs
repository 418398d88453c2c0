//! The tokenizer of a directory: `tokenizer.json`, and the special tokens its neighbours name.

use std::path::Path;

use serde_json::{Map, Value};

use crate::{Config, Error, Tokenizer};

/// Reads `tokenizer.json` and, where there is one, `tokenizer_config.json`.
///
/// BOS and EOS are those of `tokenizer_config.json`, else of `config.json`, else the usual names.
pub(super) fn read_tokenizer(directory: &Path, config: &Config) -> Result<Tokenizer, Error> {
    let path = directory.join("tokenizer.json");
    if !path.is_file() {
        return Err(Error::checkpoint(directory, missing(directory)));
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let tokenizer = Tokenizer::from_bytes(&bytes, &path)?;
    let tokenizer = tokenizer.with_special_ids(config.bos, config.eos.first().copied());
    let settings_path = directory.join("tokenizer_config.json");
    if !settings_path.is_file() {
        return Ok(tokenizer);
    }
    let bytes = std::fs::read(&settings_path).map_err(Error::io(&settings_path))?;
    let settings: Map<String, Value> = serde_json::from_slice(&bytes)
        .map_err(|e| Error::checkpoint(&settings_path, format!("not a JSON object ({e}); fetch it again")))?;
    apply(&settings, tokenizer).map_err(|reason| Error::Tokenizer { path: settings_path, reason })
}

/// The end-of-sequence ids of `generation_config.json`; `None` where there is no such file or it names none.
pub(super) fn end_tokens(directory: &Path, config: &Config) -> Result<Option<Vec<u32>>, Error> {
    let path = directory.join("generation_config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
    let ids = config.end_tokens_of(&bytes, &path)?;
    Ok((!ids.is_empty()).then_some(ids))
}

/// The tokenizer with the settings of `tokenizer_config.json`.
///
/// Which special tokens a text gets is the business of `tokenizer.json`'s post-processor; `LlamaTokenizerFast` alone
/// builds its own from `add_bos_token` (true by default) and `add_eos_token` (false) whenever it is loaded. Here that
/// happens where the file gives either.
fn apply(settings: &Map<String, Value>, tokenizer: Tokenizer) -> Result<Tokenizer, String> {
    let (bos, eos) = (token(settings, "bos_token"), token(settings, "eos_token"));
    let id = |token: Option<&str>| token.and_then(|token| tokenizer.id(token));
    let (bos_id, eos_id) = (id(bos), id(eos));
    let tokenizer = tokenizer.with_special_ids(bos_id, eos_id);
    let class = settings.get("tokenizer_class").and_then(Value::as_str);
    let flag = |key: &str| settings.get(key).and_then(Value::as_bool);
    let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if !matches!(class, Some("LlamaTokenizer" | "LlamaTokenizerFast")) || (add_bos, add_eos) == (None, None) {
        return Ok(tokenizer);
    }
    let bos = add_bos.unwrap_or(true).then_some(bos.unwrap_or("<s>"));
    let eos = add_eos.unwrap_or(false).then_some(eos.unwrap_or("</s>"));
    tokenizer.with_template(bos, eos)
}

/// A token given as a string or, as an `AddedToken`, as an object with `content`.
fn token<'a>(settings: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    let value = settings.get(key)?;
    value.get("content").unwrap_or(value).as_str()
}

/// What to do about a missing `tokenizer.json`.
fn missing(directory: &Path) -> String {
    let hint = if directory.join("tokenizer.model").exists() {
        "convert tokenizer.model with transformers' AutoTokenizer.from_pretrained(…).save_pretrained(…)"
    } else {
        "fetch it from where the model came from"
    };
    format!("has no tokenizer.json, the only form of tokenizer that can be read; {hint}")
}
