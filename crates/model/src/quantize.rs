//! Writing models and single files in the native layout: quantized, in bounded memory.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use microscale_formats::Ties;
use microscale_tensor::BlockFormat;
use safetensors::Dtype;

use crate::checkpoint::{EMBEDDING, Entry, HEAD};
use crate::native::{self, Notes, PackedTensor, scale_name};
use crate::transfer::{Header, Input, Job, Layout, OnProgress, Output, Target, Transfer, Transferred, Transform};
use crate::weights::block_format;
use crate::weights_file::WeightsFile;
use crate::{Checkpoint, Error, Recipe, Role, convert};

/// How to write a model.
#[derive(Clone, Copy, Debug)]
pub struct ModelOutput {
    /// Bytes of tensors that a file holds at most, but for a tensor that is larger by itself.
    pub shard_size: usize,
    /// Where values halfway between two codes go; those of activations always go to even.
    pub ties: Ties,
    /// Whether weights may be infinite or NaN; a model that has such cannot be run, only exchanged.
    pub allow_not_finite: bool,
}

impl Default for ModelOutput {
    /// Files of up to 4 GB, ties to even, finite weights only.
    fn default() -> Self {
        ModelOutput { shard_size: 4_000_000_000, ties: Ties::Even, allow_not_finite: false }
    }
}

/// How to quantize the tensors of a file.
#[derive(Clone, Copy)]
pub struct FileQuantization<'a> {
    /// The format of every tensor that is quantized.
    pub format: BlockFormat,
    /// Where values halfway between two codes go.
    pub ties: Ties,
    /// Whether each code gets a byte of its own instead of its true width.
    pub unpacked: bool,
    /// Which of the float matrices to quantize, by name.
    pub select: &'a dyn Fn(&str) -> bool,
}

/// Writes a model with its weights in the formats of `recipe` to the directory `output`, in the native layout: the
/// numbers are those of quantizing while loading. A tied head that the recipe quantizes becomes a tensor of its own.
/// Tensors that the model does not use are copied.
///
/// Memory is bounded by a few slices per thread. What is not complete lies in [`partial_path`]; the same call goes on
/// from there, whatever ended it, as long as the source is the same.
///
/// # Errors
/// A source that is quantized already, or whose weights are not finite; a recipe that quantizes no weight; an output
/// that exists and is another's, or cannot be written.
///
/// [`partial_path`]: crate::partial_path
pub fn quantize_model(
    source: &Checkpoint,
    recipe: &Recipe,
    output: &Path,
    options: &ModelOutput,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    if let Some(stored) = source.quantization() {
        let reason = format!("is quantized already, by recipe {}; give the original", stored.recipe.name);
        return Err(Error::checkpoint(Path::new(source.name()), reason));
    }
    let jobs = model_jobs(source, recipe, options.ties)?;
    let tensors = packed_tensors(&jobs);
    if tensors.is_empty() {
        let reason = format!("recipe {} leaves every weight bf16; there is nothing to quantize", recipe.name);
        return Err(Error::Recipe { reason });
    }
    let notes = Notes {
        source: source.name().to_owned(),
        source_sha256: String::new(), // known when all is read
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: Some(recipe.clone()),
        tensors,
    };
    let header = Header { notes: Some(notes), kept: native::foreign_notes(&source.files()[0]) };
    let transfer = Transfer {
        files: source.files().iter().map(WeightsFile::file).collect(),
        config: Some(source.config_bytes()),
        layout: Layout::of_model(&jobs, options.shard_size, Box::new(header)),
        jobs,
        companions: source.companions()?,
        target: Target::Directory(output.to_owned()),
        allow_not_finite: options.allow_not_finite,
    };
    transfer.run(progress)
}

/// Writes the tensors of a safetensors file to the file `output`: float matrices (f32, f16, bf16; those that are
/// selected) quantized from their own values, the others as they are. Values may be infinite or NaN; their blocks get
/// the scale NaN and are counted.
///
/// # Errors
/// A file that cannot be read or is quantized already; none of its tensors selected; an output that cannot be written.
pub fn quantize_file(
    source: &Path,
    output: &Path,
    options: &FileQuantization<'_>,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    let files = [WeightsFile::open(source.to_owned())?];
    if Notes::read(&files[0])?.is_some() {
        return Err(Error::checkpoint(source, "is quantized already; give the original"));
    }
    let scale_rule = options.format.scale_rule.for_format(options.format.element);
    let format = BlockFormat { scale_rule, ..options.format };
    let mut jobs: Vec<Job> = Vec::new();
    for (name, info) in sorted(&files[0]) {
        let entry = Entry { file: 0, info };
        let matrix = <[usize; 2]>::try_from(entry.info.shape.as_slice()).ok().filter(|shape| !shape.contains(&0));
        let selected = convert::READABLE.contains(&entry.info.dtype) && (options.select)(&name);
        jobs.push(match matrix {
            Some(shape) if selected => {
                let to = PackedTensor { unpacked: options.unpacked, ..packed(format, options.ties, shape) };
                quantize_job(&files, &name, &entry, to, false)
            }
            _ => copy_job(&files, &name, &entry),
        });
    }
    check_names(&jobs, source)?;
    let tensors = packed_tensors(&jobs);
    if tensors.is_empty() {
        let reason = "holds no float matrix (F32, F16 or BF16, two dimensions) of those asked for; nothing to quantize";
        return Err(Error::checkpoint(source, reason));
    }
    let notes = Notes {
        source: source.file_name().unwrap_or_default().to_string_lossy().into_owned(),
        source_sha256: String::new(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        recipe: None,
        tensors,
    };
    let header = Header { notes: Some(notes), kept: native::foreign_notes(&files[0]) };
    to_file(&files, jobs, header, output, progress)
}

/// Runs jobs whose outputs make one file.
pub(crate) fn to_file(
    files: &[WeightsFile],
    jobs: Vec<Job>,
    header: Header,
    output: &Path,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let transfer = Transfer {
        files: files.iter().map(WeightsFile::file).collect(),
        config: None,
        layout: Layout::of_file(&jobs, name, Box::new(header)),
        jobs,
        companions: Vec::new(),
        target: Target::File(output.to_owned()),
        allow_not_finite: true,
    };
    transfer.run(progress)
}

/// The tensors of a file in the order in which they lie there.
pub(crate) fn sorted(file: &WeightsFile) -> Vec<(String, safetensors::tensor::TensorInfo)> {
    let mut infos: Vec<_> = file.infos().collect();
    infos.sort_by_key(|(name, info)| (info.data_offsets, name.clone()));
    infos
}

/// What becomes of a model's tensors, in the order in which they lie in its files.
fn model_jobs(source: &Checkpoint, recipe: &Recipe, ties: Ties) -> Result<Vec<Job>, Error> {
    let (files, entries) = (source.files(), source.entries());
    let mut jobs = Vec::new();
    let mut used = HashSet::from([HEAD.to_owned()]); // a tied model does not use the head that its files may hold
    for tensor in source.expected() {
        let entry = &entries[&tensor.name];
        let matrix = <[usize; 2]>::try_from(tensor.shape.as_slice()).ok();
        jobs.push(match tensor.role.and_then(|role| block_format(recipe, role)).zip(matrix) {
            Some((format, shape)) => quantize_job(files, &tensor.name, entry, packed(format, ties, shape), true),
            None => round_job(files, &tensor.name, entry),
        });
        used.insert(tensor.name);
    }
    if let Some(format) = block_format(recipe, Role::HeadWeight).filter(|_| source.config().tie_word_embeddings) {
        let shape = [source.config().vocab_size, source.config().hidden_size];
        jobs.push(quantize_job(files, HEAD, &entries[EMBEDDING], packed(format, ties, shape), true));
    }
    let unused = entries.iter().filter(|(name, _)| !used.contains(*name));
    jobs.extend(unused.map(|(name, entry)| copy_job(files, name, entry)));
    jobs.sort_by_key(|job| (job.inputs[0].file, job.inputs[0].offset));
    check_names(&jobs, Path::new(source.name()))?;
    Ok(jobs)
}

fn packed(format: BlockFormat, ties: Ties, shape: [usize; 2]) -> PackedTensor {
    PackedTensor { format, ties, shape, unpacked: false }
}

/// The quantized tensors that jobs make, by name.
fn packed_tensors(jobs: &[Job]) -> BTreeMap<String, PackedTensor> {
    let quantized = jobs.iter().filter_map(|job| match &job.transform {
        Transform::Quantize { to, .. } => Some((job.name.clone(), to.clone())),
        _ => None,
    });
    quantized.collect()
}

/// Refuses outputs of one name.
fn check_names(jobs: &[Job], path: &Path) -> Result<(), Error> {
    let mut names = HashSet::new();
    match jobs.iter().flat_map(|job| &job.outputs).find(|output| !names.insert(output.name.as_str())) {
        None => Ok(()),
        Some(output) => {
            let reason = "the scales of a quantized tensor would have this name too; rename it, or leave that one out";
            Err(Error::Tensor { path: path.to_owned(), name: output.name.clone(), reason: reason.to_owned() })
        }
    }
}

/// `round` is whether values are rounded to bf16 first.
fn quantize_job(files: &[WeightsFile], name: &str, entry: &Entry, to: PackedTensor, round: bool) -> Job {
    let [rows, columns] = to.shape;
    let from = entry.info.dtype;
    let codes = Output { name: name.to_owned(), dtype: to.code_dtype(), shape: vec![rows, to.code_bytes()] };
    let scales = Output { name: scale_name(name), dtype: Dtype::U8, shape: vec![rows, to.blocks()] };
    Job {
        name: name.to_owned(),
        inputs: vec![input(files, entry, columns * from.bitsize() / 8)],
        outputs: vec![codes, scales],
        rows,
        transform: Transform::Quantize { from, round, to },
    }
}

fn round_job(files: &[WeightsFile], name: &str, entry: &Entry) -> Job {
    let from = entry.info.dtype;
    Job {
        name: name.to_owned(),
        inputs: vec![input(files, entry, from.bitsize() / 8)],
        outputs: vec![Output { name: name.to_owned(), dtype: Dtype::BF16, shape: entry.info.shape.clone() }],
        rows: entry.info.shape.iter().product(),
        transform: Transform::Round(from),
    }
}

/// A job whose rows are bytes.
pub(crate) fn copy_job(files: &[WeightsFile], name: &str, entry: &Entry) -> Job {
    let (dtype, shape) = (entry.info.dtype, entry.info.shape.clone());
    Job {
        name: name.to_owned(),
        inputs: vec![input(files, entry, 1)],
        rows: entry.info.data_offsets.1 - entry.info.data_offsets.0,
        outputs: vec![Output { name: name.to_owned(), dtype, shape }],
        transform: Transform::Copy,
    }
}

pub(crate) fn input(files: &[WeightsFile], entry: &Entry, row_bytes: usize) -> Input {
    Input { file: entry.file, offset: files[entry.file].offset(&entry.info), row_bytes }
}
