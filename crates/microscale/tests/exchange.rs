//! `convert` as a user meets it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.args(arguments).env("HF_HUB_OFFLINE", "1").env_remove("MICROSCALE_ISA");
    command
}

fn succeeds(arguments: &[&str]) {
    let output = command(arguments).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        output.status.success() && output.stdout.is_empty() && !error.contains("panicked"),
        "{arguments:?}: {error}"
    );
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), std::fs::read(e.path()).unwrap())).collect()
}

#[test]
fn a_chain_of_programs_ends_where_it_began() {
    let folder = tempfile::tempdir().unwrap();
    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
    let path = |name: &str| text(folder.path().join(name));
    for recipe in ["w4a4", "proj=fp4/int8,mlp=fp4/fp6_e2m3,attn=fp8,rule=rceil,value-blocks=causal"] {
        let start = path(&format!("start-{}", recipe.len()));
        succeeds(&["quantize", "demo", "--recipe", recipe, "-o", &start]);
        let chain = ["compressed-tensors", "mlx", "gguf", "quark", "gpt-oss", "torchao", "modelopt", "native"];
        let end = chain.iter().enumerate().fold(start.clone(), |from, (i, kind)| {
            let to = path(&format!("{}-{i}", recipe.len()));
            succeeds(&["convert", &from, "--to", kind, "-o", &to]);
            to
        });
        assert!(files(Path::new(&start)) == files(Path::new(&end)), "{recipe}");
    }
}

#[test]
fn a_plain_model_becomes_a_gguf_file_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let gguf = path("demo.gguf");
    succeeds(&["convert", "demo", "--to", "gguf", "-o", &gguf]);
    assert!(std::fs::read(&gguf).unwrap().starts_with(b"GGUF\x03\0\0\0"));
    let refused = |arguments: &[&str], code: i32, words: &[&str]| {
        let Output { status, stdout, stderr } = command(arguments).output().unwrap();
        let error = String::from_utf8(stderr).unwrap();
        assert_eq!((status.code(), stdout.is_empty()), (Some(code), true), "{error}");
        assert!(words.iter().all(|word| error.contains(word)) && error.lines().count() == 1, "{words:?} in {error}");
    };
    refused(&["convert", "demo", "--to", "mlx", "-o", &path("mlx")], 1, &["demo", "quantize it first"]);
    refused(&["convert", &gguf, "--to", "native", "-o", &path("native")], 1, &["demo.gguf", "quantize it first"]);
    refused(&["convert", &path("none"), "--to", "native", "-o", &path("native")], 1, &["none", "no such folder"]);
    assert_eq!(
        command(&["convert", "demo", "--to", "onnx", "-o", &path("x")]).output().unwrap().status.code(),
        Some(2)
    );
}
