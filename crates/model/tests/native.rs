//! The native layout: what is written is what quantizing while loading would compute with, whatever ended the work.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use half::bf16;
use microscale_formats::{E2M3, ScaleRule, Ties};
use microscale_model::{
    Checkpoint, Dtype, Ending, Error, FileQuantization, Float, Llama, ModelOutput, Progress, Recipe, TensorSource,
    Transferred, dequantize_file, dequantize_model, partial_path, quantize_file, quantize_model,
};
use microscale_tensor::{BlockFormat, Cpu, MxTensor, WeightMatrix};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Values around zero of magnitudes that differ by three octaves.
    fn value(&mut self) -> f32 {
        let x = (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
        x * 2f32.powi(-(self.below(4) as i32))
    }

    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

/// A LLaMA, or a Qwen2 with biases, whose rows are no multiples of a block, and the intermediate size is odd.
fn config(architecture: &str, tied: bool) -> Value {
    json!({
        "architectures": [architecture], "hidden_size": 72, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 18, "vocab_size": 96, "intermediate_size": 75, "num_hidden_layers": 2, "tie_word_embeddings": tied,
        "max_position_embeddings": 64,
    })
}

fn tensors(config: &Value, dtype: Dtype) -> Tensors {
    let size = |key: &str| config[key].as_u64().unwrap() as usize;
    let (hidden, inner, vocabulary) = (size("hidden_size"), size("intermediate_size"), size("vocab_size"));
    let head_dim = size("head_dim");
    let (q, kv) = (size("num_attention_heads") * head_dim, size("num_key_value_heads") * head_dim);
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if config["tie_word_embeddings"] == false {
        shapes.push(("lm_head.weight".to_owned(), vec![vocabulary, hidden]));
    }
    for layer in 0..size("num_hidden_layers") {
        let mut add =
            |name: &str, shape: &[usize]| shapes.push((format!("model.layers.{layer}.{name}"), shape.to_vec()));
        add("input_layernorm.weight", &[hidden]);
        add("post_attention_layernorm.weight", &[hidden]);
        for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
            add(&format!("self_attn.{name}_proj.weight"), &[rows, hidden]);
            if config["architectures"][0] == "Qwen2ForCausalLM" {
                add(&format!("self_attn.{name}_proj.bias"), &[rows]);
            }
        }
        add("self_attn.o_proj.weight", &[hidden, q]);
        add("mlp.gate_proj.weight", &[inner, hidden]);
        add("mlp.up_proj.weight", &[inner, hidden]);
        add("mlp.down_proj.weight", &[hidden, inner]);
    }
    let mut random = Random(5);
    let mut tensor = |shape: &[usize]| {
        let values = random.values(shape.iter().product());
        match dtype {
            Dtype::F32 => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
            _ => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect::<Vec<u8>>(),
        }
    };
    shapes.into_iter().map(|(name, shape)| (name, (dtype, shape.clone(), tensor(&shape)))).collect()
}

fn serialize(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, Some([("format".to_owned(), "pt".to_owned())].into())).unwrap()
}

/// A model directory, and room beside it.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(config: &Value, tensors: &Tensors) -> Folder {
        let folder = Folder(tempfile::tempdir().unwrap());
        std::fs::create_dir(folder.path("model")).unwrap();
        std::fs::write(folder.path("model/config.json"), config.to_string()).unwrap();
        std::fs::write(folder.path("model/tokenizer.json"), "{}").unwrap();
        std::fs::write(folder.path("model/LICENSE.txt"), "free").unwrap();
        folder.write_weights(tensors);
        folder
    }

    fn write_weights(&self, tensors: &Tensors) {
        std::fs::write(self.path("model/model.safetensors"), serialize(tensors)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self) -> Checkpoint {
        Checkpoint::open(&self.path("model")).unwrap()
    }

    fn quantize(&self, recipe: &str, output: &str, shard_size: usize) -> Result<Transferred, Error> {
        let options = ModelOutput { shard_size, ..ModelOutput::default() };
        let recipe = Recipe::parse(recipe).unwrap();
        quantize_model(&self.open(), &recipe, &self.path(output), &options, &go_on)
    }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Every file of a directory, by name.
fn content(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        (path.file_name().unwrap().to_str().unwrap().to_owned(), std::fs::read(&path).unwrap())
    };
    std::fs::read_dir(directory).unwrap().map(read).collect()
}

fn logits(checkpoint: &Checkpoint, recipe: &Recipe) -> Vec<u16> {
    let tokens: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 96).collect();
    let model = Llama::load(Cpu::new(), checkpoint, &recipe.clone().for_scoring()).unwrap();
    model.logits(&tokens).unwrap().values().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn logits_are_those_of_quantizing_while_loading() {
    for (architecture, tied, dtype) in [
        ("LlamaForCausalLM", false, Dtype::BF16),
        ("LlamaForCausalLM", true, Dtype::F32),
        ("Qwen2ForCausalLM", true, Dtype::BF16),
    ] {
        let config = config(architecture, tied);
        let folder = Folder::new(&config, &tensors(&config, dtype));
        let original = folder.open();
        let mixed = "proj=int8/fp8,mlp=bf16/fp6,head=fp6_e2m3/bf16,rule=mse,block=16";
        for name in ["w6a8", "w4a4", "int8", "w6a8-attn6", "w8a8", mixed, "proj=fp4,mlp=fp4,head=bf16"] {
            let output = format!("{name}-out");
            let done = folder.quantize(name, &output, 30_000).unwrap();
            assert_eq!((done.ending, done.bytes_resumed), (Ending::Complete, 0));
            let packed = Checkpoint::open(&folder.path(&output)).unwrap();
            let recipe = Recipe::parse(name).unwrap();
            let stored = packed.quantization().unwrap();
            assert_eq!((&stored.recipe, &stored.source_sha256), (&recipe, &original.hash()), "{name}");
            assert!(logits(&packed, &recipe) == logits(&original, &recipe), "{architecture} {name}");
            let files = content(&folder.path(&output));
            assert!(files.contains_key("model.safetensors.index.json") && files.contains_key("LICENSE.txt"));
            assert_eq!(files["config.json"], config.to_string().into_bytes());
            assert!(files.keys().all(|file| !file.contains("journal")), "{files:?}");
        }
    }
}

#[test]
fn files_are_plain_ones_of_the_documented_layout() {
    let config = config("LlamaForCausalLM", true);
    let mut source = tensors(&config, Dtype::BF16);
    source.insert("unused.counter".to_owned(), (Dtype::I64, vec![1], vec![7; 8]));
    source.insert("lm_head.weight".to_owned(), source["model.embed_tokens.weight"].clone()); // the model is tied
    let folder = Folder::new(&config, &source);
    folder.quantize("w4a8", "out", usize::MAX).unwrap();
    let bytes = std::fs::read(folder.path("out/model.safetensors")).unwrap();
    let (header, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let notes = metadata.metadata().as_ref().unwrap();
    assert_eq!((notes["format"].as_str(), notes["microscale.layout"].as_str()), ("pt", "1"));
    assert!(
        header % 8 == 0 && metadata.tensors().values().all(|t| t.dtype != Dtype::BF16 || t.data_offsets.0 % 2 == 0)
    );
    let file = SafeTensors::deserialize(&bytes).unwrap();
    for (name, from) in [
        ("lm_head.weight", "model.embed_tokens.weight"),
        ("model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"),
    ] {
        let (_, shape, values) = &source[from];
        let values: Vec<bf16> = values.as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x)).collect();
        let expected = MxTensor::quantize(&values, shape, 1, microscale_formats::E2M1.into()).unwrap();
        let (codes, scales) = (file.tensor(name).unwrap(), file.tensor(&format!("{name}_scale")).unwrap());
        assert_eq!((codes.dtype(), codes.shape()), (Dtype::U8, &[shape[0], shape[1].div_ceil(2)][..]));
        assert_eq!((scales.dtype(), scales.shape()), (Dtype::U8, &[shape[0], shape[1].div_ceil(32)][..]));
        assert_eq!(codes.data(), expected.packed_codes());
        assert!(scales.data().iter().zip(expected.scales()).all(|(byte, scale)| *byte == scale.0));
    }
    let embedding = file.tensor("model.embed_tokens.weight").unwrap();
    assert_eq!((embedding.dtype(), embedding.data()), (Dtype::BF16, &source["model.embed_tokens.weight"].2[..]));
    assert_eq!(file.tensor("unused.counter").unwrap().data(), [7; 8]);
    folder.quantize("int8", "integers", usize::MAX).unwrap();
    let bytes = std::fs::read(folder.path("integers/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("model.layers.0.self_attn.q_proj.weight").unwrap().dtype(), Dtype::I8);
}

#[test]
fn other_weights_than_the_stored_are_refused() {
    let config = config("LlamaForCausalLM", false);
    let folder = Folder::new(&config, &tensors(&config, Dtype::BF16));
    folder.quantize("w6a8", "out", usize::MAX).unwrap();
    let packed = Checkpoint::open(&folder.path("out")).unwrap();
    let check = |name: &str| packed.check_recipe(&Recipe::parse(name).unwrap()).map_err(|e| e.to_string());
    for same in ["w6a8", "w6a6", "w6a4-attn8-v4", "proj=fp6/bf16,mlp=fp6/int8"] {
        check(same).unwrap();
    }
    for (other, words) in [
        ("bf16", ["projection_weight in fp6_e3m2", "asks for bf16"]),
        ("w4a8", ["projection_weight in fp6_e3m2", "asks for fp4_e2m1"]),
        ("proj=fp6/fp8,mlp=fp6_e2m3/fp8", ["mlp_weight in fp6_e3m2", "asks for fp6_e2m3"]),
        ("proj=fp6,mlp=fp6,head=bf16", ["head_weight in fp6_e3m2", "asks for bf16"]),
        ("proj=fp6,mlp=fp6,rule=even", ["scale rule floor", "scale rule even"]),
        ("proj=fp6,mlp=fp6,block=16", ["blocks of 32", "blocks of 16"]),
    ] {
        let message = check(other).unwrap_err();
        assert!(words.iter().all(|word| message.contains(word)), "{message}");
        let loaded = Llama::load(Cpu::new(), &packed, &Recipe::parse(other).unwrap());
        assert_eq!(loaded.err().unwrap().to_string(), message);
    }
    let again = folder.path("again");
    let recipe = Recipe::parse("w6a8").unwrap();
    let twice = quantize_model(&packed, &recipe, &again, &ModelOutput::default(), &go_on);
    assert!(twice.unwrap_err().to_string().contains("is quantized already, by recipe w6a8"));
    let nothing = folder.quantize("proj=bf16/fp8,attn=fp6", "none", 1).unwrap_err().to_string();
    assert!(nothing.contains("leaves every weight bf16"), "{nothing}");
}

#[test]
fn dequantized_and_quantized_again_nothing_changes() {
    let config = config("Qwen2ForCausalLM", true);
    let folder = Folder::new(&config, &tensors(&config, Dtype::BF16));
    for (recipe, to) in [("w6a8", Float::Bf16), ("int8", Float::F32), ("w4a4", Float::Bf16)] {
        let path = |part: &str| folder.path(&format!("{recipe}-{part}"));
        folder.quantize(recipe, &format!("{recipe}-packed"), 50_000).unwrap();
        let packed = Checkpoint::open(&path("packed")).unwrap();
        let options = ModelOutput { shard_size: 100_000, ..ModelOutput::default() };
        dequantize_model(&packed, &path("plain"), to, &options, &go_on).unwrap();
        let plain = Checkpoint::open(&path("plain")).unwrap();
        assert!(plain.quantization().is_none() && !plain.config().tie_word_embeddings);
        let recipe = Recipe::parse(recipe).unwrap();
        for name in ["lm_head.weight", "model.layers.0.mlp.down_proj.weight"] {
            let shape = packed.packed(name).unwrap().shape;
            let format = packed.packed(name).unwrap().format;
            let WeightMatrix::Mx(stored) = packed.weight(name, shape, Some(format)).unwrap() else { panic!("{name}") };
            let values: Vec<f32> = plain.read(name, &shape).unwrap().iter().map(|x| x.to_f32()).collect();
            assert_eq!(values, stored.dequantize(), "{name}");
        }
        assert!(logits(&plain, &recipe) == logits(&packed, &recipe), "{}", recipe.name);
        assert_eq!(
            dequantize_model(&packed, &path("plain"), to, &options, &go_on).unwrap().ending,
            Ending::AlreadyThere
        );
    }
}

/// The work is ended after so many slices; what is left is not under the final name, and the next run goes on.
#[test]
fn interrupted_work_goes_on() {
    let config = config("LlamaForCausalLM", false);
    let weights = tensors(&config, Dtype::BF16);
    let folder = Folder::new(&config, &weights);
    let whole = folder.quantize("w6a8", "whole", 40_000).unwrap();
    let expected = content(&folder.path("whole"));
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let run = |recipe: &str, slices: usize| {
        let (recipe, options) =
            (Recipe::parse(recipe).unwrap(), ModelOutput { shard_size: 40_000, ..ModelOutput::default() });
        let calls = AtomicUsize::new(0);
        let stop = |_: Progress| match calls.fetch_add(1, Ordering::Relaxed) {
            n if n == slices => ControlFlow::Break(()), // the first call is of the hash
            _ => ControlFlow::Continue(()),
        };
        pool.install(|| quantize_model(&folder.open(), &recipe, &folder.path("out"), &options, &stop)).unwrap()
    };
    let mut resumed = 0;
    for slices in [2, 5, 3] {
        let done = run("w6a8", slices);
        assert_eq!(done.ending, Ending::Interrupted);
        assert!(!folder.path("out").exists() && partial_path(&folder.path("out")).exists());
        assert!(done.bytes_resumed >= resumed, "{} after {resumed}", done.bytes_resumed);
        resumed = done.bytes_resumed + 1;
    }
    // A journal's last line may be cut off.
    let journal = folder.path("out.partial/microscale.journal");
    let text = std::fs::read_to_string(&journal).unwrap();
    std::fs::write(&journal, &text[..text.len() - 2]).unwrap();
    let done = run("w6a8", usize::MAX);
    assert_eq!((done.ending, done.bytes_resumed > resumed), (Ending::Complete, true));
    assert_eq!(done.quantized_bytes, whole.quantized_bytes);
    assert!(content(&folder.path("out")) == expected && !partial_path(&folder.path("out")).exists());
    assert_eq!(run("w6a8", usize::MAX).ending, Ending::AlreadyThere);

    // What was made of another source, or for another recipe, is not trusted: not even if only the last byte differs.
    std::fs::remove_dir_all(folder.path("out")).unwrap();
    run("w6a8", 9);
    let mut other = weights.clone();
    *other.get_mut("model.norm.weight").unwrap().2.last_mut().unwrap() ^= 1;
    folder.write_weights(&other);
    let done = run("w6a8", 7);
    assert_eq!((done.ending, done.bytes_resumed), (Ending::Interrupted, 0));
    folder.write_weights(&weights); // what the second source gave is not trusted for the first
    assert_eq!((run("w6a8", 4).bytes_resumed, run("w4a8", 6).bytes_resumed), (0, 0));
    let done = run("w6a8", usize::MAX);
    assert_eq!((done.ending, done.bytes_resumed), (Ending::Complete, 0));
    assert!(content(&folder.path("out")) == expected);
}

#[test]
fn outputs_that_are_in_the_way() {
    let config = config("LlamaForCausalLM", false);
    let folder = Folder::new(&config, &tensors(&config, Dtype::BF16));
    let refused = |recipe: &str, output: &str, words: &str| {
        let message = folder.quantize(recipe, output, 1 << 20).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    };
    std::fs::create_dir(folder.path("empty")).unwrap();
    folder.quantize("w6a8", "empty", 1 << 20).unwrap();
    refused("w4a8", "empty", "exists and is no output of the same command");
    refused("w6a8", "model", "exists and is no output of the same command");
    refused("w6a8", "..", "is no name for an output");
    std::fs::create_dir(folder.path("taken.partial")).unwrap();
    std::fs::write(folder.path("taken.partial/mine"), "precious").unwrap();
    refused("w6a8", "taken", "is in the way");
    assert_eq!(std::fs::read(folder.path("taken.partial/mine")).unwrap(), b"precious");
    refused("w6a8", "model/config.json/out", "cannot write");
    let format = FileQuantization { format: E2M3.into(), ties: Ties::Even, unpacked: false, select: &|_| true };
    let source = folder.path("model/model.safetensors");
    let itself = quantize_file(&source, &source, &format, &go_on).unwrap_err().to_string();
    assert!(itself.contains("is the source itself"), "{itself}");
}

#[test]
fn weights_that_are_not_finite() {
    let config = config("LlamaForCausalLM", false);
    for (name, dtype) in [
        ("model.layers.1.mlp.up_proj.weight", Dtype::F32),
        ("model.layers.0.self_attn.k_proj.weight", Dtype::BF16),
        ("model.norm.weight", Dtype::BF16),
    ] {
        let mut weights = tensors(&config, dtype);
        let bytes = &mut weights.get_mut(name).unwrap().2;
        for at in [0, 1, 60] {
            match dtype {
                Dtype::F32 => bytes[at * 4..][..4].copy_from_slice(&f32::MAX.to_le_bytes()), // infinite as bf16
                _ => bytes[at * 2..][..2].copy_from_slice(&bf16::NAN.to_le_bytes()),
            }
        }
        let folder = Folder::new(&config, &weights);
        let message = folder.quantize("w6a8", "out", 1 << 20).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(": 3 of ") && message.contains("not finite"), "{message}");
        assert!(!folder.path("out").exists() && !partial_path(&folder.path("out")).exists());
        let options = ModelOutput { allow_not_finite: true, ..ModelOutput::default() };
        let recipe = Recipe::parse("w6a8").unwrap();
        let done = quantize_model(&folder.open(), &recipe, &folder.path("out"), &options, &go_on).unwrap();
        let count = if name.contains("norm") { 3 } else { 2 }; // values, or blocks
        assert_eq!(done.not_finite, [(name.to_owned(), count)]);
        let packed = Checkpoint::open(&folder.path("out")).unwrap();
        let message = Llama::load(Cpu::new(), &packed, &recipe).err().unwrap().to_string();
        assert!(message.contains(name) && message.contains("not finite"), "{message}");
    }
}

/// Matrices of three types, one with an odd length and one with infinities, and what is no float matrix.
fn loose() -> Tensors {
    let mut random = Random(11);
    let mut f32s = random.values(3 * 45);
    f32s[7] = 1.0 + f32::EPSILON; // no bf16 value
    let mut poisoned = random.values(4 * 64);
    (poisoned[5], poisoned[130]) = (f32::NAN, f32::INFINITY);
    let bytes32 = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let halves: Vec<u8> = random.values(2 * 33).iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
    [
        ("a.weight", (Dtype::F32, vec![3, 45], bytes32(&f32s))),
        ("b.weight", (Dtype::F16, vec![2, 33], halves)),
        ("poisoned", (Dtype::F32, vec![4, 64], bytes32(&poisoned))),
        ("bias", (Dtype::F32, vec![3], vec![1; 12])),
        ("ids", (Dtype::I64, vec![2, 2], vec![2; 32])),
        ("none", (Dtype::F32, vec![0, 4], vec![])),
        ("stack", (Dtype::F16, vec![2, 2, 2], vec![3; 16])),
    ]
    .into_iter()
    .map(|(name, tensor)| (name.to_owned(), tensor))
    .collect()
}

#[test]
fn a_file_that_is_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let tensors = loose();
    std::fs::write(path("in"), serialize(&tensors)).unwrap();
    let format = BlockFormat { element: E2M3, block_size: 32, scale_rule: ScaleRule::Even };
    for unpacked in [false, true] {
        let options = FileQuantization { format, ties: Ties::Even, unpacked, select: &|_| true };
        let done = quantize_file(&path("in"), &path("out"), &options, &go_on).unwrap();
        assert_eq!(done.not_finite, [("poisoned".to_owned(), 2)]);
        assert!(!path("out.partial").exists());
        let bytes = std::fs::read(path("out")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        for name in ["bias", "ids", "none", "stack"] {
            assert_eq!(file.tensor(name).unwrap().data(), tensors[name].2, "{name}");
        }
        for name in ["a.weight", "b.weight", "poisoned"] {
            let (dtype, shape, bytes) = &tensors[name];
            let values: Vec<f32> = match dtype {
                Dtype::F32 => bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
                _ => bytes.as_chunks::<2>().0.iter().map(|x| half::f16::from_le_bytes(*x).to_f32()).collect(),
            };
            let expected = MxTensor::quantize(&values, shape, 1, format).unwrap();
            let (codes, scales) = (file.tensor(name).unwrap(), file.tensor(&format!("{name}_scale")).unwrap());
            assert!(scales.data().iter().zip(expected.scales()).all(|(byte, scale)| *byte == scale.0), "{name}");
            let mut row = vec![0; shape[1]];
            let width = expected.packed_codes().len() / shape[0];
            for (i, packed) in expected.packed_codes().chunks(width).enumerate() {
                microscale_formats::unpack(packed, 6, &mut row);
                let expected = if unpacked { &row[..] } else { packed };
                assert_eq!(&codes.data()[i * expected.len()..][..expected.len()], expected, "{name}, row {i}");
            }
        }
        for to in [Float::Bf16, Float::F32] {
            dequantize_file(&path("out"), &path("back"), to, &go_on).unwrap();
            let bytes = std::fs::read(path("back")).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            assert_eq!(file.len(), tensors.len());
            let back = file.tensor("poisoned").unwrap();
            let values: Vec<f32> = match to {
                Float::F32 => back.data().as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect(),
                Float::Bf16 => {
                    back.data().as_chunks::<2>().0.iter().map(|x| bf16::from_le_bytes(*x).to_f32()).collect()
                }
            };
            assert_eq!(values.iter().filter(|x| x.is_nan()).count(), 64);
            assert!(
                values[40] != 0.0
                    && (values[40] / f32::from_le_bytes(tensors["poisoned"].2[160..164].try_into().unwrap()) - 1.0)
                        .abs()
                        < 0.3
            );
        }
    }
    let options =
        FileQuantization { format, ties: Ties::Even, unpacked: false, select: &|name| name.starts_with("a.") };
    quantize_file(&path("in"), &path("one"), &options, &go_on).unwrap();
    let bytes = std::fs::read(path("one")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!((file.len(), file.tensor("b.weight").unwrap().dtype()), (tensors.len() + 1, Dtype::F16));
    let error = |result: Result<Transferred, Error>| result.unwrap_err().to_string();
    assert!(error(quantize_file(&path("one"), &path("two"), &options, &go_on)).contains("quantized already"));
    assert!(error(dequantize_file(&path("in"), &path("two"), Float::F32, &go_on)).contains("nothing to dequantize"));
    let none = FileQuantization { select: &|name| name == "bias", ..options };
    assert!(error(quantize_file(&path("in"), &path("two"), &none, &go_on)).contains("no float matrix"));
    let mut clash = tensors;
    clash.insert("a.weight_scale".to_owned(), (Dtype::U8, vec![1], vec![0]));
    std::fs::write(path("in"), serialize(&clash)).unwrap();
    assert!(
        error(quantize_file(&path("in"), &path("two"), &options, &go_on)).contains("tensor a.weight_scale: the scales")
    );
}
