//! A Hugging Face checkpoint: `config.json`, one or several safetensors files, and the tokenizer's files.
//!
//! Opening reads headers only; the files are mapped, and a tensor's bytes are read when it is.

mod companions;
mod expected;
mod quantized;
pub(crate) mod shards;
mod special;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use half::bf16;
use microscale_tensor::{BlockFormat, Matrix, WeightMatrix};
use rayon::prelude::*;
use safetensors::Dtype;
use sha2::{Digest, Sha256};

use crate::weights_file::WeightsFile;
use crate::{Config, Error, Recipe, TensorSource, Tokenizer, convert};
pub use companions::is_companion;
pub(crate) use companions::read as read_companions;
use expected::Expected;
pub(crate) use expected::{EMBEDDING, HEAD};
pub use quantized::Quantization;
use quantized::Quantized;

/// A SHA-256.
pub(crate) type Sha256Digest = [u8; 32];

/// A checkpoint, opened and checked against its configuration.
pub struct Checkpoint {
    name: String,
    /// The directory, or the label of a checkpoint in memory.
    origin: PathBuf,
    config: Config,
    config_bytes: Vec<u8>,
    files: Vec<WeightsFile>,
    tensors: BTreeMap<String, Entry>,
    /// Of a checkpoint whose weights are stored quantized.
    quantized: Option<Quantized>,
    /// The bytes of `tokenizer.json` for a checkpoint in memory.
    tokenizer: Option<&'static [u8]>,
    hash: OnceLock<String>,
}

/// Where a tensor is.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Index into the checkpoint's files.
    pub file: usize,
    /// What its header says: type, shape, place.
    pub info: safetensors::tensor::TensorInfo,
}

/// What a file's header says of a tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorInfo {
    /// Element type as stored; displays as `BF16`, `F32`, `F8_E4M3`, ….
    pub dtype: Dtype,
    /// Sizes, slowest first.
    pub shape: Vec<usize>,
    /// Bytes it takes in the file.
    pub bytes: usize,
    /// The file that holds it.
    pub file: PathBuf,
}

impl Checkpoint {
    /// Opens a directory with `config.json` and `model.safetensors`, or `model.safetensors.index.json` and its
    /// shards, and [validates](Self::validate) it. The files must not be changed while the checkpoint is open.
    ///
    /// # Errors
    /// A path that is no such directory; a configuration that is not supported; a file that is missing, truncated or
    /// corrupt; a tensor that is missing or of the wrong shape or type.
    pub fn open(directory: &Path) -> Result<Checkpoint, Error> {
        let config_path = directory.join("config.json");
        if !config_path.is_file() {
            return Err(Error::checkpoint(directory, no_config(directory)));
        }
        let config_bytes = std::fs::read(&config_path).map_err(Error::io(&config_path))?;
        let config = Config::from_json(&config_bytes, &config_path)?;
        let (files, tensors) = shards::open(directory)?;
        let name = match directory.file_name() {
            Some(name) => Some(name.to_owned()),
            None => directory.canonicalize().ok().and_then(|d| d.file_name().map(ToOwned::to_owned)), // "." or ".."
        };
        let checkpoint = Checkpoint {
            name: name.map_or_else(|| directory.display().to_string(), |n| n.to_string_lossy().into_owned()),
            origin: directory.to_owned(),
            config,
            config_bytes,
            quantized: quantized::collect(&files, &tensors)?,
            files,
            tensors,
            tokenizer: None,
            hash: OnceLock::new(),
        };
        checkpoint.validate()?;
        Ok(checkpoint)
    }

    /// A checkpoint whose three files are part of the program; `origin` names it.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_memory(
        origin: &str,
        config: &'static [u8],
        weights: &'static [u8],
        tokenizer: &'static [u8],
    ) -> Result<Checkpoint, Error> {
        let origin_path = PathBuf::from(origin);
        let file = WeightsFile::in_memory(origin_path.join("model.safetensors"), weights)?;
        let (files, tensors) = shards::single(file);
        let checkpoint = Checkpoint {
            name: origin.to_owned(),
            config: Config::from_json(config, &origin_path.join("config.json"))?,
            config_bytes: config.to_vec(),
            origin: origin_path,
            quantized: quantized::collect(&files, &tensors)?,
            files,
            tensors,
            tokenizer: Some(tokenizer),
            hash: OnceLock::new(),
        };
        checkpoint.validate()?;
        Ok(checkpoint)
    }

    /// The checked configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The same checkpoint under another name: a hub id, say, instead of the folder it was downloaded to.
    pub fn with_name(self, name: impl Into<String>) -> Checkpoint {
        Checkpoint { name: name.into(), ..self }
    }

    /// The directory's name, the origin given for a checkpoint in memory, or the name it was given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Reads the tokenizer: `tokenizer.json`, with the special tokens of `tokenizer_config.json` or `config.json`.
    ///
    /// # Errors
    /// No `tokenizer.json`, or one that cannot be used.
    pub fn tokenizer(&self) -> Result<Tokenizer, Error> {
        match self.tokenizer {
            Some(bytes) => {
                let tokenizer = Tokenizer::from_bytes(bytes, &self.origin.join("tokenizer.json"))?;
                Ok(tokenizer.with_special_ids(self.config.bos, self.config.eos.first().copied()))
            }
            None => special::read_tokenizer(&self.origin, &self.config),
        }
    }

    /// The tokens that end a text: `eos_token_id` of `generation_config.json`, else of `config.json`, else the
    /// tokenizer's own. Empty where none of them names any.
    ///
    /// # Errors
    /// A `generation_config.json` that cannot be used, or no usable tokenizer where it is needed.
    pub fn end_tokens(&self) -> Result<Vec<u32>, Error> {
        // A checkpoint in memory has no such file.
        if self.tokenizer.is_none()
            && let Some(ids) = special::end_tokens(&self.origin, &self.config)?
        {
            return Ok(ids);
        }
        match self.config.eos.as_slice() {
            [] => Ok(self.tokenizer()?.eos().into_iter().collect()),
            ids => Ok(ids.to_vec()),
        }
    }

    /// Every tensor of the files, sorted by name, those the model does not use too.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, TensorInfo)> {
        self.tensors.iter().map(|(name, entry)| {
            let (start, end) = entry.info.data_offsets;
            let info = TensorInfo {
                dtype: entry.info.dtype,
                shape: entry.info.shape.clone(),
                bytes: end - start,
                file: self.files[entry.file].path().to_owned(),
            };
            (name.as_str(), info)
        })
    }

    /// Whether the files hold a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Reads a whole tensor of this shape, rounded to bf16 (nearest, ties to even) from f32, f16 or bf16, in
    /// row-major order.
    ///
    /// # Errors
    /// No such tensor; another shape or type; a value that is not finite, or no longer is as bf16.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Error> {
        let entry = self.checked(name, shape)?;
        let file = &self.files[entry.file];
        let (values, not_finite) = convert::to_bf16(file.tensor(&entry.info), entry.info.dtype);
        file.release(&entry.info);
        if not_finite > 0 {
            let reason = format!(
                "{not_finite} of {} values are not finite as bf16; the file is damaged or the model diverged",
                values.len()
            );
            return Err(Error::Tensor { path: file.path().to_owned(), name: name.to_owned(), reason });
        }
        Ok(values)
    }

    /// Checks by the headers that every tensor the configuration calls for exists with the right shape and a type
    /// that can be read. Other tensors do not matter, save biases that the configuration denies. `open` calls this.
    ///
    /// # Errors
    /// The first tensor that does not fit.
    pub fn validate(&self) -> Result<(), Error> {
        self.expected().try_for_each(|tensor| {
            if self.check_packed(&tensor.name, &tensor.shape, tensor.role)? {
                return Ok(());
            }
            self.checked(&tensor.name, &tensor.shape).map(|_| ())
        })?;
        match expected::denied(&self.config).find(|name| self.contains(name)) {
            None => Ok(()),
            Some(name) => {
                let reason = "config.json calls for no such bias (attention_bias, mlp_bias), so it would be left out; \
                              correct one or the other";
                let path = self.files[self.tensors[&name].file].path().to_owned();
                Err(Error::Tensor { path, name, reason: reason.to_owned() })
            }
        }
    }

    /// The model hash: SHA-256, in hexadecimal, over the SHA-256 of `config.json` and of every weight file in order of
    /// its name. Computed on first use; that reads every byte of the model once, which takes minutes for a large one.
    pub fn hash(&self) -> String {
        let compute = || {
            let digest = |file: &WeightsFile| -> Sha256Digest {
                let mut digest = Sha256::new();
                file.stretches(|stretch| digest.update(stretch));
                digest.finalize().into()
            };
            let digests: Vec<_> = self.files.par_iter().map(digest).collect();
            hash_of(&self.config_bytes, &digests)
        };
        self.hash.get_or_init(compute).clone()
    }

    /// The tensors that the model is made of.
    pub(crate) fn expected(&self) -> impl Iterator<Item = Expected> {
        let own_head = !self.config.tie_word_embeddings || self.packed(HEAD).is_some();
        expected::tensors(&self.config, own_head)
    }

    /// The files, in order of their names.
    pub(crate) fn files(&self) -> &[WeightsFile] {
        &self.files
    }

    /// Where every tensor of the files is, by name.
    pub(crate) fn entries(&self) -> &BTreeMap<String, Entry> {
        &self.tensors
    }

    /// Its origin, its files, and where every tensor is among them.
    pub(crate) fn into_parts(self) -> (PathBuf, Vec<WeightsFile>, BTreeMap<String, Entry>) {
        (self.origin, self.files, self.tensors)
    }

    /// The bytes of `config.json`.
    pub(crate) fn config_bytes(&self) -> &[u8] {
        &self.config_bytes
    }

    /// The small files of the model beside its weights, by name: configuration, tokenizer, licence.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(crate) fn companions(&self) -> Result<Vec<(String, Vec<u8>)>, Error> {
        let mut files = vec![("config.json".to_owned(), self.config_bytes.clone())];
        match self.tokenizer {
            Some(bytes) => files.push(("tokenizer.json".to_owned(), bytes.to_vec())),
            None => files.extend(companions::read(&self.origin)?),
        }
        Ok(files)
    }

    /// The tensor `name`, if it has this shape and a type that can be read.
    fn checked(&self, name: &str, shape: &[usize]) -> Result<&Entry, Error> {
        let error = |path: &Path, reason| Error::Tensor { path: path.to_owned(), name: name.to_owned(), reason };
        let Some(entry) = self.tensors.get(name) else {
            let reason = format!("missing; expected shape {shape:?} by config.json. Is the download complete?");
            return Err(error(&self.origin, reason));
        };
        let path = self.files[entry.file].path();
        if entry.info.shape != shape {
            let reason = format!("shape {:?}; expected {shape:?} by config.json", entry.info.shape);
            return Err(error(path, reason));
        }
        if !convert::READABLE.contains(&entry.info.dtype) {
            let hint = "of quantized checkpoints only those of `microscale quantize` can be read";
            let reason = format!("stored as {}; expected BF16, F16 or F32: {hint}", entry.info.dtype);
            return Err(error(path, reason));
        }
        Ok(entry)
    }
}

impl TensorSource for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn read(&self, name: &str, shape: &[usize]) -> Result<Vec<bf16>, Error> {
        Checkpoint::read(self, name, shape)
    }

    fn check_recipe(&self, recipe: &Recipe) -> Result<(), Error> {
        Checkpoint::check_recipe(self, recipe)
    }

    fn head(&self) -> &str {
        if self.config.tie_word_embeddings && self.packed(HEAD).is_none() { EMBEDDING } else { HEAD }
    }

    fn weight(
        &self,
        name: &str,
        [rows, columns]: [usize; 2],
        format: Option<BlockFormat>,
    ) -> Result<WeightMatrix, Error> {
        match self.packed(name) {
            Some(tensor) if Some(tensor.format) == format && tensor.shape == [rows, columns] => {
                self.read_packed(name, tensor)
            }
            Some(tensor) => {
                let asked = format.map_or("bf16", |format| format.element.name());
                let reason = format!("stored as {tensor}; it cannot be had as [{rows}, {columns}] in {asked}");
                Err(Error::Tensor { path: self.origin.clone(), name: name.to_owned(), reason })
            }
            None => {
                let matrix = Matrix::new(rows, columns, Checkpoint::read(self, name, &[rows, columns])?);
                Ok(WeightMatrix::new(matrix, format))
            }
        }
    }
}

/// [`Checkpoint::hash`] of a model with this `config.json` and these weight files.
pub(crate) fn hash_of(config: &[u8], files: &[Sha256Digest]) -> String {
    let mut whole = Sha256::new();
    whole.update(Sha256::digest(config));
    files.iter().for_each(|digest| whole.update(digest));
    hexadecimal(&whole.finalize().into())
}

/// A digest in hexadecimal.
pub(crate) fn hexadecimal(digest: &Sha256Digest) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Why a directory without a config.json is none of ours.
fn no_config(directory: &Path) -> String {
    let what = if directory.is_dir() {
        "has no config.json"
    } else if directory.exists() {
        "is not a directory"
    } else {
        "does not exist"
    };
    format!("{what}; expected a Hugging Face model directory with config.json, *.safetensors and tokenizer.json")
}
