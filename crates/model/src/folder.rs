//! A Hugging Face folder as it lies there, whatever its tensors mean.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::checkpoint::{Entry, read_companions, shards};
use crate::weights_file::WeightsFile;
use crate::{Checkpoint, Error};

/// Files and headers of a folder of weights, which nothing is asked of but to be safetensors.
pub struct Folder {
    /// What it is called: the folder's name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// The bytes of its `config.json`.
    pub config: Vec<u8>,
    /// The weight files, in order of their names.
    pub files: Vec<WeightsFile>,
    /// Where every tensor is among them.
    pub tensors: BTreeMap<String, Entry>,
    /// The small files beside, by name: tokenizer, licence, and those that the caller asked for; not `config.json`.
    pub companions: Vec<(String, Vec<u8>)>,
}

impl Folder {
    /// Opens a directory with `config.json` and `model.safetensors`, or an index and its shards. Files must not be
    /// changed while it is open.
    ///
    /// # Errors
    /// What is missing or no safetensors file.
    pub fn open(directory: &Path) -> Result<Folder, Error> {
        let path = directory.join("config.json");
        if !path.is_file() {
            return Err(Error::checkpoint(directory, "has no config.json; expected a model's folder"));
        }
        let config = std::fs::read(&path).map_err(Error::io(&path))?;
        let (files, tensors) = shards::open(directory)?;
        let named = directory.canonicalize().map_err(Error::io(directory))?;
        let name = named.file_name().unwrap_or(named.as_os_str()).to_string_lossy().into_owned();
        let companions = read_companions(directory)?;
        Ok(Folder { name, path: directory.to_owned(), config, files, tensors, companions })
    }
}

impl Checkpoint {
    /// The checkpoint as a folder: for a program that moves tensors rather than runs them.
    ///
    /// # Errors
    /// A small file beside the weights that cannot be read.
    pub fn into_folder(self) -> Result<Folder, Error> {
        let mut companions = self.companions()?;
        companions.retain(|(name, _)| name != "config.json");
        let (name, config) = (self.name().to_owned(), self.config_bytes().to_vec());
        let (path, files, tensors) = self.into_parts();
        Ok(Folder { name, path, config, files, tensors, companions })
    }
}
