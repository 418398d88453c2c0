//! `microscale inspect`: what a checkpoint holds.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use microscale_model::{Checkpoint, PackedSize, Quantization, Recipe, TensorInfo};

use crate::arguments::Inspect;
use crate::{output, sources};

pub(crate) fn run(arguments: &Inspect) -> Result<ExitCode> {
    let checkpoint = sources::model(Some(&arguments.path))?;
    let mut text = summary(&checkpoint);
    if arguments.tensors {
        text += &tensors(&checkpoint);
    }
    text += &packed_sizes(&checkpoint);
    output::emit(&text, None)?;
    Ok(ExitCode::SUCCESS)
}

fn summary(checkpoint: &Checkpoint) -> String {
    let c = checkpoint.config();
    let mut by_dtype: BTreeMap<String, (usize, usize, usize)> = BTreeMap::new();
    for (name, tensor) in checkpoint.tensors() {
        let (dtype, parameters) = held(checkpoint, name, &tensor);
        let sum = by_dtype.entry(dtype).or_default();
        *sum = (sum.0 + 1, sum.1 + parameters, sum.2 + tensor.bytes);
    }
    let mut table = plain(&["DTYPE", "TENSORS", "PARAMETERS", "SIZE"]);
    for (dtype, (tensors, parameters, bytes)) in by_dtype {
        table.add_row([dtype, tensors.to_string(), parameters.to_string(), size(bytes)]);
    }
    let head = if c.tie_word_embeddings { "tied to the embedding" } else { "its own" };
    let quantization = checkpoint.quantization().map_or(String::new(), |q| {
        let Quantization { recipe, source, source_sha256, version } = q;
        let hash: String = source_sha256.chars().take(12).collect();
        format!("quantized from {source} ({hash}) by recipe {}, microscale {version}\n", recipe.name)
    });
    format!(
        "{} ({})\n{quantization}layers {}, hidden {}, intermediate {}, heads {} over {} key/value heads of {}, vocabulary {}, head {head}, \
         positions {}\n\n{}\n\n",
        checkpoint.name(),
        c.architecture.name(),
        c.layers,
        c.hidden_size,
        c.intermediate_size,
        c.heads,
        c.kv_heads,
        c.head_dim,
        c.vocab_size,
        c.max_position_embeddings,
        table.trim_fmt()
    )
}

/// What a tensor's bytes are, and how many parameters of the model.
fn held(checkpoint: &Checkpoint, name: &str, tensor: &TensorInfo) -> (String, usize) {
    if let Some(packed) = checkpoint.packed(name) {
        return (packed.format.element.name().to_owned(), packed.shape.iter().product());
    }
    match name.strip_suffix("_scale").and_then(|name| checkpoint.packed(name)) {
        Some(_) => ("scales".to_owned(), 0),
        None => (format!("{:?}", tensor.dtype), tensor.shape.iter().product()),
    }
}

fn tensors(checkpoint: &Checkpoint) -> String {
    let mut table = plain(&["TENSOR", "DTYPE", "SHAPE", "SIZE"]);
    for (name, tensor) in checkpoint.tensors() {
        table.add_row([
            name.to_owned(),
            held(checkpoint, name, &tensor).0,
            format!("{:?}", tensor.shape),
            size(tensor.bytes),
        ]);
    }
    format!("{}\n\n", table.trim_fmt())
}

/// What the weights take in memory under each preset, or under the one recipe of a quantized model; recipes that differ in activations only share a line. A tied head
/// is a copy of its own, so its bytes count and its parameters do not.
fn packed_sizes(checkpoint: &Checkpoint) -> String {
    let parameters: usize = checkpoint.tensors().map(|(name, t)| held(checkpoint, name, &t).1).sum();
    let mut lines: Vec<(usize, f64, Vec<String>)> = Vec::new();
    let recipes = checkpoint.quantization().map_or_else(Recipe::presets, |q| vec![q.recipe.clone()]);
    for recipe in recipes {
        let bytes = PackedSize::of(checkpoint.config(), &recipe).total_bytes();
        let bits = bytes as f64 * 8.0 / parameters as f64;
        match lines.iter_mut().find(|line| line.0 == bytes) {
            Some(line) => line.2.push(recipe.name.clone()),
            None => lines.push((bytes, bits, vec![recipe.name.clone()])),
        }
    }
    let mut table = plain(&["PACKED SIZE", "BITS/PARAMETER", "RECIPES"]);
    for (bytes, bits, recipes) in lines {
        table.add_row([size(bytes), format!("{bits:.2}"), recipes.join(" ")]);
    }
    format!("{}\n", table.trim_fmt())
}

fn plain(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(heads);
    table
}

/// Bytes in decimal units.
pub(crate) fn size(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        b if b >= 1e9 => format!("{:.2} GB", b / 1e9),
        b if b >= 1e6 => format!("{:.2} MB", b / 1e6),
        b if b >= 1e3 => format!("{:.1} kB", b / 1e3),
        b => format!("{b} B"),
    }
}
