//! Where task data lies: a folder on disk or files inside the program, read the same way.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use crate::Error;

/// A list of data files, by relative path.
#[derive(Clone, Debug)]
pub struct Files {
    place: String,
    list: Vec<File>,
}

/// One data file.
#[derive(Clone, Debug)]
pub(crate) struct File {
    /// What messages call it.
    pub(crate) label: String,
    /// The folders above it and its name; the name of the opened folder itself comes first.
    pub(crate) components: Vec<String>,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    Disk(PathBuf),
    Memory(Cow<'static, [u8]>),
}

impl Files {
    /// All files below the folder `root`, or `root` itself where it is a file. Names that begin with a dot are passed
    /// over; links are followed, so a Hugging Face cache works.
    ///
    /// # Errors
    /// `root` or a folder below it cannot be read.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let mut paths = Vec::new();
        let resolved = fs::canonicalize(root).map_err(|source| read_error(root, source))?;
        if resolved.is_file() {
            paths.push(root.to_owned());
        } else {
            walk(root, &mut HashSet::new(), &mut paths)?;
        }
        paths.sort();
        // A folder may be given as `.`, so its name is the resolved one; a linked file's is the link's.
        let named = if resolved.is_file() { root } else { &resolved };
        let above: Option<String> = named.file_name().map(|name| name.to_string_lossy().into_owned());
        let list = paths.into_iter().map(|path| {
            let below = path.strip_prefix(root).unwrap_or(&path);
            let names = below.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
            let components = above.clone().into_iter().chain(names).collect();
            File { label: path.display().to_string(), components, source: Source::Disk(path) }
        });
        Ok(Files { place: root.display().to_string(), list: list.collect() })
    }

    /// Files on disk that are to be found under other paths than their own: `/`-separated relative paths with the places
    /// where they lie. `place` is what messages call them together.
    pub fn from_paths(place: &str, files: impl IntoIterator<Item = (String, PathBuf)>) -> Self {
        let list = files.into_iter().map(|(path, source)| File {
            label: source.display().to_string(),
            components: path.split('/').map(str::to_owned).collect(),
            source: Source::Disk(source),
        });
        Files { place: place.to_owned(), list: list.collect() }
    }

    /// Files held in memory, such as those embedded in a program: `/`-separated relative paths with their bytes.
    /// `place` is what messages call them together.
    pub fn from_memory<P, B>(place: &str, files: impl IntoIterator<Item = (P, B)>) -> Self
    where
        P: Into<String>,
        B: Into<Cow<'static, [u8]>>,
    {
        let list = files.into_iter().map(|(path, bytes)| {
            let path: String = path.into();
            File {
                label: format!("{place}/{path}"),
                components: path.split('/').map(str::to_owned).collect(),
                source: Source::Memory(bytes.into()),
            }
        });
        Files { place: place.to_owned(), list: list.collect() }
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) fn list(&self) -> &[File] {
        &self.list
    }
}

impl File {
    /// Its name without folders.
    pub(crate) fn name(&self) -> &str {
        self.components.last().map_or("", String::as_str)
    }

    /// The names of the folders above it.
    pub(crate) fn folders(&self) -> &[String] {
        self.components.split_last().map_or(&[], |(_, folders)| folders)
    }

    pub(crate) fn read(&self) -> Result<Cow<'_, [u8]>, Error> {
        match &self.source {
            Source::Disk(path) => fs::read(path).map(Cow::Owned).map_err(|source| read_error(path, source)),
            Source::Memory(bytes) => Ok(Cow::Borrowed(bytes)),
        }
    }

    /// Its first line, which tells what a `.jsonl` file holds without reading all of it.
    pub(crate) fn first_line(&self) -> Result<Vec<u8>, Error> {
        let mut line = Vec::new();
        match &self.source {
            Source::Disk(path) => {
                let file = fs::File::open(path).map_err(|source| read_error(path, source))?;
                BufReader::new(file).read_until(b'\n', &mut line).map_err(|source| read_error(path, source))?;
            }
            Source::Memory(bytes) => line.extend(bytes.split(|&byte| byte == b'\n').next().unwrap_or_default()),
        }
        Ok(line)
    }
}

/// Adds every file below `folder` to `found`; `seen` holds the folders already entered, so that links cannot loop.
fn walk(folder: &Path, seen: &mut HashSet<PathBuf>, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    let resolved = fs::canonicalize(folder).map_err(|source| read_error(folder, source))?;
    if !seen.insert(resolved) {
        return Ok(());
    }
    for entry in fs::read_dir(folder).map_err(|source| read_error(folder, source))? {
        let path = entry.map_err(|source| read_error(folder, source))?.path();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        // A dangling link is no data file; whatever needs it will miss it by name.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => walk(&path, seen, found)?,
            Ok(metadata) if metadata.is_file() => found.push(path),
            _ => {}
        }
    }
    Ok(())
}

fn read_error(path: &Path, source: std::io::Error) -> Error {
    Error::Read { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_and_memory_give_the_same_components() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("tasks");
        fs::create_dir_all(root.join("piqa")).unwrap();
        fs::create_dir_all(root.join(".cache")).unwrap();
        fs::write(root.join("piqa/valid.jsonl"), "one\ntwo\n").unwrap();
        fs::write(root.join(".cache/x.jsonl"), "").unwrap();
        let disk = Files::open(&root).unwrap();
        let memory = Files::from_memory("built in", [("tasks/piqa/valid.jsonl", b"one\ntwo\n".as_slice())]);
        for files in [&disk, &memory] {
            assert_eq!(files.list().len(), 1);
            let file = &files.list()[0];
            assert_eq!(file.name(), "valid.jsonl");
            assert_eq!(file.folders(), ["tasks", "piqa"]);
            assert_eq!(&*file.read().unwrap(), b"one\ntwo\n");
            assert_eq!(String::from_utf8(file.first_line().unwrap()).unwrap().trim_end(), "one");
        }
        assert_eq!(memory.list()[0].label, "built in/tasks/piqa/valid.jsonl");
    }

    #[test]
    fn a_single_file_can_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.jsonl");
        fs::write(&path, "{}").unwrap();
        let files = Files::open(&path).unwrap();
        assert_eq!(files.list().len(), 1);
        assert_eq!(files.list()[0].name(), "mine.jsonl");
        assert!(Files::open(&folder.path().join("none")).is_err());
    }
}
