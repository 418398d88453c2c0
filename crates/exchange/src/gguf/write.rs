//! Writing a GGUF file that llama.cpp runs.

use std::collections::BTreeMap;
use std::path::Path;

use microscale_formats::{BLOCK, E2M1, ElementFormat, INT8};
use microscale_model::transfer::{Job, Layout, OnProgress, Output, Target, Transfer, Transferred, Transform};
use microscale_model::{Architecture, Config, Dtype, Error, Rope, Scaling};

use super::container::{File, Type, Value};
use super::q8_0::Quants;
use super::{names, tokenizer};
use crate::dialect::check_blocks;
use crate::repack::{Constant, Packing};
use crate::source::{Source, Stored, Tensor, checkpoint};
use crate::write::{order, packed_job, plain_job, rows_job};
use crate::{Kind, Outtype, notes};

/// Frequencies of the rotary embedding that are not those of its base.
const ROPE_FREQUENCIES: &str = "rope_freqs.weight";
/// The keys for small files that go with a model, which only this program reads.
pub(super) const KEY_FILE: &str = "microscale.file.";
/// The key for the type of matrices that are not quantized, if it is not bf16.
pub(super) const KEY_OUTTYPE: &str = "microscale.outtype";
/// The key that GGUF has for this file.
pub(super) const KEY_TOKENIZER: &str = "tokenizer.huggingface.json";
pub(super) const TOKENIZER: &str = "tokenizer.json";

/// Writes a checkpoint as a GGUF file.
pub(crate) fn write(
    source: &Source,
    output: &Path,
    outtype: Outtype,
    progress: OnProgress<'_>,
) -> Result<Transferred, Error> {
    let config = Config::from_json(&source.config, &source.path.join("config.json"))?;
    let mut tensors = BTreeMap::new();
    let mut jobs = Vec::new();
    for tensor in &source.tensors {
        let Some(name) = names::to_gguf(&tensor.name) else {
            if tensor.name.ends_with(".inv_freq") {
                continue; // some old checkpoints hold what follows from config.json
            }
            return Err(source.refuse(&tensor.name, "is none that llama.cpp knows of this model; leave it out"));
        };
        let made = job(&config, tensor, name.clone(), outtype);
        let (job, kind) = made.map_err(|reason| source.refuse(&tensor.name, reason))?;
        tensors.insert(name, (kind, tensor.shape.clone()));
        jobs.push(job);
    }
    if let (Some(factors), Some(first)) = (frequency_factors(&config), jobs.first()) {
        let job = constant(first, factors);
        tensors.insert(ROPE_FREQUENCIES.to_owned(), (Type::F32, job.outputs[0].shape.clone()));
        jobs.push(job);
    }
    let mut pairs = metadata(source, &config, &tensors)?;
    pairs.extend(tokenizer::pairs(source, &config)?);
    let mut notes = notes::texts(source);
    for (name, bytes) in &source.companions {
        let key = if name == TOKENIZER { KEY_TOKENIZER.to_owned() } else { format!("{KEY_FILE}{name}") };
        if let Ok(text) = String::from_utf8(bytes.clone()) {
            notes.insert(key, text); // tokenizer.model is no text, and tokenizer.json says the same
        }
    }
    if outtype != Outtype::default() {
        notes.insert(KEY_OUTTYPE.to_owned(), outtype.name().to_owned());
    }
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let transfer = Transfer {
        files: source.files.iter().collect(),
        config: source.stored_config.as_deref(),
        layout: Layout::of_file(&jobs, name, Box::new(File { pairs, notes, tensors })),
        jobs,
        companions: Vec::new(),
        target: Target::File(output.to_owned()),
        allow_not_finite: true,
    };
    transfer.run(progress)
}

/// What becomes of one tensor, and its type there.
fn job(config: &Config, tensor: &Tensor, name: String, outtype: Outtype) -> Result<(Job, Type), String> {
    let llama = config.architecture == Architecture::Llama;
    let turned = names::turned(&tensor.name).filter(|_| llama).map(|_| config.head_dim);
    if let Stored::Packed { .. } = tensor.stored {
        let element = check_blocks(tensor, Kind::Gguf, &[E2M1, INT8])?;
        let kind = if element == INT8 { Type::Q8_0 } else { Type::Mxfp4 };
        let outputs = vec![blocks(tensor, element, name)];
        return Ok((packed_job(tensor, Packing::Blocks, outputs, turned, false)?, kind));
    }
    let Stored::Plain { dtype: from, at } = tensor.stored else { return Err("is quantized".to_owned()) };
    if !matches!(from, Dtype::F32 | Dtype::F16 | Dtype::BF16) {
        return Err(format!("is stored as {from}; expected BF16, F16 or F32, or a quantized weight"));
    }
    // As llama.cpp's own converter: matrices as asked for, vectors in f32, which its kernels want.
    if tensor.shape.len() >= 2 && outtype == Outtype::Q8_0 {
        let (rows, columns) = (tensor.rows(), tensor.columns());
        if !columns.is_multiple_of(BLOCK) {
            return Err(format!("has rows of {columns} values; Q8_0 needs a multiple of {BLOCK}. Leave --outtype out"));
        }
        let order = order(tensor.turned, turned, rows)?;
        let input = at.input(columns * order.len() * from.bitsize() / 8);
        let (rows, outputs) = (rows / order.len(), vec![blocks(tensor, INT8, name)]);
        let quants = Quants { from, columns, order };
        return Ok((rows_job(tensor, vec![input], outputs, rows, quants), Type::Q8_0));
    }
    let (kind, dtype) = if tensor.shape.len() < 2 { (Type::F32, Dtype::F32) } else { (Type::Bf16, Dtype::BF16) };
    let output = Output { name, dtype, shape: tensor.shape.clone() };
    Ok((plain_job(tensor, output, turned)?, kind))
}

/// The output for a tensor in ggml's blocks, as bytes.
fn blocks(tensor: &Tensor, element: ElementFormat, name: String) -> Output {
    let row = Packing::Blocks.row_bytes(element, tensor.columns());
    Output { name, dtype: Dtype::U8, shape: vec![tensor.rows(), row] }
}

/// By what llama.cpp is to divide each frequency, if the model's are LLaMA 3.1's.
fn frequency_factors(config: &Config) -> Option<Vec<f32>> {
    let Scaling::Llama3 { .. } = config.rope.scaling else { return None };
    let plain = Rope { scaling: Scaling::Default, ..config.rope.clone() };
    let inverse = |rope: &Rope| rope.inverse_frequencies(config.head_dim, 1).inverse;
    Some(inverse(&plain).iter().zip(inverse(&config.rope)).map(|(plain, scaled)| plain / scaled).collect())
}

/// A vector that is made here; what it is said to be read from does not matter.
fn constant(other: &Job, values: Vec<f32>) -> Job {
    let shape = vec![values.len()];
    let bytes = values.into_iter().flat_map(f32::to_le_bytes).collect();
    let mut input = other.inputs[0].clone();
    input.row_bytes = 0;
    Job {
        name: ROPE_FREQUENCIES.to_owned(),
        inputs: vec![input],
        outputs: vec![Output { name: ROPE_FREQUENCIES.to_owned(), dtype: Dtype::F32, shape }],
        rows: 1,
        transform: Transform::Rows(std::sync::Arc::new(Constant(bytes))),
    }
}

/// What llama.cpp wants to know of a model.
fn metadata(
    source: &Source,
    config: &Config,
    tensors: &BTreeMap<String, (Type, Vec<usize>)>,
) -> Result<Vec<(String, Value)>, Error> {
    let architecture = match config.architecture {
        Architecture::Llama => "llama",
        Architecture::Qwen2 => "qwen2",
    };
    // ggml's numbers for what most weights are: MXFP4, Q8_0, BF16.
    let has = |wanted: Type| tensors.values().any(|(kind, _)| *kind == wanted);
    let file_type = if has(Type::Mxfp4) {
        38
    } else if has(Type::Q8_0) {
        7
    } else {
        32
    };
    let mut pairs = vec![
        ("general.architecture".to_owned(), Value::Text(architecture.to_owned())),
        ("general.type".to_owned(), Value::Text("model".to_owned())),
        ("general.name".to_owned(), Value::Text(source.about.source.clone().unwrap_or_else(|| source.name.clone()))),
        ("general.file_type".to_owned(), Value::U32(file_type)),
        ("general.quantization_version".to_owned(), Value::U32(2)),
    ];
    let mut put = |key: &str, value: Value| pairs.push((format!("{architecture}.{key}"), value));
    let mut count = |key: &str, number: usize| put(key, Value::U32(number as u32));
    count("block_count", config.layers);
    count("context_length", config.max_position_embeddings);
    count("embedding_length", config.hidden_size);
    count("feed_forward_length", config.intermediate_size);
    count("attention.head_count", config.heads);
    count("attention.head_count_kv", config.kv_heads);
    count("attention.key_length", config.head_dim);
    count("attention.value_length", config.head_dim);
    count("rope.dimension_count", config.head_dim);
    count("vocab_size", config.vocab_size);
    put("attention.layer_norm_rms_epsilon", Value::F32(config.rms_norm_eps as f32));
    put("rope.freq_base", Value::F32(config.rope.theta as f32));
    match &config.rope.scaling {
        Scaling::Default | Scaling::Llama3 { .. } => {}
        Scaling::Linear { factor } => {
            put("rope.scaling.type", Value::Text("linear".to_owned()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
        }
        Scaling::Yarn { factor, .. } => {
            put("rope.scaling.type", Value::Text("yarn".to_owned()));
            put("rope.scaling.factor", Value::F32(*factor as f32));
            let old = config.rope.max_position_embeddings as u32;
            put("rope.scaling.original_context_length", Value::U32(old));
        }
        Scaling::Dynamic { .. } | Scaling::LongRope { .. } => {
            let reason = "its rope_scaling is one that llama.cpp has not for this model: dynamic or longrope";
            return Err(checkpoint(&source.path, reason));
        }
    }
    Ok(pairs)
}
