//! Checkpoints whose weights are stored quantized, in the native layout.

use std::collections::BTreeMap;

use microscale_formats::E8M0;
use microscale_tensor::{BlockFormat, MxTensor, WeightMatrix};
use rayon::prelude::*;

use super::{Checkpoint, Entry};
use crate::native::{self, Notes, PackedTensor, scale_name};
use crate::weights::block_format;
use crate::weights_file::WeightsFile;
use crate::{Error, Recipe, Role};

/// Bytes looked at by one task.
const CHUNK: usize = 1 << 20;

/// How a checkpoint's weights were quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Quantization {
    /// The recipe: the formats of the weights as stored, and those of the other roles that were meant with them.
    pub recipe: Recipe,
    /// The name of the model that was quantized.
    pub source: String,
    /// Its [hash](Checkpoint::hash).
    pub source_sha256: String,
    /// The version of this library that did it.
    pub version: String,
}

/// What the files of a quantized checkpoint say together.
pub(super) struct Quantized {
    pub(super) about: Quantization,
    pub(super) tensors: BTreeMap<String, PackedTensor>,
}

/// Reads the notes of all files, which must agree; `None` if the checkpoint is not quantized.
pub(super) fn collect(files: &[WeightsFile], entries: &BTreeMap<String, Entry>) -> Result<Option<Quantized>, Error> {
    let notes = files.iter().map(Notes::read).collect::<Result<Vec<_>, _>>()?;
    let Some(first) = notes.iter().flatten().next() else { return Ok(None) };
    let key = |n: &Notes| (n.source_sha256.clone(), n.version.clone(), n.recipe.clone());
    let mut tensors = BTreeMap::new();
    for (index, (file, own)) in files.iter().zip(&notes).enumerate() {
        let Some(own) = own.as_ref().filter(|own| key(own) == key(first)) else {
            let reason =
                "quantized otherwise than the files beside it, by what its metadata says; fetch all files again";
            return Err(Error::checkpoint(file.path(), reason));
        };
        for (name, tensor) in &own.tensors {
            let fail = |reason| Error::Tensor { path: file.path().to_owned(), name: name.clone(), reason };
            if entries.get(name).is_some_and(|entry| entry.file != index) {
                return Err(fail("described here, but stored in another file; fetch all files again".to_owned()));
            }
            let info = |name: &str| entries.get(name).map(|entry| &entry.info);
            tensor.check(info(name), info(&scale_name(name))).map_err(fail)?;
            tensors.insert(name.clone(), tensor.clone());
        }
    }
    let Some(recipe) = first.recipe.clone() else {
        let reason = "its metadata names no recipe: single tensors were quantized, not a model; dequantize it first";
        return Err(Error::checkpoint(files[0].path(), reason));
    };
    let (source, source_sha256) = (first.source.clone(), first.source_sha256.clone());
    let about = Quantization { recipe, source, source_sha256, version: first.version.clone() };
    Ok(Some(Quantized { about, tensors }))
}

/// Bytes that have the property.
fn count(bytes: &[u8], property: impl Fn(u8) -> bool + Sync) -> usize {
    bytes.par_chunks(CHUNK).map(|chunk| chunk.iter().filter(|&&byte| property(byte)).count()).sum()
}

impl Checkpoint {
    /// How the weights were quantized, if they are stored that way.
    pub fn quantization(&self) -> Option<&Quantization> {
        self.quantized.as_ref().map(|quantized| &quantized.about)
    }

    /// The quantized tensor of this name, if it is stored as one; its values are in [`weight`].
    ///
    /// [`weight`]: crate::TensorSource::weight
    pub fn packed(&self, name: &str) -> Option<&PackedTensor> {
        self.quantized.as_ref()?.tensors.get(name)
    }

    /// Whether the weights can be had in the formats of `recipe`: always if they are stored as bf16, f16 or f32, else
    /// in their own alone. Formats of activations and attention do not matter.
    ///
    /// # Errors
    /// A weight format, block size or scale rule other than the stored one.
    pub fn check_recipe(&self, recipe: &Recipe) -> Result<(), Error> {
        let Some(stored) = self.quantization().map(|quantization| &quantization.recipe) else { return Ok(()) };
        let weights = [Role::ProjectionWeight, Role::MlpWeight, Role::HeadWeight];
        let formats = weights.map(|role| (role, block_format(stored, role), block_format(recipe, role)));
        let Some((role, held, asked)) = formats.into_iter().find(|(_, held, asked)| held != asked) else {
            return Ok(());
        };
        let say = |format: Option<BlockFormat>| match format {
            None => "bf16".to_owned(),
            Some(BlockFormat { element, block_size, scale_rule }) => {
                format!("{element} (blocks of {block_size}, scale rule {})", scale_rule.name())
            }
        };
        let reason = format!(
            "{} holds {} in {}, recipe {} asks for {}; choose a recipe whose weights are those of {}, or quantize the \
             original anew",
            self.name,
            role.key(),
            say(held),
            recipe.name,
            say(asked),
            stored.name
        );
        Err(Error::Recipe { reason })
    }

    /// Whether a stored tensor is what the recipe of a quantized checkpoint has in `role`: described, of its format
    /// and this shape, or not quantized at all.
    pub(super) fn check_packed(&self, name: &str, shape: &[usize], role: Option<Role>) -> Result<bool, Error> {
        let Some(quantized) = &self.quantized else { return Ok(false) };
        let expected = role.and_then(|role| block_format(&quantized.about.recipe, role));
        let found = quantized.tensors.get(name);
        let reason = match (found, expected) {
            (None, None) => return Ok(false),
            (Some(tensor), Some(format)) if tensor.format == format && tensor.shape == shape => {
                if !tensor.unpacked {
                    return Ok(true);
                }
                "stored with one code per byte, which is for exchange; quantize the original anew".to_owned()
            }
            (Some(tensor), Some(format)) => {
                format!(
                    "stored as {tensor}; expected {shape:?} in {}, blocks of {}, by config.json and recipe",
                    format.element, format.block_size
                )
            }
            (Some(tensor), None) => format!("stored as {tensor}; the recipe leaves it bf16"),
            (None, Some(format)) => format!("not quantized; expected {} by the recipe", format.element),
        };
        let path = self.tensors.get(name).map_or(&*self.origin, |entry| self.files[entry.file].path());
        Err(Error::Tensor { path: path.to_owned(), name: name.to_owned(), reason })
    }

    /// Reads the codes and scales of a quantized weight as they are.
    ///
    /// # Errors
    /// A block that is not finite, or a code that quantization never gives.
    pub(super) fn read_packed(&self, name: &str, tensor: &PackedTensor) -> Result<WeightMatrix, Error> {
        let (codes, scales) = (&self.tensors[name], &self.tensors[&scale_name(name)]);
        let bytes = |entry: &Entry| {
            let file = &self.files[entry.file];
            let bytes = file.tensor(&entry.info).to_vec();
            file.release(&entry.info);
            bytes
        };
        let fail = |reason| {
            let path = self.files[codes.file].path().to_owned();
            Err(Error::Tensor { path, name: name.to_owned(), reason })
        };
        let scales: Vec<u8> = bytes(scales);
        let not_finite = count(&scales, |scale| E8M0(scale) == E8M0::NAN);
        if not_finite > 0 {
            return fail(format!("{not_finite} of {} blocks are not finite; the model diverged", scales.len()));
        }
        let codes = bytes(codes);
        if let Some(unused) = native::unused_codes(tensor.format.element) {
            let wrong = count(&codes, |code| unused[usize::from(code)]);
            if wrong > 0 {
                return fail(format!(
                    "{wrong} of {} codes are not finite or not used; the file is damaged",
                    codes.len()
                ));
            }
        }
        let scales = scales.into_iter().map(E8M0).collect();
        match MxTensor::from_parts(tensor.format, &tensor.shape, 1, codes, scales) {
            Ok(tensor) => Ok(WeightMatrix::Mx(tensor)),
            Err(error) => fail(error.to_string()),
        }
    }
}
