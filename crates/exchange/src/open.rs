//! Telling what a checkpoint is, and reading it.

use std::path::Path;

use microscale_formats::ScaleRule;
use microscale_model::{Checkpoint, Error, Folder, MappedFile, Notes, WeightsFile, foreign_notes};
use serde_json::{Map, Value};

use crate::dialect::{self, CONFIG_KEYS};
use crate::source::{About, Source, Stored, Tensor, object, with_plain};
use crate::{Kind, gguf, gpt_oss, notes};

impl Source {
    /// Opens a folder of safetensors files or a GGUF file, whichever kind it is. Files must not be changed while it is
    /// open.
    ///
    /// # Errors
    /// What cannot be read, is damaged, or is quantized in a way that is not known here.
    pub fn open(path: &Path) -> Result<Source, Error> {
        if path.is_file() {
            return gguf::read(MappedFile::open(path.to_owned())?);
        }
        Source::of(Folder::open(path)?)
    }

    /// A checkpoint that is open already, the demo model for instance.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn of_checkpoint(checkpoint: Checkpoint) -> Result<Source, Error> {
        Source::of(checkpoint.into_folder()?)
    }

    fn of(folder: Folder) -> Result<Source, Error> {
        let stored = object(&folder.config, &folder.path)?;
        let kind = detect(&folder, &stored)?;
        let dialect = kind.and_then(dialect::of);
        let (mut packed, parts) = match dialect {
            Some(dialect) => dialect.read(&folder, &stored)?,
            None => (Vec::new(), Vec::new()),
        };
        let (about, config) = match kind {
            Some(Kind::Native) => (native_about(&folder)?, folder.config.clone()),
            kind => {
                let texts = folder.files[0].notes().into_iter().flatten();
                let texts = texts.map(|(key, text)| (key.as_str(), text.as_str()));
                let (mut about, original) = notes::read(texts, &folder.path)?;
                if let Some(dialect) = dialect.filter(|_| about.recipe.is_none()) {
                    about.inputs = dialect.inputs(&stored);
                }
                let rule = about.recipe.as_ref().map_or(ScaleRule::Even, |recipe| recipe.scale_rule);
                set_rule(&mut packed, rule);
                let config = if kind.is_some() { plain(&folder, stored, original, &packed) } else { None };
                (about, config.unwrap_or_else(|| folder.config.clone()))
            }
        };
        let tensors = with_plain(&folder, packed, &parts);
        Ok(Source {
            name: folder.name,
            path: folder.path,
            kind,
            config,
            stored_config: Some(folder.config),
            files: folder.files.into_iter().map(WeightsFile::into_file).collect(),
            tensors,
            companions: folder.companions,
            about,
        })
    }
}

/// Says by which rule scales were made.
pub(crate) fn set_rule(tensors: &mut [Tensor], rule: ScaleRule) {
    for tensor in tensors {
        if let Stored::Packed { format, .. } = &mut tensor.stored {
            format.scale_rule = rule.for_format(format.element);
        }
    }
}

/// The kind of a folder: by its metadata, by what `config.json` says, by names.
fn detect(folder: &Folder, config: &Map<String, Value>) -> Result<Option<Kind>, Error> {
    for file in &folder.files {
        if Notes::read(file)?.is_some() {
            return Ok(Some(Kind::Native));
        }
    }
    let settings = config.get("quantization_config").and_then(Value::as_object);
    let method = settings.and_then(|settings| settings.get("quant_method")).and_then(Value::as_str);
    Ok(match method {
        Some("compressed-tensors") => Some(Kind::CompressedTensors),
        Some("quark") => Some(Kind::Quark),
        Some("modelopt") => Some(Kind::ModelOpt),
        Some("mxfp4") => Some(Kind::GptOss),
        Some("torchao") => Some(Kind::TorchAo),
        Some(other) => {
            let reason = format!(
                "its config.json says that it is quantized by {other:?}; known are compressed-tensors, quark, modelopt, \
                 mxfp4 (gpt-oss), torchao, and MLX's own key"
            );
            return Err(crate::source::checkpoint(&folder.path, reason));
        }
        None if config.contains_key("quantization") || settings.is_some() => Some(Kind::Mlx),
        None if folder.path.join("hf_quant_config.json").is_file() => Some(Kind::ModelOpt),
        None => {
            let blocks = |[codes, scales]: [&str; 2]| {
                let mut names = dialect::ending(folder, codes).into_iter();
                names.any(|(name, _)| folder.tensors.contains_key(&format!("{name}{scales}")))
            };
            gpt_oss::SUFFIXES.into_iter().any(blocks).then_some(Kind::GptOss)
        }
    })
}

/// Where a native checkpoint comes from.
fn native_about(folder: &Folder) -> Result<About, Error> {
    let mut about = About::default();
    for file in &folder.files {
        if let Some(notes) = Notes::read(file)? {
            let first = notes.tensors.values().next();
            about = About {
                ties: first.map_or(about.ties, |tensor| tensor.ties),
                recipe: notes.recipe,
                source: Some(notes.source),
                source_sha256: Some(notes.source_sha256),
                version: Some(notes.version),
                inputs: None,
                kept: foreign_notes(file),
            };
        }
    }
    Ok(about)
}

/// The `config.json` of a folder without its kind's keys: the very text that it was made of, if notes have it and it
/// was not changed since; `None` if nothing is to be taken out.
fn plain(
    folder: &Folder,
    mut stored: Map<String, Value>,
    original: Option<String>,
    packed: &[Tensor],
) -> Option<Vec<u8>> {
    CONFIG_KEYS.iter().for_each(|key| drop(stored.remove(*key)));
    if let Some(text) = original
        && let Ok(mut before) = object(text.as_bytes(), &folder.path)
    {
        untie(&mut before, packed);
        if before == stored {
            return Some(text.into_bytes());
        }
    }
    Some(format!("{:#}\n", Value::Object(stored)).into_bytes())
}

/// Other programs know no head of its own in a model whose head is its embedding.
pub(crate) fn untie<'a>(config: &mut Map<String, Value>, tensors: impl IntoIterator<Item = &'a Tensor>) {
    let own_head = tensors.into_iter().any(|tensor| tensor.name == "lm_head.weight");
    if own_head && config.get("tie_word_embeddings") == Some(&Value::Bool(true)) {
        config.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
    }
}
