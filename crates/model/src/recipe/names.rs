//! The names recipes are written with, and what to suggest for one that is none.

use microscale_formats::{ElementFormat, ScaleRule};

use super::{MAX_BLOCK_SIZE, ValueBlocks, error};
use crate::Error;

/// The short names, which suggestions prefer; of equally near ones the first is suggested.
const SHORT: [&str; 5] = ["bf16", "fp6", "fp8", "fp4", "int8"];

/// The format called `name`, `None` for bf16; `place` says where it stands: `[mlp] weight of FILE`.
pub(super) fn format(name: &str, place: &str) -> Result<Option<ElementFormat>, Error> {
    let name = name.trim();
    if name.eq_ignore_ascii_case("bf16") {
        return Ok(None);
    }
    if let Some(format) = ElementFormat::from_name(name) {
        return Ok(Some(format));
    }
    let names = SHORT.into_iter().chain(ElementFormat::ALL.into_iter().flat_map(ElementFormat::names));
    let mut known = vec!["bf16".to_owned()];
    known.extend(ElementFormat::ALL.map(
        |f| match SHORT.into_iter().find(|s| ElementFormat::from_name(s) == Some(f)) {
            Some(short) if short != f.name() => format!("{} ({short})", f.name()),
            _ => f.name().to_owned(),
        },
    ));
    Err(unknown("format", name, place, names, &known.join(", ")))
}

/// The scale rule called `name`.
pub(super) fn scale_rule(name: &str, place: &str) -> Result<ScaleRule, Error> {
    let names = ScaleRule::ALL.map(ScaleRule::name);
    ScaleRule::from_name(name.trim())
        .ok_or_else(|| unknown("scale rule", name, place, names.into_iter(), &names.join(", ")))
}

/// The mode of value blocks called `name`.
pub(super) fn value_blocks(name: &str, place: &str) -> Result<ValueBlocks, Error> {
    let names = ValueBlocks::ALL.map(ValueBlocks::name);
    ValueBlocks::from_name(name.trim())
        .ok_or_else(|| unknown("value-blocks", name, place, names.into_iter(), &names.join(", ")))
}

/// A block size within bounds.
pub(super) fn block_size(found: Option<usize>, shown: &str, place: &str) -> Result<usize, Error> {
    found.filter(|n| (1..=MAX_BLOCK_SIZE).contains(n)).ok_or_else(|| {
        error(format!("block size {shown} in {place}; expected a whole number from 1 to {MAX_BLOCK_SIZE}"))
    })
}

/// The error for a name that is none of `names`, with the nearest of them.
pub(super) fn unknown<'a>(
    what: &str,
    found: &str,
    place: &str,
    names: impl Iterator<Item = &'a str>,
    known: &str,
) -> Error {
    let hint = nearest(found.trim(), names).map(|n| format!("; did you mean \"{n}\"?")).unwrap_or(";".to_owned());
    error(format!("unknown {what} {found:?} in {place}{hint} known: {known}"))
}

/// The name fewest edits away, if it takes no more than a third of its letters (two of a short name's).
pub(super) fn nearest<'a>(found: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name longer than any real one is not a slip, and the distance takes quadratic time.
    if found.len() > 64 {
        return None;
    }
    let found = found.to_ascii_lowercase();
    names
        .map(|name| (strsim::damerau_levenshtein(&found, name), name))
        .filter(|(distance, name)| *distance <= (name.len() / 3).max(2))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
