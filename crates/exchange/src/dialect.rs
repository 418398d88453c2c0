//! What the kinds have in common that are folders of safetensors files: names of codes and scales, and keys of
//! `config.json`.

use microscale_formats::{BLOCK, ElementFormat};
use microscale_model::transfer::Output;
use microscale_model::{Dtype, Error, Folder};
use serde_json::{Map, Value};

use crate::repack::Packing;
use crate::source::{Pair, Source, Tensor, pair};
use crate::{Kind, compressed_tensors, gpt_oss, mlx, modelopt, native, quark, torchao};

/// The keys of `config.json` that such kinds put there.
pub(crate) const CONFIG_KEYS: [&str; 2] = ["quantization_config", "quantization"];

/// How a quantized tensor is to be stored.
pub(crate) struct Target {
    pub(crate) codes: Output,
    pub(crate) scales: Output,
    pub(crate) packing: Packing,
}

/// A kind that is a folder.
pub(crate) trait Dialect: Sync {
    /// The quantized tensors of a folder of this kind, with the names of all tensors they are made of.
    ///
    /// # Errors
    /// Codes and scales that do not fit, or mean what is not known here.
    fn read(&self, folder: &Folder, config: &Map<String, Value>) -> Result<(Vec<Tensor>, Vec<String>), Error>;

    /// How a quantized tensor is stored.
    ///
    /// # Errors
    /// Why it cannot be.
    fn store(&self, tensor: &Tensor, element: ElementFormat) -> Result<Target, String>;

    /// What `config.json` says of the quantized tensors, beside what it said before.
    fn configure(&self, _source: &Source, _config: &mut Map<String, Value>) {}

    /// The format of the linear layers' inputs that `config.json` names, if it is one of ours.
    fn inputs(&self, _config: &Map<String, Value>) -> Option<ElementFormat> {
        None
    }

    /// Files beside that only this kind has.
    fn companions(&self, _source: &Source) -> Vec<(String, Vec<u8>)> {
        Vec::new()
    }

    /// Whether a block's scale may be NaN (255).
    fn nan_scales(&self) -> bool {
        false
    }
}

/// The dialect of a kind that is a folder.
pub(crate) fn of(kind: Kind) -> Option<&'static dyn Dialect> {
    Some(match kind {
        Kind::Native => &native::Native,
        Kind::CompressedTensors => &compressed_tensors::CompressedTensors,
        Kind::Quark => &quark::Quark,
        Kind::ModelOpt => &modelopt::ModelOpt,
        Kind::Mlx => &mlx::Mlx,
        Kind::GptOss => &gpt_oss::GptOss,
        Kind::TorchAo => &torchao::TorchAo,
        Kind::Gguf => return None,
    })
}

/// A tensor in blocks of 32 that fill its rows, as every kind but the native one wants it; and of an element format
/// that the kind has.
///
/// # Errors
/// Which of these it is not.
pub(crate) fn check_blocks(tensor: &Tensor, kind: Kind, elements: &[ElementFormat]) -> Result<ElementFormat, String> {
    let format = tensor.format().ok_or("is not quantized")?;
    let (columns, kind) = (tensor.columns(), kind.name());
    if format.block_size != BLOCK {
        return Err(format!("is in blocks of {}; {kind} has blocks of {BLOCK} alone", format.block_size));
    }
    if columns % BLOCK != 0 {
        return Err(format!("has rows of {columns} values; {kind} needs a multiple of {BLOCK}"));
    }
    if !elements.contains(&format.element) {
        let known: Vec<&str> = elements.iter().map(|element| element.name()).collect();
        return Err(format!("is in {}; {kind} has {}", format.element, known.join(", ")));
    }
    Ok(format.element)
}

/// The outputs for codes of `width` elements of `dtype` per row and a byte of scale per block.
pub(crate) fn target(tensor: &Tensor, names: [String; 2], dtype: Dtype, packing: Packing) -> Result<Target, String> {
    let format = tensor.format().ok_or("is not quantized")?;
    let (_, leading) = tensor.shape.split_last().ok_or("has no dimension")?;
    let width = packing.row_bytes(format.element, tensor.columns()) * 8 / dtype.bitsize();
    let [codes, scales] = names;
    let shape = |last: usize| [leading, &[last]].concat();
    let blocks = tensor.columns().div_ceil(format.block_size);
    Ok(Target {
        codes: Output { name: codes, dtype, shape: shape(width) },
        scales: Output { name: scales, dtype: Dtype::U8, shape: shape(blocks) },
        packing,
    })
}

/// The names of all tensors that end in one of two ways: the first part, and the whole.
pub(crate) fn ending<'a>(folder: &'a Folder, suffix: &str) -> Vec<(&'a str, &'a str)> {
    let names = folder.tensors.keys();
    names.filter_map(|name| Some((name.strip_suffix(suffix)?, name.as_str()))).collect()
}

/// The quantized tensors whose scales are `M.weight_scale`, as [`Dialect::read`] answers: their codes are a stream of bits
/// named `M.weight`, or `M.weight_packed` where that is there. `element` tells the element format of a module's codes with
/// so many bits, stored as the given type.
pub(crate) fn weights_with_scales(
    folder: &Folder,
    element: impl Fn(&str, usize, Dtype) -> Option<ElementFormat>,
) -> Result<(Vec<Tensor>, Vec<String>), Error> {
    let (mut tensors, mut parts) = (Vec::new(), Vec::new());
    for (module, scales) in ending(folder, ".weight_scale") {
        let (name, packed) = (format!("{module}.weight"), format!("{module}.weight_packed"));
        let codes = if folder.tensors.contains_key(&packed) { packed } else { name.clone() };
        let names = Pair { name, codes: &codes, scales, row_dims: 1 };
        tensors.push(pair(folder, names, |bits, dtype| Some((element(module, bits, dtype)?, Packing::Stream)))?);
        parts.extend([codes, scales.to_owned()]);
    }
    Ok((tensors, parts))
}

/// The modules of a model that a reader would take for linear maps, and that are not quantized.
pub(crate) fn plain_linears(source: &Source) -> Vec<String> {
    let linear = |tensor: &&Tensor| {
        let module = tensor.module();
        let plain = tensor.format().is_none() && tensor.name.ends_with(".weight") && tensor.shape.len() == 2;
        plain && (module.ends_with("_proj") || module == "lm_head")
    };
    let mut modules: Vec<String> = source.tensors.iter().filter(linear).map(|t| t.module().to_owned()).collect();
    // A tied head has no tensor but is a module to those who read the file.
    if !source.tensors.iter().any(|tensor| tensor.name == "lm_head.weight") {
        modules.push("lm_head".to_owned());
    }
    modules
}

/// The element formats of the quantized tensors, each once, in the order of their first tensor.
pub(crate) fn elements(source: &Source) -> Vec<ElementFormat> {
    let mut elements = Vec::new();
    for (_, format) in source.packed() {
        if !elements.contains(&format.element) {
            elements.push(format.element);
        }
    }
    elements
}
