//! The binary as a user meets it: exit codes, where output goes, and what bad input is told.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

fn microscale(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    let data = tempfile::tempdir().unwrap(); // of its own: no score of another test is reused
    command.args(arguments).env("XDG_DATA_HOME", data.path());
    command.env("HF_HUB_OFFLINE", "1").env_remove("MICROSCALE_ISA").output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The command fails with this code, prints nothing to standard output, and says one line that holds `words`.
fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = microscale(arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
    assert!(output.stdout.is_empty(), "{arguments:?}");
    assert!(!error.contains("panicked"), "{arguments:?}: {error}");
    if code == 1 {
        assert_eq!(error.lines().filter(|l| l.starts_with("error:")).count(), 1, "{arguments:?}: {error}");
    }
    for word in words {
        assert!(error.contains(word), "{arguments:?}: no {word:?} in {error}");
    }
}

#[test]
fn the_table_as_json_has_the_documented_schema() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("table.json");
    let arguments = ["table", "--recipe", "w6a8", "--recipe", "bf16", "--limit", "3", "--format", "json", "--output"];
    let output = microscale(&[&arguments[..], &[file.to_str().unwrap()]].concat());
    assert!(output.status.success() && output.stdout.is_empty());
    let report: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.iter().map(|r| r["recipe"].as_str().unwrap()).collect::<Vec<_>>(), ["bf16", "w6a8"]);
    assert!(rows[0]["delta"].is_null() && rows[1]["delta"].is_f64());
    assert_eq!(rows[1]["roles"]["projection_weight"], "fp6_e3m2");
    assert_eq!(rows[1]["roles"]["head_activation"], "fp8_e4m3");
    assert_eq!(rows[0]["roles"].as_object().unwrap().len(), 10);
    let piqa = &rows[0]["tasks"]["piqa"];
    assert_eq!(piqa["n"], 3);
    assert!((0.0..=1.0).contains(&piqa["acc_norm"].as_f64().unwrap()));
    assert!(rows[0]["tasks"]["winogrande"]["acc_norm"].is_null());
    for key in ["model_sha256", "scale_rule", "instruction_set", "threads", "seed", "tokens_per_second", "value_blocks"]
    {
        assert!(!report["manifest"][key].is_null(), "{key}");
    }
}

#[test]
fn every_form_of_the_table_and_nothing_else_on_standard_output() {
    for (form, first) in [("text", "─"), ("markdown", "|"), ("csv", "model,recipe"), ("json", "{")] {
        let output = microscale(&["table", "--recipe", "w4a4", "--limit", "2", "--format", form]);
        assert!(output.status.success(), "{form}");
        assert!(stdout(&output).starts_with(first), "{form}: {}", stdout(&output));
    }
}

#[test]
fn eval_writes_lm_eval_s_files() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().to_str().unwrap();
    let arguments = ["eval", "demo", "--recipe", "w6a8", "--tasks", "piqa,winogrande", "--limit", "3", "--samples"];
    let output = microscale(&[&arguments[..], &["--output", out]].concat());
    assert!(output.status.success());
    let text = stdout(&output);
    let paths: Vec<&str> = text.lines().collect();
    assert_eq!(paths.len(), 3, "two tasks and the results: {paths:?}");
    assert_eq!(std::fs::read_to_string(paths[0]).unwrap().lines().count(), 3);
    let results: Value = serde_json::from_slice(&std::fs::read(paths[2]).unwrap()).unwrap();
    assert_eq!(results["n-samples"]["piqa"]["effective"], 3);
    assert_eq!(results["config"]["model_args"]["recipe"], "w6a8");
    assert!(results["results"]["winogrande"]["acc,none"].is_f64());
}

#[test]
fn logits_are_the_library_s() {
    use microscale::model::{Llama, Recipe};
    let folder = tempfile::tempdir().unwrap();
    let (ids, file) = (folder.path().join("ids.json"), folder.path().join("logits.safetensors"));
    let tokens = [0, 17, 400, 1279];
    std::fs::write(&ids, serde_json::to_vec(&tokens).unwrap()).unwrap();
    let arguments = ["logits", "demo", "--recipe", "w4a8", "--batch-size", "1", "--value-blocks", "causal"];
    let paths = ["--tokens", ids.to_str().unwrap(), "--output", file.to_str().unwrap()];
    assert!(microscale(&[&arguments[..], &paths].concat()).status.success());
    let bytes = std::fs::read(&file).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let logits = tensors.tensor("logits").unwrap();
    let recipe = Recipe::parse("w4a8").unwrap().for_scoring();
    let model = Llama::load(microscale::tensor::Cpu::new(), &microscale::demo::checkpoint().unwrap(), &recipe).unwrap();
    let expected: Vec<u8> = model.logits(&tokens).unwrap().values().iter().flat_map(|x| x.to_le_bytes()).collect();
    assert_eq!((logits.shape(), logits.dtype()), (&[4, 1280][..], safetensors::Dtype::BF16));
    assert!(logits.data() == expected);
}

#[test]
fn help_of_every_command() {
    let commands = "table eval perplexity runs generate bench logits quantize dequantize compare conform convert recipes \
                    inspect doctor";
    for command in commands.split_whitespace() {
        let output = microscale(&[command, "--help"]);
        assert!(output.status.success() && stdout(&output).contains("Usage: microscale"), "{command}");
    }
}

#[test]
fn wrong_usage_ends_with_2() {
    refused(&["table", "--recipe", "w6a9"], 2, &["w6a9", "did you mean"]);
    refused(&["table", "--recipe", "proj=fp7"], 2, &["fp7", "did you mean"]);
    refused(&["table", "--recipe", "no-such.toml"], 2, &["no-such.toml"]);
    refused(&["table", "--tasks", "piqqa"], 2, &["piqqa", "piqa"]);
    refused(&["table", "--limit", "0"], 2, &["above 0"]);
    refused(&["table", "--threads", "0"], 2, &["--threads"]);
    refused(&["tabel"], 2, &["table"]);
    refused(&["logits", "demo", "--tokens", "1,x", "--output", "x"], 2, &["\"x\""]);
}

#[test]
fn an_instruction_set_that_is_not_there_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    let output = command.args(["doctor"]).env("MICROSCALE_ISA", "avx1024").output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && error.contains("avx1024") && error.contains("scalar"), "{error}");
}

#[test]
fn what_cannot_be_done_ends_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    refused(&["table", "no/such/model/folder"], 1, &["no/such/model/folder"]);
    refused(&["table", "owner/name"], 1, &["owner/name", "HF_HUB_OFFLINE"]);
    refused(&["inspect", folder.path().to_str().unwrap()], 1, &["config.json"]);
    refused(&["logits", "demo", "--tokens", "1,2,99999", "--output", &path("l")], 1, &["99999", "vocabulary"]);
    refused(&["logits", "demo", "--tokens", &path("t.json"), "--output", &path("l")], 1, &["t.json"]);
    std::fs::write(path("t.json"), "[1, -2]").unwrap();
    refused(&["logits", "demo", "--tokens", &path("t.json"), "--output", &path("l")], 1, &["t.json", "token ids"]);
    std::fs::write(path("mine.jsonl"), "{\"query\":\"a\",\"choices\":[\"b\"],\"gold\":0}\n{\"query\":1}\n").unwrap();
    refused(&["table", "--data", folder.path().to_str().unwrap()], 1, &["mine.jsonl", "2"]);
    refused(&["table", "--limit", "1", "--recipe", "bf16", "--output", "/dev/null/x"], 1, &["/dev/null"]);
}

#[test]
fn damaged_models_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model"));
    let model = |name: &str, file: &str, change: &dyn Fn(&mut Vec<u8>)| -> String {
        let to = folder.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for file in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(demo.join(file), to.join(file)).unwrap();
        }
        let mut bytes = std::fs::read(to.join(file)).unwrap();
        change(&mut bytes);
        std::fs::write(to.join(file), bytes).unwrap();
        to.to_str().unwrap().to_owned()
    };
    let cut = model("cut", "model.safetensors", &|b| b.truncate(100_000));
    refused(&["inspect", &cut], 1, &["model.safetensors"]);
    let poisoned = model("poisoned", "model.safetensors", &|b| {
        let n = b.len();
        b[n - 2..].copy_from_slice(&0x7FC0u16.to_le_bytes());
    });
    let out = folder.path().join("l");
    refused(
        &["logits", &poisoned, "--tokens", "1", "--output", out.to_str().unwrap()],
        1,
        &["1 ", "model.safetensors"],
    );
    let other = model("other", "config.json", &|b| {
        *b = String::from_utf8(b.clone()).unwrap().replace("LlamaForCausalLM", "MambaForCausalLM").into_bytes();
    });
    refused(&["inspect", &other], 1, &["MambaForCausalLM", "LlamaForCausalLM"]);
}

const PROMPT: &str = "Question: Where does the";

fn generate(arguments: &[&str]) -> Output {
    microscale(&[&["generate", "demo", "--max-tokens", "12"], arguments].concat())
}

#[test]
fn a_generated_text_is_the_library_s_and_always_the_same() {
    use microscale::model::{Generation, Llama, Recipe};
    let arguments = ["--prompt", PROMPT, "--recipe", "w6a8-attn6", "--ignore-eos"];
    let output = generate(&arguments);
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success(), "{error}");
    let last = error.lines().last().unwrap();
    assert!(last.contains(" prompt tokens, 12 generated; prefill ") && last.ends_with("tokens/s"), "{last}");
    for threads in ["1", "3"] {
        assert_eq!(generate(&[&arguments[..], &["--threads", threads]].concat()).stdout, output.stdout);
    }
    let checkpoint = microscale::demo::checkpoint().unwrap();
    let recipe = Recipe::parse("w6a8-attn6").unwrap().for_generation().unwrap();
    let model = Llama::load(microscale::tensor::Cpu::new(), &checkpoint, &recipe).unwrap();
    let tokenizer = checkpoint.tokenizer().unwrap();
    let prompt = tokenizer.encode(PROMPT, true).unwrap();
    let generation = Generation::new(&model, &prompt, &[]).unwrap();
    let tokens: Vec<u32> = generation.take(12).collect::<Result<_, _>>().unwrap();
    let whole = tokenizer.decode(&[prompt, tokens].concat()).unwrap();
    let expected = whole.strip_prefix(PROMPT).unwrap();
    assert_eq!(stdout(&output).trim_end_matches('\n'), expected.trim_end_matches('\n'));
    assert!(stdout(&output).ends_with('\n'));
}

#[test]
fn a_prompt_from_standard_input() {
    use std::io::Write;
    use std::process::Stdio;
    let given = generate(&["--prompt", PROMPT]);
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.args(["generate", "demo", "--max-tokens", "12", "--prompt", "-"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    writeln!(child.stdin.take().unwrap(), "{PROMPT}").unwrap();
    let read = child.wait_with_output().unwrap();
    assert!(read.status.success() && !read.stdout.is_empty());
    assert_eq!(read.stdout, given.stdout);
}

#[test]
fn a_generated_text_ends_where_it_must() {
    let output = microscale(&["generate", "demo", "--prompt", PROMPT, "--max-tokens", "1000", "--ignore-eos"]);
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("256 positions"), "{error}");
    // Nobody reads: the end of the output, not of the world.
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    command.args(["generate", "demo", "--prompt", PROMPT, "--ignore-eos"]).stderr(std::process::Stdio::piped());
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && error.contains("generated"), "{error}");
}

#[test]
fn generation_that_cannot_be() {
    refused(&["generate", "demo"], 2, &["--prompt"]);
    refused(&["generate", "demo", "--prompt", "a", "--max-tokens", "0"], 2, &["--max-tokens"]);
    refused(&["generate", "demo", "--prompt", "a", "--value-blocks", "sequence"], 2, &["sequence", "causal"]);
    refused(&["generate", "demo", "--prompt", "a", "--recipe", "attn=fp6,value-blocks=sequence"], 2, &["causal"]);
    refused(&["generate", "no/such/folder", "--prompt", "a"], 1, &["no/such/folder"]);
    refused(&["generate", "demo", "--prompt", &"one two three ".repeat(200)], 1, &["256 positions", "shorten"]);
}

#[test]
fn a_bench_as_json() {
    let arguments = ["bench", "demo", "--prefill", "8,4", "--decode", "2", "--context", "5", "--repetitions", "2"];
    let output = microscale(&[&arguments[..], &["--recipe", "w6a8", "--recipe", "bf16", "--format", "json"]].concat());
    let error = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(output.status.success() && error.contains("decode 2 after 5"), "{error}");
    let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
    assert!(report["peaks"]["read_gb_s"].as_f64().unwrap() > 0.1);
    assert!(report["peaks"]["bf16_gflop_s"].as_f64().unwrap() > 0.1);
    assert!(report["machine"]["threads"].as_u64().unwrap() > 0 && report["version"].is_string());
    let results = report["results"].as_array().unwrap();
    let what = |r: &Value| format!("{} {} {} {}", r["recipe"], r["phase"], r["tokens"], r["context"]).replace('"', "");
    let expected = ["w6a8 prefill 8 0", "w6a8 prefill 4 0", "w6a8 decode 2 5"].map(str::to_owned).into_iter();
    let expected = expected.clone().chain(expected.map(|line| line.replace("w6a8", "bf16")));
    assert_eq!(results.iter().map(what).collect::<Vec<_>>(), expected.collect::<Vec<_>>());
    let numbers = ["bytes_per_token", "bits_per_weight", "gb_s", "gflop_s", "share_of_read_peak", "share_of_bf16_peak"];
    for result in results {
        assert!(numbers.iter().chain(&["load_s"]).all(|key| result[*key].as_f64().unwrap() > 0.0), "{result}");
        assert_eq!(result["tokens_per_s"]["all"].as_array().unwrap().len(), 2);
        assert_eq!(result["peaks_beside"]["read_gb_s"].as_array().unwrap().len(), 2);
        assert_eq!(result["model"], "demo");
    }
    assert_eq!((&results[2]["bits_per_weight"], &results[5]["bits_per_weight"]), (&6.25.into(), &16.0.into()));
}

#[test]
fn a_bench_waits_for_its_turn() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_microscale"))
        .args(["bench", "demo", "--decode", "2", "--repetitions", "3", "--step", "--format", "csv"])
        .env_remove("MICROSCALE_ISA")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut input, mut lines) =
        (child.stdin.take().unwrap(), BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap));
    assert!(lines.next().unwrap().contains("loaded in"));
    for turn in ["first", "second"] {
        assert!(child.try_wait().unwrap().is_none(), "{turn}: it waits");
        writeln!(input).unwrap();
        assert!(lines.next().unwrap().contains("decode 2"), "{turn}");
    }
    // Without anybody to wait for it goes on.
    drop(input);
    assert!(lines.next().unwrap().contains("decode 2") && lines.next().is_none());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && String::from_utf8(output.stdout).unwrap().lines().count() == 2);
}

#[test]
fn benches_that_cannot_be() {
    refused(&["bench"], 2, &["MODEL", "--shape"]);
    refused(&["bench", "demo", "--shape", "llama-3.2-1b"], 2, &["--shape", "cannot be used with"]);
    refused(&["bench", "--shape", "llama-9"], 2, &["llama-9", "llama-3.2-1b", "llama-3.1-8b", "llama-3.1-70b"]);
    refused(&["bench", "demo", "--prefill", "0"], 2, &["--prefill"]);
    refused(&["bench", "demo", "--repetitions", "0"], 2, &["--repetitions"]);
    refused(&["bench", "demo", "--prefill", "8,257"], 2, &["prefill 257", "256 positions"]);
    refused(&["bench", "demo", "--decode", "8", "--context", "250"], 2, &["decode 8 after 250", "256 positions"]);
    refused(&["bench", "demo", "--recipe", "attn=fp6,value-blocks=sequence"], 2, &["causal"]);
}

/// The stop that Ctrl-C asks for: what is done is printed, and the code says that it is not all.
#[cfg(unix)]
#[test]
fn an_interrupted_run_shows_what_is_done() {
    // Longer on a machine that does something else.
    for seconds in [2, 4, 8, 16] {
        let child = Command::new(env!("CARGO_BIN_EXE_microscale"))
            .args(["table", "--batch-size", "1", "--threads", "1", "--no-store"])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(std::time::Duration::from_secs(seconds));
        assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        if error.contains("before a document was finished") {
            assert!(output.stdout.is_empty() && output.status.code() == Some(1));
            continue;
        }
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(error.contains("interrupted"), "{error}");
        assert!(String::from_utf8(output.stdout).unwrap().contains("demo"));
        return;
    }
    panic!("no document was finished in 16 s");
}
