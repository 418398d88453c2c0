//! The native layout of quantized tensors in safetensors files: names, shapes and notes (docs/formats.md).

use std::collections::BTreeMap;

use microscale_formats::{E4M3, ElementFormat, INT8, ScaleRule, Ties, packed_len};
use microscale_tensor::BlockFormat;
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::recipe::MAX_BLOCK_SIZE;
use crate::weights_file::WeightsFile;
use crate::{Error, Recipe};

/// The version of the layout that is written, and the only one that is read.
const LAYOUT: &str = "1";
/// Keys of `__metadata__`, and how they begin.
const PREFIX: &str = "microscale.";
const KEY_LAYOUT: &str = "microscale.layout";
const KEY_VERSION: &str = "microscale.version";
const KEY_SOURCE: &str = "microscale.source";
const KEY_SOURCE_SHA256: &str = "microscale.source_sha256";
/// Of a file that was dequantized, the hash of what it was made of.
const KEY_DEQUANTIZED: &str = "microscale.dequantized_sha256";
const KEY_RECIPE: &str = "microscale.recipe";
const KEY_TENSORS: &str = "microscale.tensors";
/// Largest size of a dimension: above any real one, and products with the bits of a code cannot overflow.
const MAX_DIMENSION: usize = 1 << 40;

/// A quantized tensor `[rows, columns]` in a file: codes under its own name, scales under that with `_scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedTensor {
    /// Element format, block size and scale rule; blocks run along the columns.
    pub format: BlockFormat,
    /// Where values halfway between two codes went.
    pub ties: Ties,
    /// Rows and columns of values.
    pub shape: [usize; 2],
    /// Whether each code has a byte of its own instead of its true width.
    pub unpacked: bool,
}

impl PackedTensor {
    /// Bytes that the codes of a row take.
    pub fn code_bytes(&self) -> usize {
        if self.unpacked { self.shape[1] } else { packed_len(self.shape[1], self.format.element.bits()) }
    }

    /// Blocks, so scales, of a row.
    pub fn blocks(&self) -> usize {
        self.shape[1].div_ceil(self.format.block_size)
    }

    /// How codes are declared. Python's safetensors knows no types of 4 or 6 bits, so all but integers are plain bytes.
    pub fn code_dtype(&self) -> Dtype {
        if self.format.element == INT8 { Dtype::I8 } else { Dtype::U8 }
    }

    /// Whether the header's entries for codes and scales are those of this tensor.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn check(&self, codes: Option<&TensorInfo>, scales: Option<&TensorInfo>) -> Result<(), String> {
        let rows = self.shape[0];
        let parts =
            [("codes", codes, self.code_dtype(), self.code_bytes()), ("scales", scales, Dtype::U8, self.blocks())];
        for (what, found, dtype, width) in parts {
            let expected = format!("{dtype} [{rows}, {width}] for the {what} of {self}");
            let Some(found) = found else { return Err(format!("not there; expected {expected}")) };
            if found.dtype != dtype || found.shape != [rows, width] {
                return Err(format!("stored as {} {:?}; expected {expected}", found.dtype, found.shape));
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for PackedTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [rows, columns] = self.shape;
        write!(f, "[{rows}, {columns}] in {}, blocks of {}", self.format.element, self.format.block_size)
    }
}

/// The name of the scales of a tensor.
pub fn scale_name(tensor: &str) -> String {
    format!("{tensor}_scale")
}

/// What the notes of a file in this layout say.
#[derive(Clone, Debug, PartialEq)]
pub struct Notes {
    /// What was quantized, by name.
    pub source: String,
    /// Its hash in hexadecimal: [`Checkpoint::hash`](crate::Checkpoint::hash) of a model, the SHA-256 of a file.
    pub source_sha256: String,
    /// Version of this program that did it.
    pub version: String,
    /// The recipe of a model.
    pub recipe: Option<Recipe>,
    /// The quantized tensors of this file.
    pub tensors: BTreeMap<String, PackedTensor>,
}

/// A [`PackedTensor`] as the notes write it.
#[derive(Serialize, Deserialize)]
struct Entry {
    element: String,
    shape: [usize; 2],
    block_size: usize,
    scale_rule: String,
    /// Left out where they go to even.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ties: Option<String>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    unpacked: bool,
}

impl Notes {
    /// The notes of a file; `None` if it is not in this layout.
    ///
    /// # Errors
    /// Another version of the layout; notes that are incomplete or malformed.
    pub fn read(file: &WeightsFile) -> Result<Option<Notes>, Error> {
        let Some(notes) = file.notes() else { return Ok(None) };
        let Some(layout) = notes.get(KEY_LAYOUT) else { return Ok(None) };
        let fail = |reason: String| Error::checkpoint(file.path(), reason);
        if layout != LAYOUT {
            let reason =
                format!("{KEY_LAYOUT} is {layout:?}, this version reads \"{LAYOUT}\"; use the version that wrote it");
            return Err(fail(reason));
        }
        let text = |key: &str| {
            notes.get(key).ok_or_else(|| fail(format!("its metadata lacks {key}; quantize the original again")))
        };
        let origin = format!("{KEY_RECIPE} of {}", file.path().display());
        let recipe = notes.get(KEY_RECIPE).map(|text| Recipe::from_toml(text, &origin)).transpose()?;
        let entries: BTreeMap<String, Entry> = serde_json::from_str(text(KEY_TENSORS)?)
            .map_err(|e| fail(format!("{KEY_TENSORS} of its metadata cannot be used: {e}")))?;
        let tensors = entries.into_iter().map(|(name, entry)| match packed(&entry) {
            Ok(tensor) => Ok((name, tensor)),
            Err(reason) => Err(Error::Tensor { path: file.path().to_owned(), name, reason }),
        });
        Ok(Some(Notes {
            source: text(KEY_SOURCE)?.clone(),
            source_sha256: text(KEY_SOURCE_SHA256)?.clone(),
            version: text(KEY_VERSION)?.clone(),
            recipe,
            tensors: tensors.collect::<Result<_, _>>()?,
        }))
    }

    /// The notes of a file by itself, its header agreeing with them.
    ///
    /// # Errors
    /// As [`read`](Self::read); a tensor that is not stored as described.
    pub(crate) fn read_checked(file: &WeightsFile) -> Result<Option<Notes>, Error> {
        let notes = Notes::read(file)?;
        for (name, tensor) in notes.iter().flat_map(|notes| &notes.tensors) {
            let fail = |reason| Error::Tensor { path: file.path().to_owned(), name: name.clone(), reason };
            tensor.check(file.info(name), file.info(&scale_name(name))).map_err(fail)?;
        }
        Ok(notes)
    }

    /// The notes of a file that holds those of the tensors that `here` says.
    pub fn write(&self, here: impl Fn(&str) -> bool) -> Map<String, Value> {
        let tensors = self.tensors.iter().filter(|(name, _)| here(name));
        let tensors: Map<String, Value> = tensors.map(|(name, tensor)| (name.clone(), entry(tensor))).collect();
        let mut notes = Map::new();
        let mut note = |key: &str, text: String| notes.insert(key.to_owned(), Value::String(text));
        note(KEY_LAYOUT, LAYOUT.to_owned());
        note(KEY_VERSION, self.version.clone());
        note(KEY_SOURCE, self.source.clone());
        note(KEY_SOURCE_SHA256, self.source_sha256.clone());
        if let Some(recipe) = &self.recipe {
            note(KEY_RECIPE, recipe.to_toml());
        }
        note(KEY_TENSORS, Value::Object(tensors).to_string());
        notes
    }
}

/// The notes of a file that was quantized and no longer is.
pub(crate) fn dequantized(source_sha256: &str) -> Map<String, Value> {
    let notes = [(KEY_VERSION, env!("CARGO_PKG_VERSION")), (KEY_DEQUANTIZED, source_sha256)];
    notes.into_iter().map(|(key, text)| (key.to_owned(), json!(text))).collect()
}

/// The hash of what a file of this program was made of, quantized or dequantized.
pub(crate) fn source_sha256(file: &WeightsFile) -> Option<&str> {
    let notes = file.notes()?;
    notes.get(KEY_SOURCE_SHA256).or_else(|| notes.get(KEY_DEQUANTIZED)).map(String::as_str)
}

/// What a file's metadata says that is not this layout's.
pub fn foreign_notes(file: &WeightsFile) -> BTreeMap<String, String> {
    let all = file.notes().into_iter().flatten();
    all.filter(|(key, _)| !key.starts_with(PREFIX)).map(|(key, text)| (key.clone(), text.clone())).collect()
}

fn entry(tensor: &PackedTensor) -> Value {
    json!(Entry {
        element: tensor.format.element.name().to_owned(),
        shape: tensor.shape,
        block_size: tensor.format.block_size,
        scale_rule: tensor.format.scale_rule.name().to_owned(),
        ties: (tensor.ties != Ties::Even).then(|| tensor.ties.name().to_owned()),
        unpacked: tensor.unpacked,
    })
}

/// The tensor an entry describes, or what is wrong with it.
fn packed(entry: &Entry) -> Result<PackedTensor, String> {
    let Entry { element, shape, block_size, scale_rule, ties, unpacked } = entry;
    let unknown = |what: &str, name: &str| format!("described with the unknown {what} {name:?}");
    let element = ElementFormat::from_name(element).ok_or_else(|| unknown("element", element))?;
    let scale_rule = ScaleRule::from_name(scale_rule).ok_or_else(|| unknown("scale rule", scale_rule))?;
    let ties = ties.as_deref().unwrap_or(Ties::Even.name());
    let ties = Ties::from_name(ties).ok_or_else(|| unknown("ties", ties))?;
    if !(1..=MAX_BLOCK_SIZE).contains(block_size) {
        return Err(format!("described with blocks of {block_size}; expected 1 to {MAX_BLOCK_SIZE}"));
    }
    if shape.iter().any(|n| !(1..=MAX_DIMENSION).contains(n)) {
        return Err(format!("described with the shape {shape:?}"));
    }
    let format = BlockFormat { element, block_size: *block_size, scale_rule: scale_rule.for_format(element) };
    Ok(PackedTensor { format, ties, shape: *shape, unpacked: *unpacked })
}

/// Which codes of an element format quantization never gives: infinities, NaN, and the unused integer −128.
pub(crate) fn unused_codes(element: ElementFormat) -> Option<[bool; 256]> {
    let unused = |code: usize| {
        let value = element.decode(code as u8);
        !value.is_finite() || value.abs() > element.max()
    };
    (element.bits() == E4M3.bits()).then(|| std::array::from_fn(unused))
}

#[cfg(test)]
mod tests {
    use super::*;
    use microscale_formats::E5M2;

    #[test]
    fn codes_that_never_arise() {
        let count = |element| unused_codes(element).map(|table| table.iter().filter(|&&unused| unused).count());
        assert_eq!(ElementFormat::ALL.map(count), [Some(8), Some(2), None, None, None, Some(1)]);
        assert!(unused_codes(E5M2).unwrap()[0xFC] && unused_codes(INT8).unwrap()[0x80]);
    }
}
