//! The files that travel with a model beside its weights.

use std::path::Path;

use crate::Error;

/// Files that a program reads a model's tokenizer and settings from; `config.json` is read anyway.
const NAMES: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
];
/// How the names of files begin that must go wherever the weights go.
const LEGAL: [&str; 4] = ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"];

/// Whether a file of this name travels with a model beside its weights; `config.json` is none of them.
pub fn is_companion(name: &str) -> bool {
    let legal = LEGAL.iter().any(|start| name.starts_with(start));
    NAMES.contains(&name) || (legal && !name.contains(['/', '\\', ':']))
}

/// Name and content of those that `directory` has, sorted by name.
pub(crate) fn read(directory: &Path) -> Result<Vec<(String, Vec<u8>)>, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(Error::io(directory))? {
        let path = entry.map_err(Error::io(directory))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if is_companion(name) && path.is_file() {
            files.push((name.to_owned(), std::fs::read(&path).map_err(Error::io(&path))?));
        }
    }
    files.sort();
    Ok(files)
}
