//! Checkpoints: what is read, what is refused, and that damaged files are errors, never panics.

use std::collections::BTreeMap;
use std::path::Path;

use half::{bf16, f16};
use microscale_model::{Checkpoint, Config, Dtype};
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

/// Two files by name.
type Files<'a> = [(&'a str, &'a [u8]); 2];
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn config_json() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 6, "intermediate_size": 5, "num_hidden_layers": 1, "bos_token_id": 1, "eos_token_id": [2, 3],
    })
}

/// Values 0, 1, 2, … in f32.
fn ramp(shape: &[usize]) -> (Dtype, Vec<usize>, Vec<u8>) {
    let n: usize = shape.iter().product();
    (Dtype::F32, shape.to_vec(), (0..n).flat_map(|i| (i as f32).to_le_bytes()).collect())
}

/// Every tensor that `config_json` calls for.
fn tensors() -> Tensors {
    let shapes: [(&str, &[usize]); 12] = [
        ("model.embed_tokens.weight", &[6, 4]),
        ("model.norm.weight", &[4]),
        ("lm_head.weight", &[6, 4]),
        ("model.layers.0.input_layernorm.weight", &[4]),
        ("model.layers.0.post_attention_layernorm.weight", &[4]),
        ("model.layers.0.self_attn.q_proj.weight", &[4, 4]),
        ("model.layers.0.self_attn.k_proj.weight", &[2, 4]),
        ("model.layers.0.self_attn.v_proj.weight", &[2, 4]),
        ("model.layers.0.self_attn.o_proj.weight", &[4, 4]),
        ("model.layers.0.mlp.gate_proj.weight", &[5, 4]),
        ("model.layers.0.mlp.up_proj.weight", &[5, 4]),
        ("model.layers.0.mlp.down_proj.weight", &[4, 5]),
    ];
    shapes.into_iter().map(|(name, shape)| (name.to_owned(), ramp(shape))).collect()
}

fn serialize(tensors: &Tensors) -> Vec<u8> {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize(views, None).unwrap()
}

fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

fn in_memory(config: &Value, weights: Vec<u8>) -> Result<Checkpoint, String> {
    Checkpoint::from_memory("demo", leak(config.to_string().into_bytes()), leak(weights), b"{}")
        .map_err(|e| e.to_string())
}

/// A directory with these files.
fn directory(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(directory.path().join(name), bytes).unwrap();
    }
    directory
}

fn open_error(path: &Path) -> String {
    let message = Checkpoint::open(path).err().expect("an error").to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

#[test]
fn reads_what_was_written() {
    let mut tensors = tensors();
    tensors.insert("model.layers.0.self_attn.rotary_emb.inv_freq".to_owned(), (Dtype::I64, vec![1], vec![0; 8]));
    let halves: Vec<u8> = [1.0, -2.5, 0.1, 6e-8].iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
    tensors.insert("model.norm.weight".to_owned(), (Dtype::F16, vec![4], halves));
    let (config, weights) = (config_json().to_string(), serialize(&tensors));
    let directory = directory(&[("config.json", config.as_bytes()), ("model.safetensors", &weights)]);
    let opened = Checkpoint::open(directory.path()).unwrap();
    let memory = in_memory(&config_json(), weights.clone()).unwrap();
    assert_eq!(opened.name(), directory.path().file_name().unwrap().to_str().unwrap());
    assert_eq!((memory.name(), memory.config()), ("demo", opened.config()));
    assert_eq!((opened.hash(), opened.hash().len()), (memory.hash(), 64));
    for checkpoint in [&opened, &memory] {
        let embedding = checkpoint.read("model.embed_tokens.weight", &[6, 4]).unwrap();
        assert_eq!(embedding, (0..24).map(|i| bf16::from_f32(i as f32)).collect::<Vec<_>>());
        let norm = checkpoint.read("model.norm.weight", &[4]).unwrap();
        assert_eq!(norm, [1.0, -2.5, f16::from_f32(0.1).to_f32(), f16::from_f32(6e-8).to_f32()].map(bf16::from_f32));
        let infos: Vec<_> = checkpoint.tensors().collect();
        assert_eq!(infos.len(), 13);
        assert!(infos.is_sorted_by_key(|(name, _)| name.to_owned()));
        let (_, extra) = infos.iter().find(|(name, _)| name.ends_with("inv_freq")).unwrap();
        assert_eq!((extra.dtype.to_string().as_str(), extra.bytes, &extra.shape), ("I64", 8, &vec![1]));
        assert!(checkpoint.contains("lm_head.weight") && !checkpoint.contains("lm_head.bias"));
    }
    let mut other = weights;
    *other.last_mut().unwrap() ^= 1;
    assert_ne!(in_memory(&config_json(), other).unwrap().hash(), memory.hash());
}

#[test]
fn large_tensors_round_to_nearest_even() {
    let n = 3 << 18;
    let bits = |i: usize| 0x3F80_0000 + (i as u32) * 0x31; // over many ties and carries
    let mut tensors = tensors();
    let data = (0..n).flat_map(|i| bits(i).to_le_bytes()).collect();
    tensors.insert("large".to_owned(), (Dtype::F32, vec![3, 1 << 18], data));
    let values = in_memory(&config_json(), serialize(&tensors)).unwrap().read("large", &[3, 1 << 18]).unwrap();
    assert!(values.iter().enumerate().all(|(i, y)| *y == bf16::from_f32(f32::from_bits(bits(i)))));
}

#[test]
fn tensors_that_do_not_fit() {
    let error = |change: &dyn Fn(&mut Tensors)| {
        let mut tensors = tensors();
        change(&mut tensors);
        in_memory(&config_json(), serialize(&tensors)).err().unwrap()
    };
    let set = |name: &'static str, dtype: Dtype, shape: Vec<usize>, bytes: usize| {
        error(&move |t: &mut Tensors| {
            t.insert(name.to_owned(), (dtype, shape.clone(), vec![0; bytes]));
        })
    };
    assert_eq!(
        set("model.norm.weight", Dtype::F32, vec![5], 20),
        "demo/model.safetensors: tensor model.norm.weight: shape [5]; expected [4] by config.json"
    );
    assert!(
        set("model.norm.weight", Dtype::F8_E4M3, vec![4], 4).contains("stored as F8_E4M3; expected BF16, F16 or F32")
    );
    assert!(
        set("model.layers.0.self_attn.q_proj.bias", Dtype::F32, vec![4], 16)
            .contains("config.json calls for no such bias")
    );
    let missing = error(&|t| {
        t.remove("lm_head.weight");
    });
    assert!(missing.starts_with("demo: tensor lm_head.weight: missing; expected shape [6, 4]"), "{missing}");
    let not_finite = |dtype, bytes: Vec<u8>| {
        let mut tensors = tensors();
        tensors.insert("model.norm.weight".to_owned(), (dtype, vec![4], bytes));
        let checkpoint = in_memory(&config_json(), serialize(&tensors)).unwrap();
        checkpoint.read("model.norm.weight", &[4]).unwrap_err().to_string()
    };
    let f32s = [f32::NAN, 1.0, f32::MAX, f32::NEG_INFINITY].iter().flat_map(|x| x.to_le_bytes()).collect();
    let message = not_finite(Dtype::F32, f32s);
    assert!(message.contains("model.norm.weight: 3 of 4 values are not finite"), "{message}");
    let bf16s = [bf16::ONE, bf16::INFINITY, bf16::ONE, bf16::ONE].iter().flat_map(|x| x.to_le_bytes()).collect();
    assert!(not_finite(Dtype::BF16, bf16s).contains("1 of 4"));
    let checkpoint = in_memory(&config_json(), serialize(&tensors())).unwrap();
    assert!(checkpoint.read("nothing", &[1]).unwrap_err().to_string().contains("tensor nothing: missing"));
    assert!(checkpoint.read("model.norm.weight", &[2, 2]).unwrap_err().to_string().contains("shape [4]"));
}

#[test]
fn tied_models_and_biases() {
    let mut tied = config_json();
    tied["tie_word_embeddings"] = json!(true);
    in_memory(&tied, serialize(&tensors())).unwrap();
    let mut without_head = tensors();
    without_head.remove("lm_head.weight");
    in_memory(&tied, serialize(&without_head)).unwrap();

    let mut qwen2 = config_json();
    qwen2["architectures"] = json!(["Qwen2ForCausalLM"]);
    let message = in_memory(&qwen2, serialize(&tensors())).err().unwrap();
    assert!(message.contains("model.layers.0.self_attn.q_proj.bias: missing; expected shape [4]"), "{message}");
    let mut biased = tensors();
    for (name, size) in [("q", 4), ("k", 2), ("v", 2)] {
        biased.insert(format!("model.layers.0.self_attn.{name}_proj.bias"), ramp(&[size]));
    }
    in_memory(&qwen2, serialize(&biased)).unwrap();
}

#[test]
fn directories_that_are_none() {
    let config = config_json().to_string();
    let config = config.as_bytes();
    assert!(
        open_error(Path::new("/nonexistent/model")).contains("/nonexistent/model: does not exist; expected a Hugging")
    );
    assert!(open_error(directory(&[]).path()).contains("has no config.json"));
    let file = directory(&[("a", b"")]);
    assert!(open_error(&file.path().join("a")).contains("is not a directory"));
    assert!(open_error(directory(&[("config.json", config)]).path()).contains("has neither model.safetensors nor"));
    let pickled = directory(&[("config.json", config), ("pytorch_model.bin", b"")]);
    assert!(open_error(pickled.path()).contains("pytorch_model.bin cannot be read; convert it"));
    for (bytes, expected) in [
        (&b""[..], "model.safetensors: truncated: it has 0 bytes"),
        (b"1234", "truncated: it has 4 bytes"),
        (&[0xFF; 40], "this is not a safetensors file"),
        (b"\x40\0\0\0\0\0\0\0{}", "truncated: its header has 64 bytes, the file 10"),
        (b"\x02\0\0\0\0\0\0\0{]", "its safetensors header cannot be used"),
        (b"\x02\0\0\0\0\0\0\0{}", "tensor model.embed_tokens.weight: missing"),
        (b"\x02\0\0\0\0\0\0\0{}xy", "2 bytes follow the last tensor"),
    ] {
        let directory = directory(&[("config.json", config), ("model.safetensors", bytes)]);
        let message = open_error(directory.path());
        assert!(message.contains(expected), "{message}");
    }
}

/// A file with this header and `data` bytes of tensors.
fn with_header(header: &Value, data: usize) -> Vec<u8> {
    let header = header.to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &vec![0; data]].concat()
}

#[test]
fn headers_that_lie() {
    let entry =
        |dtype: &str, shape: Value, offsets: Value| json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
    let most = (1u64 << 61) - 1;
    // Eight tensors whose sizes add up to the end of the address space: the sum with the header's length overflows.
    let huge: serde_json::Map<String, Value> =
        (0..8u64).map(|i| (format!("t{i}"), entry("U8", json!([most]), json!([i * most, (i + 1) * most])))).collect();
    for (header, data, expected) in [
        (json!({"a": entry("F9", json!([1]), json!([0, 1]))}), 1, "tensor a: unknown variant `F9`"),
        (
            json!({"a": entry("F32", json!([1]), json!([0, 4]))}),
            3,
            "its header promises 4 bytes of tensors, the file holds 3",
        ),
        (json!({"a": entry("F32", json!([2]), json!([0, 4]))}), 4, "invalid shape, data type, or offset"),
        (
            json!({"a": entry("U8", json!([4]), json!([0, 4])), "b": entry("U8", json!([4]), json!([2, 6]))}),
            6,
            "invalid offset for tensor `b`",
        ),
        (json!({"a": entry("U8", json!([4]), json!([4, 8]))}), 8, "invalid offset for tensor `a`"),
        (json!({"a": entry("U8", json!([most, most]), json!([0, 4]))}), 4, "overflow"),
        (json!({"a": {"dtype": "U8"}}), 0, "tensor a: missing field"),
        (json!([]), 0, "its safetensors header cannot be used"),
        (Value::Object(huge), 0, "truncated: its header promises"),
    ] {
        let message = in_memory(&config_json(), with_header(&header, data)).err().unwrap();
        assert!(message.starts_with("demo/model.safetensors: ") && message.contains(expected), "{message}");
    }
}

#[test]
fn shards() {
    let all = tensors();
    let (first, second): (Tensors, Tensors) = all.clone().into_iter().partition(|(name, _)| name.contains("layers"));
    let place = |name: &String| if name.contains("layers") { "a.safetensors" } else { "b.safetensors" };
    let places: BTreeMap<String, &str> = all.keys().map(|name| (name.clone(), place(name))).collect();
    let (config, a, b) = (config_json().to_string(), serialize(&first), serialize(&second));
    let open = |index: Value, files: &[(&str, &[u8])]| {
        let index = index.to_string();
        let mut files = files.to_vec();
        files.extend([("config.json", config.as_bytes()), ("model.safetensors.index.json", index.as_bytes())]);
        let directory = directory(&files);
        Checkpoint::open(directory.path()).map_err(|e| e.to_string())
    };
    let good = json!({"weight_map": places});
    let both: Files = [("a.safetensors", &a), ("b.safetensors", &b)];
    let checkpoint = open(good.clone(), &both).unwrap();
    assert_eq!(checkpoint.read("model.layers.0.mlp.down_proj.weight", &[4, 5]).unwrap().len(), 20);
    assert_eq!(checkpoint.tensors().count(), 12);
    assert!(checkpoint.tensors().all(|(name, info)| info.file.ends_with(place(&name.to_owned()))));

    let mut misplaced = good.clone();
    misplaced["weight_map"]["model.norm.weight"] = json!("a.safetensors");
    let mut outside = good.clone();
    outside["weight_map"]["model.norm.weight"] = json!("../b.safetensors");
    let partly = json!({"weight_map": {"model.norm.weight": "a.safetensors", "lm_head.weight": "b.safetensors"}});
    let (everything, empty) = (serialize(&all), Vec::new());
    let cases: [(Value, Files, &str); 6] = [
        (good.clone(), [both[0], ("c.safetensors", &b)], "names b.safetensors, which is not there"),
        (misplaced, both, "tensor model.norm.weight: placed in a.safetensors by the index, but not there"),
        (outside, both, "names the shard \"../b.safetensors\"; expected a file beside the index"),
        (json!({"weight_map": []}), both, "has no weight_map"),
        (good, [both[0], ("b.safetensors", &empty)], "b.safetensors: truncated: it has 0 bytes"),
        (partly, [("a.safetensors", &everything), ("b.safetensors", &everything)], "and the index does not say which"),
    ];
    for (index, files, expected) in cases {
        let message = open(index, &files).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    /// Overwrites one to four bytes of the first `length`.
    fn mutate(&mut self, bytes: &mut [u8], length: usize) {
        for _ in 0..=self.below(4) {
            let digits = b"0123456789-.eE\"[]{},:\\ntfu";
            let byte = if self.below(2) == 0 { digits[self.below(digits.len())] } else { self.below(256) as u8 };
            bytes[self.below(length)] = byte;
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let weights = serialize(&tensors());
    for length in 0..weights.len() {
        assert!(in_memory(&config_json(), weights[..length].to_vec()).is_err(), "{length} bytes");
    }
    let config = config_json().to_string();
    for length in 0..config.len() {
        assert!(Config::from_json(&config.as_bytes()[..length], Path::new("c")).is_err(), "{length} bytes");
    }
}

#[test]
fn mutations_never_panic() {
    let mut random = Random(1);
    let weights = serialize(&tensors());
    let header = 8 + u64::from_le_bytes(weights[..8].try_into().unwrap()) as usize;
    let mut config = config_json();
    config["rope_scaling"] = json!({"rope_type": "yarn", "factor": 2.0, "beta_fast": 32.0});
    let config = config.to_string().into_bytes();
    let mut valid = [0, 0];
    for _ in 0..500 {
        let mut bytes = weights.clone();
        random.mutate(&mut bytes, header);
        if let Ok(checkpoint) = in_memory(&config_json(), bytes) {
            valid[0] += 1;
            for (name, info) in checkpoint.tensors() {
                let _ = checkpoint.read(name, &info.shape);
            }
        }
        let mut bytes = config.clone();
        let length = bytes.len();
        random.mutate(&mut bytes, length);
        if let Ok(config) = Config::from_json(&bytes, Path::new("config.json")) {
            valid[1] += 1;
            let frequencies = config.rope.inverse_frequencies(config.head_dim, 10_000_000);
            assert_eq!(frequencies.inverse.len(), config.head_dim / 2);
        }
    }
    assert!(valid[1] > 0 && valid[1] < 500, "{valid:?} of 500 valid");
}
