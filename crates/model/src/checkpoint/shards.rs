//! The weight files of a directory: one `model.safetensors`, or shards under an index.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use rayon::prelude::*;
use serde_json::Value;

use super::Entry;
use crate::Error;
use crate::weights_file::WeightsFile;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Weight files, and where each tensor is among them.
pub(crate) type Weights = (Vec<WeightsFile>, BTreeMap<String, Entry>);

/// Opens the weight files of `directory`; a single file comes before an index, as in transformers.
pub(crate) fn open(directory: &Path) -> Result<Weights, Error> {
    let (single_path, index) = (directory.join(SINGLE), directory.join(INDEX));
    if single_path.exists() {
        return Ok(single(WeightsFile::open(single_path)?));
    }
    if index.exists() {
        return sharded(directory, &index);
    }
    let hint = match directory.join("pytorch_model.bin").exists()
        || directory.join("pytorch_model.bin.index.json").exists()
    {
        true => {
            "pytorch_model.bin cannot be read; convert it with transformers' save_pretrained(safe_serialization=True)"
        }
        false => "is the download complete?",
    };
    Err(Error::checkpoint(directory, format!("has neither {SINGLE} nor {INDEX}; {hint}")))
}

/// The tensors of one file.
pub(super) fn single(file: WeightsFile) -> Weights {
    let tensors = file.infos().map(|(name, info)| (name, Entry { file: 0, info })).collect();
    (vec![file], tensors)
}

/// Opens every shard that the index names and checks that its tensors are where it says.
fn sharded(directory: &Path, index: &Path) -> Result<Weights, Error> {
    let places = weight_map(index)?;
    let names: BTreeSet<&str> = places.values().map(String::as_str).collect();
    let files = names.par_iter().map(|name| open_shard(directory, index, name)).collect::<Result<Vec<_>, Error>>()?;
    let numbers: BTreeMap<&str, usize> = names.into_iter().enumerate().map(|(i, name)| (name, i)).collect();
    let mut tensors = BTreeMap::new();
    for (file, shard) in files.iter().enumerate() {
        for (name, info) in shard.infos() {
            // A tensor that the index does not place counts too, as in transformers.
            if places.get(&name).is_none_or(|place| numbers[place.as_str()] == file) {
                let copy = tensors.insert(name.clone(), Entry { file, info });
                if let Some(Entry { file: other, .. }) = copy {
                    let reason = format!(
                        "is also in {}, and the index does not say which counts",
                        files[other].path().display()
                    );
                    return Err(Error::Tensor { path: shard.path().to_owned(), name, reason });
                }
            }
        }
    }
    match places.iter().find(|(name, place)| !files[numbers[place.as_str()]].contains(name)) {
        None => Ok((files, tensors)),
        Some((name, place)) => {
            let reason = format!("placed in {place} by the index, but not there; fetch both again");
            Err(Error::Tensor { path: index.to_owned(), name: name.clone(), reason })
        }
    }
}

/// The `weight_map` of an index: tensor name to file name.
fn weight_map(index: &Path) -> Result<BTreeMap<String, String>, Error> {
    let bytes = std::fs::read(index).map_err(Error::io(index))?;
    let root: Value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::checkpoint(index, format!("not valid JSON ({e}); fetch it again")))?;
    let map = root.get("weight_map").and_then(Value::as_object);
    let places = map.and_then(|map| {
        map.iter().map(|(name, file)| file.as_str().map(|file| (name.clone(), file.to_owned()))).collect()
    });
    places
        .filter(|places: &BTreeMap<_, _>| !places.is_empty())
        .ok_or_else(|| Error::checkpoint(index, "has no weight_map from tensor names to file names; fetch it again"))
}

/// Opens one shard, which must lie in the directory itself.
fn open_shard(directory: &Path, index: &Path, name: &str) -> Result<WeightsFile, Error> {
    let mut components = Path::new(name).components();
    if !matches!((components.next(), components.next()), (Some(Component::Normal(_)), None)) {
        return Err(Error::checkpoint(index, format!("names the shard {name:?}; expected a file beside the index")));
    }
    let path = directory.join(name);
    if !path.exists() {
        return Err(Error::checkpoint(index, format!("names {name}, which is not there; is the download complete?")));
    }
    WeightsFile::open(path)
}
