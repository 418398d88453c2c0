//! The tensors of a model or a file as values, whatever they are stored as.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use microscale_tensor::RowDequantizer;

use crate::checkpoint::{EMBEDDING, Entry, HEAD};
use crate::native::{Notes, PackedTensor, scale_name};
use crate::weights_file::WeightsFile;
use crate::{Checkpoint, Error, convert};

/// A model or a safetensors file to be looked at, plain or quantized.
pub struct Contents<'a> {
    holder: Holder<'a>,
    packed: BTreeMap<String, PackedTensor>,
}

enum Holder<'a> {
    Model(&'a Checkpoint),
    File([WeightsFile; 1], BTreeMap<String, Entry>),
}

impl<'a> Contents<'a> {
    /// Those of a model.
    pub fn of_model(checkpoint: &'a Checkpoint) -> Contents<'a> {
        let packed = checkpoint.entries().keys();
        let packed = packed.filter_map(|name| Some((name.clone(), checkpoint.packed(name)?.clone()))).collect();
        Contents { holder: Holder::Model(checkpoint), packed }
    }

    /// Those of a safetensors file. It must not be changed while it is open.
    ///
    /// # Errors
    /// A file that cannot be read, or whose metadata describes other tensors than it holds.
    pub fn of_file(path: &Path) -> Result<Contents<'static>, Error> {
        let file = WeightsFile::open(path.to_owned())?;
        let packed = Notes::read_checked(&file)?.map(|notes| notes.tensors).unwrap_or_default();
        let entries = file.infos().map(|(name, info)| (name, Entry { file: 0, info })).collect();
        Ok(Contents { holder: Holder::File([file], entries), packed })
    }

    fn files(&self) -> &[WeightsFile] {
        match &self.holder {
            Holder::Model(checkpoint) => checkpoint.files(),
            Holder::File(file, _) => file,
        }
    }

    fn entries(&self) -> &BTreeMap<String, Entry> {
        match &self.holder {
            Holder::Model(checkpoint) => checkpoint.entries(),
            Holder::File(_, entries) => entries,
        }
    }

    /// Names of all tensors; the scales of a quantized one are part of it.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let is_scale = |name: &str| name.strip_suffix("_scale").is_some_and(|name| self.packed.contains_key(name));
        self.entries().keys().map(String::as_str).filter(move |name| !is_scale(name))
    }

    /// The tensor of this name; the head of a tied model is its embedding.
    pub(super) fn tensor(&self, name: &str) -> Option<Stored<'_>> {
        let tied = matches!(&self.holder, Holder::Model(checkpoint) if checkpoint.config().tie_word_embeddings);
        let entries = self.entries();
        let name = if tied && name == HEAD && !self.packed.contains_key(HEAD) { EMBEDDING } else { name };
        let packed = self.packed.get(name);
        let scales = packed.and_then(|_| entries.get(&scale_name(name)));
        Some(Stored { files: self.files(), entry: entries.get(name)?, quantized: packed.zip(scales) })
    }
}

/// A tensor in its file.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    files: &'a [WeightsFile],
    entry: &'a Entry,
    quantized: Option<(&'a PackedTensor, &'a Entry)>,
}

impl<'a> Stored<'a> {
    /// Sizes of the values.
    pub(super) fn shape(&self) -> &'a [usize] {
        self.quantized.map_or(&self.entry.info.shape, |(packed, _)| &packed.shape)
    }

    /// How it is quantized.
    pub(super) fn packed(&self) -> Option<&'a PackedTensor> {
        self.quantized.map(|(packed, _)| packed)
    }

    /// What the values are stored as.
    pub(super) fn kind(&self) -> String {
        self.packed().map_or_else(|| self.entry.info.dtype.to_string(), |packed| packed.format.element.to_string())
    }

    /// Whether it holds numbers that [`values`](Self::values) reads.
    pub(super) fn is_float(&self) -> bool {
        self.quantized.is_some() || convert::READABLE.contains(&self.entry.info.dtype)
    }

    /// An error about it.
    pub(super) fn error(&self, name: &str, reason: &str) -> Error {
        let path = self.files[self.entry.file].path().to_owned();
        Error::Tensor { path, name: name.to_owned(), reason: reason.to_owned() }
    }

    /// How many bytes it takes; of a quantized one, its codes.
    pub(super) fn length(&self) -> usize {
        self.entry.info.data_offsets.1 - self.entry.info.data_offsets.0
    }

    /// Some of those bytes.
    pub(super) fn bytes(&self, range: &Range<usize>) -> &'a [u8] {
        let file = &self.files[self.entry.file];
        file.file().stretch(file.offset(&self.entry.info) + range.start, range.len())
    }

    /// Gives the memory of [`bytes`](Self::bytes) back.
    pub(super) fn release_bytes(&self, range: &Range<usize>) {
        let file = &self.files[self.entry.file];
        file.release_range(file.offset(&self.entry.info) + range.start, range.len());
    }

    /// Codes and scales of these rows as they are stored, if it is quantized.
    pub(super) fn codes(&self, rows: &Range<usize>) -> Option<[&'a [u8]; 2]> {
        let (packed, scales) = self.quantized?;
        let rows = |entry: &Entry, width| {
            let file = &self.files[entry.file];
            file.file().stretch(file.offset(&entry.info) + rows.start * width, rows.len() * width)
        };
        Some([rows(self.entry, packed.code_bytes()), rows(scales, packed.blocks())])
    }

    /// Values of these rows of `columns` each.
    pub(super) fn values(&self, rows: &Range<usize>, columns: usize) -> Result<Vec<f32>, Error> {
        let file = &self.files[self.entry.file];
        let mut values = vec![0.0; rows.len() * columns];
        if let (Some((packed, _)), Some([codes, scales])) = (self.quantized, self.codes(rows)) {
            let fail = |e: microscale_tensor::Error| Error::checkpoint(file.path(), e.to_string());
            let mut dequantizer = RowDequantizer::new(columns, packed.format).map_err(fail)?;
            let rows = codes.chunks_exact(packed.code_bytes()).zip(scales.chunks_exact(packed.blocks()));
            for ((codes, scales), to) in rows.zip(values.chunks_exact_mut(columns)) {
                to.copy_from_slice(match packed.unpacked {
                    true => dequantizer.decode_bytes(codes, scales),
                    false => dequantizer.decode(codes, scales),
                });
            }
        } else {
            let width = columns * self.entry.info.dtype.bitsize() / 8;
            let offset = file.offset(&self.entry.info) + rows.start * width;
            convert::widen(file.file().stretch(offset, rows.len() * width), self.entry.info.dtype, &mut values);
        }
        Ok(values)
    }

    /// Gives the memory of these rows back, as far as it is not shared with others.
    pub(super) fn release_rows(&self, rows: &Range<usize>, columns: usize) {
        let release = |entry: &Entry, width: usize| {
            let file = &self.files[entry.file];
            file.release_range(file.offset(&entry.info) + rows.start * width, rows.len() * width);
        };
        match self.quantized {
            Some((packed, scales)) => {
                release(self.entry, packed.code_bytes());
                release(scales, packed.blocks());
            }
            None => release(self.entry, columns * self.entry.info.dtype.bitsize() / 8),
        }
    }
}
