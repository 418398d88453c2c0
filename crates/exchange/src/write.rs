//! Writing folders of safetensors files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use microscale_formats::{ElementFormat, Ties};
use microscale_model::transfer::{Container, Job, Layout, OnProgress, Output, Placed, RowTransform, Target, Transfer};
use microscale_model::transfer::{Transferred, Transform, safetensors_header};
use microscale_model::{Config, Dtype, Error, Notes, PackedTensor, Recipe, Role};
use serde_json::{Map, Value};

use crate::dialect::{self, Dialect};
use crate::notes::{self, Noted};
use crate::open::untie;
use crate::repack::{Cast, Packing, Repack, rope_order};
use crate::source::{Source, Stored, Tensor, checkpoint, object};
use crate::{Kind, native};

/// Writes a checkpoint as a kind that is a folder.
pub(crate) fn folder(
    source: &Source,
    kind: Kind,
    output: &Path,
    shard_size: usize,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    let Some(dialect) = dialect::of(kind) else { return Err(checkpoint(output, "is to be a file, not a folder")) };
    if source.packed().next().is_none() {
        let reason = "holds no quantized tensors; quantize it first (of plain models only GGUF files can be made)";
        return Err(checkpoint(&source.path, reason));
    }
    let recipe = if kind == Kind::Native { native_recipe(source)? } else { source.about.recipe.clone() };
    let roles = kind == Kind::Native && recipe.is_some();
    let jobs = source.tensors.iter().map(|tensor| job(source, dialect, tensor, roles, kind));
    let jobs = jobs.collect::<Result<Vec<_>, _>>()?;
    check_names(source, &jobs)?;
    let container: Box<dyn Container> = match kind {
        Kind::Native => Box::new(NativeHeader::new(source, recipe, roles)),
        _ => Box::new(Noted(notes::texts(source))),
    };
    let mut companions = vec![("config.json".to_owned(), config(source, kind, dialect)?)];
    companions.extend(dialect.companions(source));
    companions.extend(source.companions.iter().filter(|(name, _)| name != "hf_quant_config.json").cloned());
    let transfer = Transfer {
        files: source.files.iter().collect(),
        config: source.stored_config.as_deref(),
        layout: Layout::of_model(&jobs, shard_size, container),
        jobs,
        companions,
        target: Target::Directory(output.to_owned()),
        allow_not_finite: true,
    };
    transfer.run(progress)
}

/// What becomes of one tensor.
fn job(source: &Source, dialect: &dyn Dialect, tensor: &Tensor, roles: bool, kind: Kind) -> Result<Job, Error> {
    let refuse = |reason: String| source.refuse(&tensor.name, reason);
    match tensor.stored {
        Stored::Packed { format, .. } if !(roles && role(&tensor.name).is_none()) => {
            let target = dialect.store(tensor, format.element).map_err(refuse)?;
            let outputs = vec![target.codes, target.scales];
            packed_job(tensor, target.packing, outputs, None, dialect.nan_scales()).map_err(refuse)
        }
        Stored::Packed { .. } => dequantized(tensor).map_err(refuse),
        Stored::Plain { dtype, .. } => {
            let float = matches!(dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
            // Of a GGUF file that this program wrote, norms are bf16 values in f32.
            let ours = source.kind == Some(Kind::Gguf) && source.about.source_sha256.is_some();
            let rounded = float && (kind == Kind::Native || ours);
            let to = if rounded && is_parameter(&tensor.name) { Dtype::BF16 } else { dtype };
            let output = Output { name: tensor.name.clone(), dtype: to, shape: tensor.shape.clone() };
            plain_job(tensor, output, None).map_err(refuse)
        }
    }
}

fn is_parameter(name: &str) -> bool {
    name.ends_with(".weight") || name.ends_with(".bias")
}

/// A quantized tensor that moves as it is. `turned` is the rows of a head if they are to lie in llama.cpp's order.
pub(crate) fn packed_job(
    tensor: &Tensor,
    to: Packing,
    outputs: Vec<Output>,
    turned: Option<usize>,
    nan_scales: bool,
) -> Result<Job, String> {
    let Stored::Packed { format, packing, codes, scales } = tensor.stored else {
        return Err("is not quantized".to_owned());
    };
    let (rows, columns) = (tensor.rows(), tensor.columns());
    let order = order(tensor.turned, turned, rows)?;
    let code_bytes = packing.row_bytes(format.element, columns);
    let blocks = columns.div_ceil(format.block_size);
    let scales = scales.map(|scales| scales.input(blocks * order.len()));
    let inputs = [codes.input(code_bytes * order.len())].into_iter().chain(scales).collect();
    let rows = rows / order.len();
    let repack = Repack {
        element: format.element,
        columns,
        block_size: format.block_size,
        from: packing,
        to,
        order,
        nan_scales,
    };
    Ok(rows_job(tensor, inputs, outputs, rows, repack))
}

/// A plain tensor, whose values become those of the output's type.
pub(crate) fn plain_job(tensor: &Tensor, output: Output, turned: Option<usize>) -> Result<Job, String> {
    let Stored::Plain { dtype, at } = tensor.stored else { return Err("is quantized".to_owned()) };
    let (rows, columns) = (tensor.rows(), tensor.columns());
    if dtype == output.dtype && tensor.turned == turned {
        let rows = output.bytes();
        let (name, inputs) = (tensor.name.clone(), vec![at.input(1)]);
        return Ok(Job { name, inputs, outputs: vec![output], rows, transform: Transform::Copy });
    }
    // A vector that is turned is so by values.
    let vector = tensor.shape.len() < 2;
    let (rows, columns) = if vector { (columns, 1) } else { (rows, columns) };
    let order = order(tensor.turned, turned, rows)?;
    let inputs = vec![at.input(columns * order.len() * dtype.bitsize() / 8)];
    let rows = rows / order.len();
    let cast = Cast { from: dtype, to: output.dtype, columns, order };
    Ok(rows_job(tensor, inputs, vec![output], rows, cast))
}

/// A tensor that a transform makes row by row.
pub(crate) fn rows_job(
    tensor: &Tensor,
    inputs: Vec<microscale_model::transfer::Input>,
    outputs: Vec<Output>,
    rows: usize,
    transform: impl RowTransform + 'static,
) -> Job {
    let transform = Transform::Rows(std::sync::Arc::new(transform));
    Job { name: tensor.name.clone(), inputs, outputs, rows, transform }
}

/// Of each row of a group of the target, which row of the source it is.
pub(crate) fn order(from: Option<usize>, to: Option<usize>, rows: usize) -> Result<Vec<usize>, String> {
    let order = match (from, to) {
        (None, None) => vec![0],
        (Some(from), Some(to)) if from == to => vec![0],
        (Some(head_dim), None) => rope_order(head_dim, false),
        (None, Some(head_dim)) => rope_order(head_dim, true),
        (Some(_), Some(_)) => return Err("has heads of another size than config.json says".to_owned()),
    };
    match order.is_empty() || !rows.is_multiple_of(order.len()) {
        false => Ok(order),
        true => Err(format!("has {rows} rows, which heads of {} do not divide", order.len())),
    }
}

/// A quantized tensor that the native layout has as plain values: an embedding.
fn dequantized(tensor: &Tensor) -> Result<Job, String> {
    let (Stored::Packed { codes, scales: Some(scales), packing, .. }, Some(packed)) =
        (&tensor.stored, native::packed(tensor, Ties::Even))
    else {
        return Err("is stored in blocks, and no weight that a recipe has a format for".to_owned());
    };
    let from = PackedTensor { unpacked: *packing == Packing::Bytes, ..packed };
    let inputs = vec![codes.input(from.code_bytes()), scales.input(from.blocks())];
    let output = Output { name: tensor.name.clone(), dtype: Dtype::BF16, shape: tensor.shape.clone() };
    let rows = tensor.rows();
    let transform = Transform::Dequantize { from, to: Dtype::BF16 };
    Ok(Job { name: tensor.name.clone(), inputs, outputs: vec![output], rows, transform })
}

/// Refuses outputs of one name.
fn check_names(source: &Source, jobs: &[Job]) -> Result<(), Error> {
    let mut names = BTreeSet::new();
    match jobs.iter().flat_map(|job| &job.outputs).find(|output| !names.insert(output.name.as_str())) {
        None => Ok(()),
        Some(output) => Err(source.refuse(&output.name, "would be there twice; rename one of the source's tensors")),
    }
}

/// The `config.json` of the output.
fn config(source: &Source, kind: Kind, dialect: &dyn Dialect) -> Result<Vec<u8>, Error> {
    if kind == Kind::Native {
        return Ok(source.config.clone());
    }
    let mut config = object(&source.config, &source.path)?;
    untie(&mut config, &source.tensors);
    dialect.configure(source, &mut config);
    Ok(format!("{:#}\n", Value::Object(config)).into_bytes())
}

/// The role of a weight that a recipe may have a format for.
pub(crate) fn role(name: &str) -> Option<Role> {
    let module = name.strip_suffix(".weight")?;
    let linear = module.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')).map(|(_, linear)| linear);
    match (module, linear) {
        ("lm_head", _) => Some(Role::HeadWeight),
        (_, Some("mlp.gate_proj" | "mlp.up_proj" | "mlp.down_proj")) => Some(Role::MlpWeight),
        (_, Some("self_attn.q_proj" | "self_attn.k_proj" | "self_attn.v_proj" | "self_attn.o_proj")) => {
            Some(Role::ProjectionWeight)
        }
        _ => None,
    }
}

/// The recipe of a native model: the one it came with, or one that says what its tensors are. `None` for a model that
/// this program does not run, whose tensors are then quantized one by one.
///
/// # Errors
/// A tensor in another format than others of its role, which no recipe can say.
fn native_recipe(source: &Source) -> Result<Option<Recipe>, Error> {
    if Config::from_json(&source.config, &source.path).is_err() {
        return Ok(None);
    }
    let mut recipe = match &source.about.recipe {
        Some(recipe) => recipe.clone(),
        None => inferred(source),
    };
    for tensor in &source.tensors {
        let (Some(role), found) = (role(&tensor.name), tensor.format()) else { continue };
        let Some(expected) = recipe.format(role) else {
            match found {
                None => continue,
                Some(_) => return Err(source.refuse(&tensor.name, unlike(found.map(|f| f.element), None))),
            }
        };
        let fits = found.is_some_and(|format| format.element == expected && format.block_size == recipe.block_size);
        if !fits {
            return Err(source.refuse(&tensor.name, unlike(found.map(|f| f.element), Some(expected))));
        }
    }
    if recipe.name.is_empty() {
        recipe.name = source.kind.map_or("imported", Kind::name).to_owned();
    }
    Ok(Some(recipe))
}

fn unlike(found: Option<ElementFormat>, expected: Option<ElementFormat>) -> String {
    let [found, expected] = [found, expected].map(|format| format.map_or("not quantized", ElementFormat::name));
    format!("is {found}, others of its role are {expected}; a native model has one format per role")
}

/// A recipe that says of every role what the first tensor in it is.
fn inferred(source: &Source) -> Recipe {
    let mut recipe = Recipe::bf16();
    recipe.name = String::new();
    let mut seen = Vec::new();
    for tensor in &source.tensors {
        let Some(weight) = role(&tensor.name).filter(|role| !seen.contains(role)) else { continue };
        seen.push(weight);
        let Some(format) = tensor.format() else { continue };
        let input = match weight {
            Role::HeadWeight => Role::HeadActivation,
            Role::MlpWeight => Role::MlpActivation,
            _ => Role::ProjectionActivation,
        };
        recipe.block_size = format.block_size;
        recipe.scale_rule = format.scale_rule;
        recipe = recipe.with(weight, Some(format.element)).with(input, source.about.inputs);
    }
    recipe
}

/// The header of a native file that was made of another kind.
struct NativeHeader {
    notes: Notes,
    kept: BTreeMap<String, String>,
}

impl NativeHeader {
    fn new(source: &Source, recipe: Option<Recipe>, roles: bool) -> NativeHeader {
        let about = &source.about;
        let packed = source.packed().filter(|(tensor, _)| !roles || role(&tensor.name).is_some());
        let notes = Notes {
            source: about.source.clone().unwrap_or_else(|| source.name.clone()),
            source_sha256: about.source_sha256.clone().unwrap_or_default(),
            version: about.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned()),
            recipe,
            tensors: packed
                .filter_map(|(tensor, _)| Some((tensor.name.clone(), native::packed(tensor, about.ties)?)))
                .collect(),
        };
        NativeHeader { notes, kept: about.kept.clone() }
    }
}

impl Container for NativeHeader {
    fn header(&self, outputs: &[Placed], source_sha256: &str) -> Vec<u8> {
        let mut about: Map<String, Value> =
            self.kept.iter().map(|(key, text)| (key.clone(), Value::String(text.clone()))).collect();
        let mut notes = self.notes.clone();
        if notes.source_sha256.is_empty() {
            notes.source_sha256 = source_sha256.to_owned();
        }
        let here: BTreeSet<&str> = outputs.iter().map(|placed| placed.output.name.as_str()).collect();
        about.extend(notes.write(|name| here.contains(name)));
        safetensors_header(about, outputs)
    }
}
