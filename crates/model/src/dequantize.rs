//! Quantized models and files back to plain floats.

use std::collections::BTreeMap;
use std::path::Path;

use safetensors::Dtype;
use serde_json::{Map, Value};

use crate::checkpoint::{Entry, HEAD};
use crate::native::{self, Notes, PackedTensor, scale_name};
use crate::quantize::{copy_job, input, sorted, to_file};
use crate::transfer::{Header, Job, Layout, OnProgress, Output, Target, Transfer, Transferred, Transform};
use crate::weights_file::WeightsFile;
use crate::{Checkpoint, Error, ModelOutput};

/// What quantized values become. Both hold them exactly, but for what bf16 cannot (docs/numerics.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// `BF16`.
    Bf16,
    /// `F32`.
    F32,
}

impl Float {
    fn dtype(self) -> Dtype {
        match self {
            Float::Bf16 => Dtype::BF16,
            Float::F32 => Dtype::F32,
        }
    }
}

/// Writes a quantized model to the directory `output` as a plain one: each quantized weight as the values it stands
/// for, everything else as it is. A tied head that was quantized on its own stays a tensor of its own, and
/// `config.json` then says that the model is not tied.
///
/// # Errors
/// A source that is not quantized; an output that exists and is another's, or cannot be written.
pub fn dequantize_model(
    source: &Checkpoint,
    output: &Path,
    to: Float,
    options: &ModelOutput,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    if source.quantization().is_none() {
        return Err(not_quantized(Path::new(source.name())));
    }
    let packed =
        source.entries().keys().filter_map(|name| Some((name.clone(), source.packed(name)?.clone()))).collect();
    let mut jobs = jobs(source.files(), source.entries(), &packed, to);
    jobs.sort_by_key(|job| (job.inputs[0].file, job.inputs[0].offset));
    let header = Header { notes: None, kept: native::foreign_notes(&source.files()[0]) };
    let mut companions = source.companions()?;
    if source.config().tie_word_embeddings && packed.contains_key(HEAD) {
        companions.iter_mut().filter(|(name, _)| name == "config.json").for_each(|(_, bytes)| *bytes = untied(bytes));
    }
    let transfer = Transfer {
        files: source.files().iter().map(WeightsFile::file).collect(),
        config: Some(source.config_bytes()),
        layout: Layout::of_model(&jobs, options.shard_size, Box::new(header)),
        jobs,
        companions,
        target: Target::Directory(output.to_owned()),
        allow_not_finite: true,
    };
    transfer.run(progress)
}

/// Writes a file with quantized tensors to the file `output` with their values; other tensors as they are.
///
/// # Errors
/// A file that cannot be read or holds no quantized tensor; an output that cannot be written.
pub fn dequantize_file(
    source: &Path,
    output: &Path,
    to: Float,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    let files = [WeightsFile::open(source.to_owned())?];
    let notes = Notes::read_checked(&files[0])?.ok_or_else(|| not_quantized(source))?;
    let entries = sorted(&files[0]).into_iter().map(|(name, info)| (name, Entry { file: 0, info })).collect();
    let mut jobs = jobs(&files, &entries, &notes.tensors, to);
    jobs.sort_by_key(|job| job.inputs[0].offset);
    let header = Header { notes: None, kept: native::foreign_notes(&files[0]) };
    to_file(&files, jobs, header, output, progress)
}

fn not_quantized(path: &Path) -> Error {
    Error::checkpoint(path, "holds no tensors that `microscale quantize` made; there is nothing to dequantize")
}

/// What becomes of each tensor: the quantized ones take their scales with them.
fn jobs(
    files: &[WeightsFile],
    entries: &BTreeMap<String, Entry>,
    packed: &BTreeMap<String, PackedTensor>,
    to: Float,
) -> Vec<Job> {
    let is_scale = |name: &str| name.strip_suffix("_scale").is_some_and(|tensor| packed.contains_key(tensor));
    let job = |(name, entry): (&String, &Entry)| match packed.get(name) {
        None => copy_job(files, name, entry),
        Some(tensor) => Job {
            name: name.clone(),
            inputs: vec![
                input(files, entry, tensor.code_bytes()),
                input(files, &entries[&scale_name(name)], tensor.blocks()),
            ],
            outputs: vec![Output { name: name.clone(), dtype: to.dtype(), shape: tensor.shape.to_vec() }],
            rows: tensor.shape[0],
            transform: Transform::Dequantize { from: tensor.clone(), to: to.dtype() },
        },
    };
    entries.iter().filter(|(name, _)| !is_scale(name)).map(job).collect()
}

/// A `config.json` that no longer ties the head to the embedding.
fn untied(config: &[u8]) -> Vec<u8> {
    match serde_json::from_slice::<Map<String, Value>>(config) {
        Ok(mut object) => {
            object.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
            format!("{:#}\n", Value::Object(object)).into_bytes()
        }
        Err(_) => config.to_vec(), // it was read before
    }
}
