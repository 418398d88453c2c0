//! Running the program in a folder of its own, killing it, and taking the room on a disk away from it.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

pub(crate) const DEMO_WEIGHTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model/model.safetensors");

pub(crate) fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.args(arguments).env("HF_HUB_OFFLINE", "1").env_remove("MICROSCALE_ISA");
    command
}

/// Runs the command, which says nothing on standard output, and answers what it said on standard error.
pub(crate) fn succeeds(arguments: &[&str]) -> String {
    let output = command(arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty() && !error.contains("panicked"),
        "{arguments:?}: {error}"
    );
    error
}

/// The command fails with this code and one line that holds `words`, or what the parser of arguments says.
pub(crate) fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let Output { status, stdout, stderr } = command(arguments).output().unwrap();
    let error = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {error}");
    assert!(stdout.is_empty() && !error.contains("panicked"), "{arguments:?}: {error}");
    assert!(words.iter().all(|word| error.contains(word)), "{arguments:?}: {words:?} in {error}");
    let of_the_parser = error.contains("try '--help'");
    assert!(of_the_parser || error.lines().count() == 1, "{arguments:?}: {error}");
}

/// A folder that goes with the test.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Writes a model's `config.json` and weights; gives its folder.
    pub(crate) fn checkpoint(
        &self,
        name: &str,
        config: &Value,
        tensors: impl IntoIterator<Item = (String, Dtype, Vec<usize>, Vec<u8>)>,
    ) -> String {
        let tensors: Vec<_> = tensors.into_iter().collect();
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, bytes)| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        std::fs::write(folder.join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
        self.text(name)
    }
}

/// Every file of a directory, or the one that a file is, by name.
pub(crate) fn content(path: &Path) -> BTreeMap<String, Vec<u8>> {
    if path.is_file() {
        return [(String::new(), std::fs::read(path).unwrap())].into();
    }
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    };
    std::fs::read_dir(path).unwrap().map(read).collect()
}

/// The same bytes for the same seed.
pub(crate) fn random_bytes(seed: u64) -> impl FnMut() -> u8 {
    let mut state = seed;
    move || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 40) as u8
    }
}

/// How many slices the journal of an unfinished output says are written, none of them for nothing.
pub(crate) fn written_slices(journal: &Path) -> usize {
    let text = std::fs::read_to_string(journal).unwrap_or_default();
    assert!(!text.contains("afresh") && !text.contains("lost"), "{text}");
    text.lines().filter(|line| line.starts_with("slice ")).count()
}

/// Waits until the journal of an unfinished output is there and says that so many slices are written; whether that came
/// before the process was done.
pub(crate) fn slices_came(child: &mut Child, journal: &Path, count: usize) -> bool {
    let start = Instant::now();
    loop {
        let begun = std::fs::metadata(journal).is_ok_and(|file| file.len() > 0);
        if begun && written_slices(journal) >= count {
            return true;
        }
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "{count} slices took too long");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// As [`slices_came`], of a process that takes long enough for that.
pub(crate) fn wait_for_slices(child: &mut Child, journal: &Path, count: usize) {
    assert!(slices_came(child, journal, count), "done before {count} slices were seen");
}

/// A small file system of its own, where this process may mount one.
pub(crate) struct Small(PathBuf);

impl Small {
    /// One of a size (`1m`), as the folder `small`; `None`, after a line that says which test was skipped, where none
    /// can be had.
    pub(crate) fn mount(folder: &Folder, size: &str, test: &str) -> Option<Small> {
        let place = folder.path("small");
        std::fs::create_dir(&place).unwrap();
        let small = Small(place);
        let mounted = small.options(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]);
        if !mounted {
            eprintln!("skipped {test}: no tmpfs can be mounted here");
        }
        mounted.then_some(small)
    }

    pub(crate) fn options(&self, options: &[&str]) -> bool {
        let status = Command::new("mount").args(options).arg(&self.0).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).stderr(Stdio::null()).status();
    }
}

/// The folder in which an output grows.
pub(crate) fn partial(output: &Path) -> PathBuf {
    PathBuf::from(format!("{}.partial", output.display()))
}

/// On a disk that takes none of the outputs whole, then on one that is read-only, the commands (whose last argument is
/// the output, on that disk) fail, leave nothing under the final name, and go on once there is room, to the bytes of a
/// run elsewhere.
pub(crate) fn runs_out_of_room(folder: &Folder, small: &Small, commands: &[Vec<&str>]) {
    let output = |arguments: &[&str]| PathBuf::from(arguments[arguments.len() - 1]);
    for arguments in commands {
        refused(arguments, 1, &["cannot write", "No space left", "the same command goes on"]);
        assert!(!output(arguments).exists() && partial(&output(arguments)).exists(), "{arguments:?}");
    }
    assert!(small.options(&["-o", "remount,ro"]));
    for arguments in commands {
        refused(arguments, 1, &["cannot write", "Read-only"]);
        assert!(!output(arguments).exists(), "{arguments:?}");
    }
    assert!(small.options(&["-o", "remount,rw,size=64m"]));
    for arguments in commands {
        succeeds(arguments);
        let elsewhere = folder.path("elsewhere").join(output(arguments).file_name().unwrap());
        std::fs::create_dir_all(elsewhere.parent().unwrap()).unwrap();
        succeeds(&[&arguments[..arguments.len() - 1], &[elsewhere.to_str().unwrap()]].concat());
        assert!(content(&output(arguments)) == content(&elsewhere), "{arguments:?}");
        assert!(!partial(&output(arguments)).exists());
    }
}
