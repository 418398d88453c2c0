//! `convert` as a user meets it: chains of programs, killed, without room.

mod support;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use safetensors::Dtype;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::{
    Folder, Small, command, content, partial, random_bytes, refused, runs_out_of_room, slices_came, succeeds,
    written_slices,
};

#[test]
fn a_chain_of_programs_ends_where_it_began() {
    let folder = Folder::new();
    let path = |name: &str| folder.text(name);
    for recipe in ["w4a4", "proj=fp4/int8,mlp=fp4/fp6_e2m3,attn=fp8,rule=rceil,value-blocks=causal"] {
        let start = path(&format!("start-{}", recipe.len()));
        succeeds(&["quantize", "demo", "--recipe", recipe, "-o", &start]);
        let chain = ["compressed-tensors", "mlx", "gguf", "quark", "gpt-oss", "torchao", "modelopt", "native"];
        let end = chain.iter().enumerate().fold(start.clone(), |from, (i, kind)| {
            let to = path(&format!("{}-{i}", recipe.len()));
            succeeds(&["convert", &from, "--to", kind, "-o", &to]);
            to
        });
        assert!(content(Path::new(&start)) == content(Path::new(&end)), "{recipe}");
    }
}

#[test]
fn a_plain_model_becomes_a_gguf_file_alone() {
    let folder = Folder::new();
    let path = |name: &str| folder.text(name);
    let gguf = path("demo.gguf");
    succeeds(&["convert", "demo", "--to", "gguf", "-o", &gguf]);
    assert!(std::fs::read(&gguf).unwrap().starts_with(b"GGUF\x03\0\0\0"));
    refused(&["convert", "demo", "--to", "mlx", "-o", &path("mlx")], 1, &["demo", "quantize it first"]);
    refused(&["convert", &gguf, "--to", "native", "-o", &path("native")], 1, &["demo.gguf", "quantize it first"]);
    refused(&["convert", &path("none"), "--to", "native", "-o", &path("native")], 1, &["none", "no such folder"]);
    refused(
        &["convert", "demo", "--to", "mlx", "--outtype", "bf16", "-o", &path("x")],
        2,
        &["--outtype is for --to gguf"],
    );
    refused(&["convert", "demo", "--to", "gguf", "--outtype", "f16", "-o", &path("x")], 2, &["known: bf16, q8_0"]);
    refused(&["convert", "demo", "--to", "onnx", "-o", &path("x")], 2, &["unknown kind", "gpt-oss"]);
}

/// A LLaMA of 24 layers in compressed-tensors' MXFP4, 54 MB; gives its folder.
fn packed_model(folder: &Folder) -> String {
    const HIDDEN: usize = 512;
    const INNER: usize = 2048;
    const VOCABULARY: usize = 512;
    const LAYERS: usize = 24;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 8,
        "vocab_size": VOCABULARY, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": true,
        "quantization_config": {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"},
    });
    let mut bytes = random_bytes(11);
    let mut plain = |name: String, shape: Vec<usize>| {
        let content = (0..shape.iter().product()).flat_map(|_| [bytes(), 0x3C]).collect();
        (name, Dtype::BF16, shape, content)
    };
    let mut tensors = vec![
        plain("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        plain("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push(plain(format!("model.layers.{layer}.{norm}.weight"), vec![HIDDEN]));
        }
    }
    let attention = ["q", "k", "v", "o"].map(|part| (format!("self_attn.{part}_proj"), [HIDDEN, HIDDEN]));
    let mlp = [("gate", [INNER, HIDDEN]), ("up", [INNER, HIDDEN]), ("down", [HIDDEN, INNER])];
    let linears: Vec<_> =
        attention.into_iter().chain(mlp.map(|(part, shape)| (format!("mlp.{part}_proj"), shape))).collect();
    for (layer, (module, [rows, columns])) in (0..LAYERS).flat_map(|layer| linears.iter().map(move |l| (layer, l))) {
        let name = format!("model.layers.{layer}.{module}.weight");
        let codes = (0..rows * columns / 2).map(|_| bytes()).collect();
        let scales = (0..rows * columns / 32).map(|_| 110 + bytes() % 16).collect();
        tensors.push((format!("{name}_packed"), Dtype::U8, vec![*rows, columns / 2], codes));
        tensors.push((format!("{name}_scale"), Dtype::U8, vec![*rows, columns / 32], scales));
    }
    folder.checkpoint("model", &config, tensors)
}

/// `convert` is soon done, so that it is killed when it has written a few slices more, and in between after a time that
/// may fall anywhere. Each run goes on where the one before was killed, and the last is done.
#[test]
fn killed_at_any_moment() {
    const SLICES: usize = 24 * 9 + 2;
    let folder = Folder::new();
    let model = packed_model(&folder);
    for (kind, name) in [("native", "folder"), ("gguf", "file.gguf")] {
        let run = |output: &str| {
            let mut command = command(&["convert", &model, "--to", kind, "--threads", "1", "--shard-size", "2MB"]);
            command.args(["-o", output]).stderr(Stdio::piped());
            command
        };
        let (output, whole) = (folder.path(name), folder.path(&format!("whole-{name}")));
        let journal = partial(&output).join("microscale.journal");
        let (mut kills, mut halfway, mut earlier) = (0, 0, 0);
        let mut random = random_bytes(3);
        let last = loop {
            let mut child = run(&folder.text(name)).spawn().unwrap();
            match kills % 2 {
                0 => drop(slices_came(&mut child, &journal, earlier + SLICES / 20)),
                _ => std::thread::sleep(Duration::from_micros(100 * u64::from(random()))),
            }
            child.kill().unwrap(); // SIGKILL
            let ended = child.wait_with_output().unwrap();
            if ended.status.success() {
                break ended;
            }
            kills += 1;
            if output.exists() {
                // Killed after it had its name: then it is complete, and so says the next run.
                break run(&folder.text(name)).output().unwrap();
            }
            let written = written_slices(&journal);
            halfway += usize::from((1..SLICES).contains(&written));
            assert!(written >= earlier, "{kind}: {written} slices of {earlier}");
            earlier = written;
        };
        let said = String::from_utf8(last.stderr).unwrap();
        assert!(last.status.success() && !partial(&output).exists(), "{kind}: {said}");
        assert!(run(whole.to_str().unwrap()).output().unwrap().status.success());
        assert!(content(&output) == content(&whole), "{kind}");
        eprintln!("{kind}: killed {kills} times, {halfway} of them between the first slice and the last");
        assert!(halfway >= 3, "{kind}: killed {kills} times, {halfway} of them halfway");
    }
}

#[test]
fn a_disk_that_is_full_or_read_only() {
    let folder = Folder::new();
    let Some(small) = Small::mount(&folder, "1m", "convert's a_disk_that_is_full_or_read_only") else { return };
    let (native, there, file) = (folder.text("native"), folder.text("small/there"), folder.text("small/out.gguf"));
    succeeds(&["quantize", "demo", "--recipe", "w4a4", "-o", &native]);
    let convert = |kind, output| vec!["convert", &native, "--to", kind, "-o", output];
    runs_out_of_room(&folder, &small, &[convert("compressed-tensors", &there), convert("gguf", &file)]);
}

#[test]
fn targets_that_cannot_be_written() {
    let folder = Folder::new();
    let (native, mlx, gguf) = (folder.text("native"), folder.text("mlx"), folder.text("out.gguf"));
    succeeds(&["quantize", "demo", "--recipe", "w4a4", "-o", &native]);
    let convert = |kind: &str, output: &str, words: &[&str]| {
        refused(&["convert", &native, "--to", kind, "-o", output], 1, words);
    };
    convert("mlx", "/proc/out", &["cannot write /proc/out.partial"]);
    convert("gguf", "/dev/null/out", &["cannot write /dev/null/out.partial"]);
    convert("gguf", &folder.text(""), &["is a directory"]);
    convert("mlx", &native, &["native", "is no output of the same command"]);
    succeeds(&["convert", &native, "--to", "gguf", "-o", &gguf]);
    refused(&["convert", &gguf, "--to", "gguf", "-o", &gguf], 1, &["out.gguf", "is the source itself"]);
    convert("mlx", &gguf, &["out.gguf", "is no output of the same command"]);
    // What is there is told from what is nearly there.
    for kind in ["mlx", "native"] {
        let output = folder.text(&format!("again-{kind}"));
        let convert = ["convert", &gguf, "--to", kind, "-o", &output];
        succeeds(&convert);
        assert!(succeeds(&convert).contains("complete already"));
        let weights = folder.path(&format!("again-{kind}/model.safetensors"));
        let mut bytes = std::fs::read(&weights).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&weights, bytes).unwrap();
        refused(&convert, 1, &["is no output of the same command"]);
    }
    assert!(!Path::new(&mlx).exists());
}

/// Names and bytes of a model's tensors, in the order of names.
fn tensors(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(Path::new(folder).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_owned(), view.data().to_vec())).collect()
}

fn sha256(parts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let digest = parts.into_iter().fold(Sha256::new(), |sha, part| sha.chain_update(part)).finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What crates/exchange/checks/check_torchao.py noted: what is written for torchao is what it was given there, and its
/// values of that are ours.
#[test]
fn torchao_computes_the_same_values() {
    let golden: Value = serde_json::from_str(include_str!("goldens/torchao.json")).unwrap();
    let recipes = golden["recipes"].as_object().unwrap();
    assert!(recipes.len() == 5 && golden["torchao"].as_array().unwrap().len() > 1);
    for (recipe, golden) in recipes {
        let folder = Folder::new();
        let [native, there, back, values] = ["native", "there", "back", "values"].map(|name| folder.text(name));
        succeeds(&["quantize", "demo", "--recipe", recipe, "-o", &native]);
        succeeds(&["convert", &native, "--to", "torchao", "-o", &there]);
        succeeds(&["convert", &there, "--to", "native", "-o", &back]);
        succeeds(&["dequantize", &back, "--dtype", "f32", "-o", &values]);
        let given = tensors(&there);
        let parts = given.iter().filter(|(name, _)| name.ends_with("_qdata") || name.ends_with("_scale"));
        assert_eq!(sha256(parts.clone().map(|(_, bytes)| bytes)), golden["given"], "{recipe}");
        let expected = golden["values"].as_object().unwrap();
        assert_eq!(expected.len() * 2, parts.count(), "{recipe}");
        let values = tensors(&values);
        for (name, hash) in expected {
            let unsigned = values[name].chunks_exact(4).map(|x| match x {
                [0, 0, 0, 0x80] => [0; 4],
                x => x.try_into().unwrap(),
            });
            assert_eq!(sha256(unsigned), *hash, "{recipe}: {name}");
        }
    }
}
