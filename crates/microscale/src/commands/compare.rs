//! `microscale compare`: do two models or files hold the same values?

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use microscale_model::{Checkpoint, Comparison, Contents, Difference, TensorComparison, compare};
use serde_json::{Value, json};

use crate::arguments::Compare;
use crate::quality::{decibels, json_decibels, plain};
use crate::{output, sources, usage};

pub(crate) fn run(arguments: &Compare) -> Result<ExitCode> {
    // As with `cmp`, 1 means different, so trouble is 2.
    let found = compare_both(arguments).map_err(usage)?;
    output::emit(&if arguments.json { json(&found) } else { text(&found) }, None)?;
    Ok(ExitCode::from(u8::from(!found.same())))
}

fn compare_both(arguments: &Compare) -> Result<Comparison> {
    let [a, b] = [Side::open(&arguments.a)?, Side::open(&arguments.b)?];
    Ok(compare(&a.contents()?, &b.contents()?)?)
}

/// What an argument means: a model, or a file.
pub(crate) enum Side<'a> {
    Model(Box<Checkpoint>),
    File(&'a Path),
}

impl Side<'_> {
    pub(crate) fn open(argument: &str) -> Result<Side<'_>> {
        let path = Path::new(argument);
        if path.is_file() {
            return Ok(Side::File(path));
        }
        Ok(Side::Model(Box::new(sources::model(Some(argument))?)))
    }

    pub(crate) fn contents(&self) -> Result<Contents<'_>> {
        Ok(match self {
            Side::Model(checkpoint) => Contents::of_model(checkpoint),
            Side::File(path) => Contents::of_file(path)?,
        })
    }
}

fn text(found: &Comparison) -> String {
    let different: Vec<&TensorComparison> = found.tensors.iter().filter(|t| t.difference.is_some()).collect();
    if different.is_empty() {
        return format!("same: {} tensors\n", found.tensors.len());
    }
    let mut table = plain(&["TENSOR", "A", "B", "VALUES", "CODES", "SCALES", "MAX |A-B|", "SQNR dB"], 3);
    for tensor in &different {
        let [a, b] = tensor.stored.clone().map(|stored| stored.unwrap_or_else(|| "missing".to_owned()));
        let dash = || "-".to_owned();
        let cells = match &tensor.difference {
            Some(Difference::Values { values: [values, _], codes_and_scales, max_abs, sqnr_db }) => {
                let count = |i: usize| codes_and_scales.map_or_else(dash, |counts| counts[i].to_string());
                [values.to_string(), count(0), count(1), format!("{max_abs:.3e}"), decibels(*sqnr_db)]
            }
            Some(Difference::Shape([a, b])) => [format!("{a:?} {b:?}"), dash(), dash(), dash(), dash()],
            Some(Difference::Bytes) => ["other bytes".to_owned(), dash(), dash(), dash(), dash()],
            Some(Difference::Missing) | None => std::array::from_fn(|_| dash()),
        };
        table.add_row([tensor.name.clone(), a, b].into_iter().chain(cells));
    }
    format!("{}\n\ndifferent: {} of {} tensors\n", table.trim_fmt(), different.len(), found.tensors.len())
}

fn json(found: &Comparison) -> String {
    let difference = |difference: &Difference| match difference {
        Difference::Missing => json!({"kind": "missing"}),
        Difference::Shape(shapes) => json!({"kind": "shape", "shapes": shapes}),
        Difference::Bytes => json!({"kind": "bytes"}),
        Difference::Values { values: [different, of], codes_and_scales, max_abs, sqnr_db } => json!({
            "kind": "values",
            "different_values": different,
            "values": of,
            "different_codes": codes_and_scales.map(|counts| counts[0]),
            "different_scales": codes_and_scales.map(|counts| counts[1]),
            "max_abs": max_abs,
            "sqnr_db": json_decibels(*sqnr_db),
        }),
    };
    let tensor = |t: &TensorComparison| {
        json!({
            "name": t.name,
            "stored": t.stored,
            "difference": t.difference.as_ref().map_or(Value::Null, difference),
        })
    };
    let tensors: Vec<Value> = found.tensors.iter().map(tensor).collect();
    format!("{:#}\n", json!({"same": found.same(), "tensors": tensors}))
}
