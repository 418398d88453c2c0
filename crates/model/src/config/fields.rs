//! Typed reading of a JSON object, with errors that name file, key, found and expected.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use crate::Error;

/// An object of a `config.json`. A key that is `null` counts as absent, as it does to transformers.
#[derive(Clone, Copy)]
pub(crate) struct Fields<'a> {
    object: &'a Map<String, Value>,
    /// Key of this object in the file, with a dot; empty for the file itself.
    prefix: &'a str,
    path: &'a Path,
}

impl<'a> Fields<'a> {
    /// The outermost object of the file at `path`.
    pub(crate) fn new(object: &'a Map<String, Value>, path: &'a Path) -> Self {
        Fields { object, prefix: "", path }
    }

    /// The object under `key`; `prefix` is the key with a dot. `None` if absent.
    pub(crate) fn object(&self, key: &str, prefix: &'a str) -> Result<Option<Fields<'a>>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => Ok(Some(Fields { object, prefix, path: self.path })),
            Some(_) => Err(self.error(key, "an object or null")),
        }
    }

    /// The value of `key`, unless it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` is given as null, where that differs from its absence.
    pub(crate) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// A whole number within `range`; `default` where absent, which is an error without one.
    pub(crate) fn count(
        &self,
        key: &str,
        default: Option<usize>,
        range: RangeInclusive<usize>,
    ) -> Result<usize, Error> {
        let found = match self.get(key) {
            None => default,
            Some(value) => value.as_u64().and_then(|n| usize::try_from(n).ok()),
        };
        found
            .filter(|n| range.contains(n))
            .ok_or_else(|| self.error(key, format!("a whole number from {} to {}", range.start(), range.end())))
    }

    /// A finite number that `accept` takes, called `expected` in the error; `default` where absent.
    pub(crate) fn number(
        &self,
        key: &str,
        default: Option<f64>,
        expected: &str,
        accept: impl Fn(f64) -> bool,
    ) -> Result<f64, Error> {
        let found = self.get(key).map_or(default, Value::as_f64);
        found.filter(|x| x.is_finite() && accept(*x)).ok_or_else(|| self.error(key, expected))
    }

    /// True or false; `default` where absent.
    pub(crate) fn flag(&self, key: &str, default: bool) -> Result<bool, Error> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.error(key, "true or false")),
        }
    }

    /// A string, if present.
    pub(crate) fn text(&self, key: &str) -> Result<Option<&'a str>, Error> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| self.error(key, "a string")),
        }
    }

    /// A token id or a list of them; empty where absent.
    pub(crate) fn token_ids(&self, key: &str) -> Result<Vec<u32>, Error> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = match self.get(key) {
            None => Some(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(id).collect(),
            Some(value) => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.error(key, "a token id or a list of them"))
    }

    /// A list of `length` positive numbers.
    pub(crate) fn numbers(&self, key: &str, length: usize) -> Result<Vec<f32>, Error> {
        self.get(key)
            .and_then(Value::as_array)
            .filter(|list| list.len() == length)
            .and_then(|list| {
                list.iter().map(|v| v.as_f64().map(|x| x as f32).filter(|x| x.is_normal() && *x > 0.0)).collect()
            })
            .ok_or_else(|| self.error(key, format!("a list of {length} positive numbers, one per pair of head_dim")))
    }

    /// The error that `key` is not what was expected.
    pub(crate) fn error(&self, key: &str, expected: impl Into<String>) -> Error {
        let found = match self.object.get(key) {
            None => "missing".to_owned(),
            Some(value) => shortened(value),
        };
        Error::Config {
            path: self.path.to_owned(),
            key: format!("{}{key}", self.prefix),
            found,
            expected: expected.into(),
        }
    }
}

/// A value as JSON, cut to a length fit for one line.
fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
