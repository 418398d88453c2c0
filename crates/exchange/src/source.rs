//! A checkpoint as it is found: its tensors under their Hugging Face names, wherever and however they lie.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use microscale_formats::{BLOCK, ElementFormat, ScaleRule, Ties};
use microscale_model::transfer::Input;
use microscale_model::{Dtype, Entry, Error, Folder, MappedFile, Recipe, WeightsFile};
use microscale_tensor::BlockFormat;
use serde_json::{Map, Value};

use crate::Kind;
use crate::repack::Packing;

/// A checkpoint of any kind.
pub struct Source {
    /// What it is called.
    pub(crate) name: String,
    /// The folder or file.
    pub(crate) path: PathBuf,
    /// How it is stored; `None` if nothing in it is quantized.
    pub(crate) kind: Option<Kind>,
    /// The model's `config.json` without what only its kind puts there; empty if it has none.
    pub(crate) config: Vec<u8>,
    /// The `config.json` as it lies there, which is part of the hash of a folder.
    pub(crate) stored_config: Option<Vec<u8>>,
    pub(crate) files: Vec<MappedFile>,
    /// Sorted by name.
    pub(crate) tensors: Vec<Tensor>,
    /// The small files beside, by name.
    pub(crate) companions: Vec<(String, Vec<u8>)>,
    pub(crate) about: About,
}

/// Where a checkpoint comes from, which travels with it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct About {
    pub(crate) recipe: Option<Recipe>,
    /// The name of what was quantized.
    pub(crate) source: Option<String>,
    /// Its hash.
    pub(crate) source_sha256: Option<String>,
    /// The version that quantized it.
    pub(crate) version: Option<String>,
    /// Where values halfway between two codes went.
    pub(crate) ties: Ties,
    /// Without a recipe, the format of the linear layers' inputs.
    pub(crate) inputs: Option<ElementFormat>,
    /// What else the files' metadata says.
    pub(crate) kept: BTreeMap<String, String>,
}

/// A tensor.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    /// Sizes in values, slowest first.
    pub(crate) shape: Vec<usize>,
    pub(crate) stored: Stored,
    /// Rows of a head if rows lie in llama.cpp's order.
    pub(crate) turned: Option<usize>,
}

/// How a tensor lies in the files.
#[derive(Clone, Debug)]
pub(crate) enum Stored {
    /// Values.
    Plain { dtype: Dtype, at: Place },
    /// Codes, with scales among them or beside.
    Packed { format: BlockFormat, packing: Packing, codes: Place, scales: Option<Place> },
}

/// Where bytes are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) file: usize,
    pub(crate) offset: usize,
}

impl Place {
    pub(crate) fn of(files: &[WeightsFile], entry: &Entry) -> Place {
        Place { file: entry.file, offset: files[entry.file].offset(&entry.info) }
    }

    pub(crate) fn input(self, row_bytes: usize) -> Input {
        Input { file: self.file, offset: self.offset, row_bytes }
    }
}

impl Tensor {
    /// Rows: everything but the last size.
    pub(crate) fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, leading)| leading.iter().product())
    }

    /// Values of a row.
    pub(crate) fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// The format of a quantized one.
    pub(crate) fn format(&self) -> Option<BlockFormat> {
        match self.stored {
            Stored::Packed { format, .. } => Some(format),
            Stored::Plain { .. } => None,
        }
    }

    /// The module whose weight it is: its name without `.weight`.
    pub(crate) fn module(&self) -> &str {
        self.name.strip_suffix(".weight").unwrap_or(&self.name)
    }
}

impl Source {
    /// How it is stored; `None` if nothing in it is quantized.
    pub fn kind(&self) -> Option<Kind> {
        self.kind
    }

    /// The quantized tensors.
    pub(crate) fn packed(&self) -> impl Iterator<Item = (&Tensor, BlockFormat)> {
        self.tensors.iter().filter_map(|tensor| Some((tensor, tensor.format()?)))
    }

    /// The error for one of its tensors.
    pub(crate) fn refuse(&self, tensor: &str, reason: impl Into<String>) -> Error {
        Error::Tensor { path: self.path.clone(), name: tensor.to_owned(), reason: reason.into() }
    }
}

/// What a pair of tensors, codes and scales, makes: found by a kind's names, checked here.
pub(crate) struct Pair<'a> {
    /// The Hugging Face name of the tensor.
    pub(crate) name: String,
    pub(crate) codes: &'a str,
    pub(crate) scales: &'a str,
    /// The sizes of the codes that make a row: 1, or 2 where blocks have a size of their own.
    pub(crate) row_dims: usize,
}

/// The quantized tensor that a pair is. `element` tells the element format of codes with so many bits, stored as the
/// given type; `None` is one that is not known here.
pub(crate) fn pair(
    folder: &Folder,
    pair: Pair<'_>,
    element: impl Fn(usize, Dtype) -> Option<(ElementFormat, Packing)>,
) -> Result<Tensor, Error> {
    let fail = |reason: String| Error::Tensor { path: folder.path.clone(), name: pair.name.clone(), reason };
    let entry = |name: &str| {
        folder.tensors.get(name).ok_or_else(|| fail(format!("has no {name} beside it; fetch the files again")))
    };
    let (codes, scales) = (entry(pair.codes)?, entry(pair.scales)?);
    let shapes = || {
        let of = |entry: &Entry| format!("{} {:?}", entry.info.dtype, entry.info.shape);
        format!("has codes stored as {} and scales as {}", of(codes), of(scales))
    };
    let misfit = || fail(format!("{}, which do not fit; expected a scale for every {BLOCK} values", shapes()));
    if !matches!(scales.info.dtype, Dtype::U8 | Dtype::F8_E8M0) {
        return Err(misfit());
    }
    let (Some((&blocks, leading)), Some(rank)) =
        (scales.info.shape.split_last(), codes.info.shape.len().checked_sub(pair.row_dims))
    else {
        return Err(misfit());
    };
    let rows: usize = leading.iter().product();
    let bytes = codes.info.data_offsets.1 - codes.info.data_offsets.0;
    if leading.is_empty() || codes.info.shape[..rank] != *leading || rows == 0 || blocks == 0 {
        return Err(misfit());
    }
    let (columns, row_bytes) = (blocks * BLOCK, bytes / rows);
    let bits = row_bytes * 8 / columns;
    let known = (bits * columns == row_bytes * 8).then(|| element(bits, codes.info.dtype)).flatten();
    let Some((element, packing)) = known else {
        return Err(fail(format!("{}: {bits} bits per value in a format that is none of MX here", shapes())));
    };
    let format = BlockFormat { element, block_size: BLOCK, scale_rule: ScaleRule::default() };
    Ok(Tensor {
        name: pair.name,
        shape: [leading, &[columns]].concat(),
        stored: Stored::Packed {
            format,
            packing,
            codes: Place::of(&folder.files, codes),
            scales: Some(Place::of(&folder.files, scales)),
        },
        turned: None,
    })
}

/// The tensors of a folder: those that a kind found quantized, and all others as they are.
pub(crate) fn with_plain(folder: &Folder, packed: Vec<Tensor>, parts: &[String]) -> Vec<Tensor> {
    let taken: std::collections::BTreeSet<&str> = parts.iter().map(String::as_str).collect();
    let rest = folder.tensors.iter().filter(|(name, _)| !taken.contains(name.as_str()));
    let plain = rest.map(|(name, entry)| Tensor {
        name: name.clone(),
        shape: entry.info.shape.clone(),
        stored: Stored::Plain { dtype: entry.info.dtype, at: Place::of(&folder.files, entry) },
        turned: None,
    });
    let mut tensors: Vec<Tensor> = packed.into_iter().chain(plain).collect();
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}

/// A `config.json` as an object.
pub(crate) fn object(bytes: &[u8], path: &Path) -> Result<Map<String, Value>, Error> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(checkpoint(path, "its config.json holds no JSON object; fetch it again")),
        Err(error) => Err(checkpoint(path, format!("its config.json is not valid JSON ({error}); fetch it again"))),
    }
}

/// A folder or file that cannot be used.
pub(crate) fn checkpoint(path: &Path, reason: impl Into<String>) -> Error {
    Error::Checkpoint { path: path.to_owned(), reason: reason.into() }
}
