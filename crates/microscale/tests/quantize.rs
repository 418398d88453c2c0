//! `quantize` and `dequantize` as a user meets them: killed, without room, on models and on single files.

mod support;

use std::path::Path;
use std::process::Stdio;

use safetensors::Dtype;
use serde_json::json;
use support::{
    DEMO_WEIGHTS, Folder, Small, command, content, random_bytes, refused, runs_out_of_room, succeeds, wait_for_slices,
    written_slices,
};

/// A LLaMA of one layer with bf16 weights, 17 MB; gives its folder.
fn model(folder: &Folder) -> String {
    const HIDDEN: usize = 512;
    const INNER: usize = 2048;
    const VOCABULARY: usize = 4096;
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": HIDDEN, "num_attention_heads": 8,
        "vocab_size": VOCABULARY, "intermediate_size": INNER, "num_hidden_layers": 1,
    });
    let layer = |name: &str| format!("model.layers.0.{name}.weight");
    let square = ["q", "k", "v", "o"].map(|name| (layer(&format!("self_attn.{name}_proj")), vec![HIDDEN, HIDDEN]));
    let others = [
        ("model.embed_tokens.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
        (layer("input_layernorm"), vec![HIDDEN]),
        (layer("post_attention_layernorm"), vec![HIDDEN]),
        (layer("mlp.gate_proj"), vec![INNER, HIDDEN]),
        (layer("mlp.up_proj"), vec![INNER, HIDDEN]),
        (layer("mlp.down_proj"), vec![HIDDEN, INNER]),
    ];
    let mut bytes = random_bytes(7);
    let mut value = || [bytes(), 0x3C | bytes() & 0x83]; // magnitudes of 2^-7 to 2
    let tensors = square.into_iter().chain(others).map(|(name, shape)| {
        let bytes = (0..shape.iter().product()).flat_map(|_| value()).collect();
        (name, Dtype::BF16, shape, bytes)
    });
    folder.checkpoint("model", &config, tensors)
}

#[test]
fn every_command_takes_a_quantized_model() {
    let folder = Folder::new();
    let (packed, plain) = (folder.text("packed"), folder.text("plain"));
    let said = succeeds(&["quantize", "demo", "--recipe", "w6a8-attn6", "-o", &packed, "--shard-size", "1MB"]);
    assert!(said.contains("6.25 bits per quantized value"), "{said}");
    assert!(
        succeeds(&["quantize", "demo", "--recipe", "w6a8-attn6", "-o", &packed, "--shard-size", "1MB"])
            .contains("complete already")
    );
    let logits = |model: &str, recipe: &[&str]| {
        let (file, name) = (folder.path("logits"), folder.text("logits"));
        succeeds(&[&["logits", model, "--tokens", "0,17,400,1279,5", "--output", &name], recipe].concat());
        let bytes = std::fs::read(file).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec()
    };
    assert!(logits(&packed, &[]) == logits("demo", &["--recipe", "w6a8-attn6"]));
    assert!(logits(&packed, &["--recipe", "w6a6"]) == logits("demo", &["--recipe", "w6a6"]));

    let data = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/tasks");
    let table = |arguments: &[&str]| {
        let common = ["--data", data, "--limit", "3", "--format", "csv"];
        let output = command(&[&["table"], arguments, &common].concat()).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let (own, fly) = (table(&[&packed]), table(&["demo", "--recipe", "w6a8-attn6"]));
    assert_eq!((own.len(), fly.len()), (2, 3), "{own:?}");
    // Everything between the model's name and the difference, which a first row has not.
    let delta = own[0].split(',').position(|head| head == "delta").unwrap();
    let numbers = |line: &str| line.split(',').take(delta).skip(1).collect::<Vec<_>>().join(",");
    assert!(own[1].starts_with("packed,w6a8-attn6") && numbers(&own[1]) == numbers(&fly[2]), "{own:?} {fly:?}");
    assert_eq!(table(&[&packed, "--recipe", "w6a6", "--recipe", "w6a8"]).len(), 3);
    refused(&["table", &packed, "--data", data, "--recipe", "bf16"], 2, &["projection_weight in fp6_e3m2", "bf16"]);
    refused(&["logits", &packed, "--recipe", "w4a4", "--tokens", "1", "--output", "x"], 2, &["fp6_e3m2", "fp4_e2m1"]);
    refused(&["quantize", &packed, "--recipe", "w6a8", "-o", &plain], 1, &["quantized already"]);

    let generate = ["generate", &packed, "--prompt", "Question: Where does the", "--max-tokens", "6"];
    let text = command(&generate).output().unwrap();
    let demo =
        ["generate", "demo", "--prompt", "Question: Where does the", "--max-tokens", "6", "--recipe", "w6a8-attn6"];
    assert_eq!(text.stdout, command(&demo).output().unwrap().stdout);
    let inspected = String::from_utf8(command(&["inspect", &packed, "--tensors"]).output().unwrap().stdout).unwrap();
    assert!(inspected.contains("quantized from demo (") && inspected.contains("fp6_e3m2"), "{inspected}");
    let bench =
        command(&["bench", &packed, "--decode", "2", "--repetitions", "1", "--format", "csv"]).output().unwrap();
    assert!(String::from_utf8(bench.stdout).unwrap().contains("w6a8-attn6"));
    let eval = ["eval", &packed, "--data", data, "--tasks", "piqa", "--limit", "2", "--output", &folder.text("eval")];
    let output = command(&eval).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && !error.contains("panicked"), "{error}");

    succeeds(&["dequantize", &packed, "-o", &plain]);
    assert!(logits(&plain, &["--recipe", "w6a8-attn6"]) == logits(&packed, &[]));
}

/// 4.25, 6.25 and 8.25 bits for each quantized weight and 16 for the others, and at most half a percent on top: for the
/// header, which counts in models far smaller than this one alone.
#[test]
fn sizes_on_disk() {
    let folder = Folder::new();
    let model = model(&folder);
    let other = 2 * (4096 * 512 + 3 * 512); // embedding and norms
    let quantized = 4096 * 512 + 4 * 512 * 512 + 3 * 2048 * 512;
    for (recipe, bits) in [("w4a4", 4.25), ("w6a8", 6.25), ("w8a8", 8.25), ("int8", 8.25)] {
        let said = succeeds(&["quantize", &model, "--recipe", recipe, "-o", &folder.text(recipe)]);
        assert!(said.contains(&format!("{bits} bits per quantized value")), "{said}");
        let bytes = std::fs::metadata(folder.path(recipe).join("model.safetensors")).unwrap().len() as f64;
        let found = (bytes - f64::from(other)) * 8.0 / f64::from(quantized);
        assert!(found >= bits && found <= bits * 1.005, "{recipe}: {found} bits");
    }
}

/// The slowest rule on one thread gives time to kill between slices. Each run goes on where the one before was killed.
#[test]
fn killed_at_any_moment() {
    let folder = Folder::new();
    let model = model(&folder);
    let run = |output: &str| {
        let output = folder.text(output);
        let arguments = ["quantize", &model, "--recipe", "w4a4", "--scale-rule", "mse", "--threads", "1"];
        let mut command = command(&arguments);
        command.args(["--shard-size", "2MB", "-o", &output]).stderr(Stdio::piped());
        command
    };
    let mut earlier = 0;
    let journal = folder.path("out.partial/microscale.journal");
    for slices in [0, 1, 3, 5, 6] {
        let mut child = run("out").spawn().unwrap();
        wait_for_slices(&mut child, &journal, slices.max(earlier + usize::from(slices > 0)));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        assert!(!folder.path("out").exists() && folder.path("out.partial").exists(), "after {slices} slices");
        earlier = written_slices(&journal);
    }
    let output = run("out").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && said.contains("by an earlier run"), "{said}");
    assert!(!folder.path("out.partial").exists());
    assert!(run("whole").output().unwrap().status.success());
    assert!(content(&folder.path("out")) == content(&folder.path("whole")));
    // Two at once would spoil each other's work.
    let mut child = run("twice").spawn().unwrap();
    wait_for_slices(&mut child, &folder.path("twice.partial/microscale.journal"), 1);
    let second = run("twice").output().unwrap();
    assert!(String::from_utf8(second.stderr).unwrap().contains("another process is writing here"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn targets_that_cannot_be_written() {
    let folder = Folder::new();
    let path = folder.text("weights.safetensors");
    std::fs::copy(DEMO_WEIGHTS, &path).unwrap();
    refused(&["quantize", "demo", "--recipe", "w6a8", "-o", "/proc/out"], 1, &["cannot write /proc/out.partial"]);
    refused(&["quantize", &path, "--format", "fp6", "-o", "/dev/null/out"], 1, &["cannot write /dev/null/out.partial"]);
    refused(&["quantize", &path, "--format", "fp6", "-o", &folder.text("")], 1, &["is a directory"]);
}

#[test]
fn a_disk_that_is_full_or_read_only() {
    let folder = Folder::new();
    let Some(small) = Small::mount(&folder, "1m", "quantize's a_disk_that_is_full_or_read_only") else { return };
    let file = folder.text("weights.safetensors");
    std::fs::copy(DEMO_WEIGHTS, &file).unwrap();
    let (model_out, file_out) = (folder.text("small/model"), folder.text("small/out.safetensors"));
    let model = vec!["quantize", "demo", "--recipe", "w6a8", "-o", &model_out];
    let file = vec!["quantize", &file, "--format", "fp6_e2m3", "-o", &file_out];
    runs_out_of_room(&folder, &small, &[model, file]);
}

#[test]
fn a_file_with_infinities() {
    let folder = Folder::new();
    let mut values = vec![0.5f32; 2 * 64];
    (values[3], values[70]) = (f32::INFINITY, f32::NAN);
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    let view = || safetensors::tensor::TensorView::new(Dtype::F32, vec![2, 64], &bytes).unwrap();
    let path = folder.path("in.safetensors");
    std::fs::write(&path, safetensors::serialize([("a", view()), ("b", view())], None).unwrap()).unwrap();
    let (source, output) = (folder.text("in.safetensors"), folder.text("out.safetensors"));
    let arguments =
        ["quantize", &source, "--format", "int8", "--scale-rule", "even", "--block-size", "16", "-o", &output];
    let said = succeeds(&arguments);
    let warnings: Vec<&str> = said.lines().filter(|line| line.starts_with("warning")).collect();
    assert!(matches!(warnings[..], [one] if one.contains("4 blocks") && one.contains("infinities or NaN")), "{said}");
    let bytes = std::fs::read(&output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let (codes, scales) = (file.tensor("a").unwrap(), file.tensor("a_scale").unwrap());
    assert_eq!((codes.dtype(), codes.shape()), (Dtype::I8, &[2, 64][..]));
    assert_eq!(
        scales.data().iter().map(|&scale| scale == 0xFF).collect::<Vec<_>>(),
        [true, false, false, false, true, false, false, false]
    );
    succeeds(&["quantize", &source, "--format", "fp4", "--tensor", "^b$", "--unpacked", "-o", &output]); // replaces it
    let bytes = std::fs::read(&output).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!((file.tensor("a").unwrap().dtype(), file.tensor("b").unwrap().shape()), (Dtype::F32, &[2, 64][..]));
    succeeds(&["dequantize", &output, "-o", &folder.text("back"), "--dtype", "f32"]);
}

#[test]
fn usage_of_quantize() {
    let folder = Folder::new();
    let output = folder.text("out");
    let file = DEMO_WEIGHTS;
    let quantize = |arguments: &[&str], code: i32, words: &[&str]| {
        refused(&[&["quantize", "-o", &output], arguments].concat(), code, words);
    };
    quantize(&["demo"], 2, &["--recipe"]);
    quantize(&["demo", "--recipe", "w6a9"], 2, &["w6a9", "did you mean"]);
    quantize(&["demo", "--recipe", "w6a8", "--format", "fp6"], 2, &["--format"]);
    quantize(&["demo", "--recipe", "w6a8", "--tensor", "x"], 2, &["--tensor"]);
    quantize(&["demo", "--recipe", "w6a8", "--scale-rule", "up"], 2, &["unknown rule", "floor, ceil"]);
    quantize(&["demo", "--recipe", "w6a8", "--shard-size", "1XB"], 2, &["KiB, MiB or GiB"]);
    quantize(&["demo", "--format", "fp6"], 2, &["--recipe"]);
    quantize(&["demo", "--recipe", "bf16"], 1, &["leaves every weight bf16"]);
    quantize(&[file, "--recipe", "w6a8"], 2, &["is a file", "--format"]);
    quantize(&[file, "--format", "fp7"], 2, &["unknown format", "fp6_e2m3"]);
    quantize(&[file, "--format", "fp6", "--tensor", "["], 2, &["regex"]);
    quantize(&[file, "--format", "fp6", "--tensor", "nothing"], 1, &["no float matrix"]);
    quantize(&["no.safetensors", "--format", "fp6"], 1, &["no.safetensors: no such file"]);
    refused(&["dequantize", file, "-o", &output], 1, &["nothing to dequantize"]);
    assert!(!Path::new(&output).exists());
}
