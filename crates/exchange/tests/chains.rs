//! From kind to kind and back: the same files.

mod support;

use microscale_exchange::{Kind, Options, Outtype, Source, convert};
use microscale_formats::{E2M1, E4M3, ScaleRule};
use microscale_model::{Checkpoint, Float, Role, TensorSource, dequantize_file};
use serde_json::json;
use support::{Folder, checkpoint, config, files, go_on};

/// Every kind but the native one, with what it can hold.
const CASES: [(&str, &[Kind]); 6] = [
    (
        "w4a4",
        &[Kind::CompressedTensors, Kind::Quark, Kind::ModelOpt, Kind::Mlx, Kind::GptOss, Kind::Gguf, Kind::TorchAo],
    ),
    ("proj=fp6_e2m3/fp8,mlp=fp4/int8,attn=fp6,rule=mse", &[Kind::CompressedTensors, Kind::Quark, Kind::TorchAo]),
    (
        "proj=fp8/fp8,mlp=fp4/fp8,head=bf16,rule=auto",
        &[Kind::CompressedTensors, Kind::Quark, Kind::ModelOpt, Kind::Mlx],
    ),
    ("proj=fp6_e3m2,mlp=fp8_e5m2", &[Kind::Quark, Kind::TorchAo]),
    ("int8", &[Kind::Gguf]),
    ("proj=int8,mlp=fp4,head=bf16", &[Kind::Gguf]),
];

#[test]
fn every_kind_and_back() {
    for tied in [false, true] {
        for (recipe, kinds) in CASES {
            let folder = Folder::new();
            let start = folder.quantized("start", &config(tied), recipe);
            for &kind in kinds {
                let there = folder.convert(&start, kind, kind.name()).unwrap();
                assert_eq!(Source::open(&there).unwrap().kind(), Some(kind));
                let back = folder.convert(&there, Kind::Native, &format!("{}-back", kind.name())).unwrap();
                assert!(files(&start) == files(&back), "{recipe}, {}", kind.name());
            }
            // And from each to the next.
            let mut path = start.clone();
            for (i, &kind) in kinds.iter().chain(kinds).enumerate() {
                path = folder.convert(&path, kind, &format!("chain-{i}")).unwrap();
            }
            let back = folder.convert(&path, Kind::Native, "back").unwrap();
            assert!(files(&start) == files(&back), "{recipe}");
        }
    }
}

#[test]
fn what_cannot_be_held_is_refused_by_name() {
    let folder = Folder::new();
    let refused = |from: &str, kind: Kind, words: &[&str]| {
        let error = folder.convert(&folder.path(from), kind, "refused").unwrap_err();
        assert!(words.iter().all(|word| error.contains(word)), "{words:?} in {error}");
        assert!(!folder.path("refused").exists());
    };
    folder.quantized("fp6", &config(false), "w6a8");
    refused("fp6", Kind::Mlx, &["lm_head.weight", "fp6_e3m2", "mlx has fp4_e2m1, fp8_e4m3"]);
    refused("fp6", Kind::CompressedTensors, &["lm_head.weight", "fp6_e3m2"]);
    refused("fp6", Kind::Gguf, &["lm_head.weight"]);
    folder.quantized("short", &config(false), "proj=fp4,mlp=fp4,block=16");
    refused("short", Kind::Quark, &["lm_head.weight", "blocks of 16"]);
    let mut odd = config(false);
    odd["intermediate_size"] = json!(100);
    folder.quantized("odd", &odd, "proj=fp4,mlp=fp4");
    refused("odd", Kind::GptOss, &["model.layers.0.mlp.down_proj.weight", "100 values", "multiple of 32"]);
    // A scale that is NaN: the first block of the first row.
    folder.quantized("nan", &config(false), "w4a4");
    let path = folder.path("nan").join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] = 255;
    std::fs::write(&path, bytes).unwrap();
    refused("nan", Kind::Mlx, &["model.layers.1.self_attn.v_proj.weight", "NaN (255)"]);
    folder.convert(&folder.path("nan"), Kind::TorchAo, "nan-torchao").unwrap();
    // Nothing quantized: only a GGUF file can be made of it.
    let plain = Source::of_checkpoint(checkpoint(&config(false))).unwrap();
    let error = convert(&plain, Kind::Mlx, &folder.path("plain"), &Options::default(), &go_on).unwrap_err();
    assert!(error.to_string().contains("quantize it first"), "{error}");
}

#[test]
fn files_of_others_become_native() {
    let folder = Folder::new();
    let start = folder.quantized("start", &config(false), "w4a4");
    let expected = Checkpoint::open(&start).unwrap();
    for kind in [Kind::CompressedTensors, Kind::Quark, Kind::Mlx, Kind::Gguf, Kind::ModelOpt] {
        let source = Source::open(&start).unwrap();
        let there = folder.path(&format!("{}-theirs", kind.name()));
        convert(&source, kind, &there, &Options::default(), &go_on).unwrap();
        // Without this program's notes it is like theirs.
        let weights = if there.is_dir() { there.join("model.safetensors") } else { there.clone() };
        let mut bytes = std::fs::read(&weights).unwrap();
        for at in 0..bytes.len() - 11 {
            if bytes[at..].starts_with(b"microscale.") {
                bytes[at..at + 11].copy_from_slice(b"elsewhere..");
            }
        }
        std::fs::write(&weights, bytes).unwrap();
        let back = folder.convert(&there, Kind::Native, &format!("{}-native", kind.name())).unwrap();
        let found = Checkpoint::open(&back).unwrap();
        let recipe = &found.quantization().unwrap().recipe;
        assert_eq!(recipe.format(Role::MlpWeight), Some(E2M1));
        let input = [Kind::CompressedTensors, Kind::Quark].contains(&kind).then_some(E2M1);
        assert_eq!(
            (recipe.format(Role::MlpActivation), recipe.scale_rule),
            (input, ScaleRule::Even),
            "{}",
            kind.name()
        );
        assert_eq!(recipe.format(Role::Key), None);
        let parsed = found.config();
        let (rope, epsilon) = (&parsed.rope, parsed.rms_norm_eps);
        assert_eq!((rope, epsilon), (&expected.config().rope, expected.config().rms_norm_eps));
        for layer in ["q_proj", "k_proj", "o_proj"] {
            let name = format!("model.layers.1.self_attn.{layer}.weight");
            let packed = expected.packed(&name).unwrap();
            let theirs = found.packed(&name).unwrap();
            assert_eq!(packed.shape, theirs.shape);
            let [ours, theirs] = [(&expected, packed), (&found, theirs)]
                .map(|(checkpoint, packed)| checkpoint.weight(&name, packed.shape, Some(packed.format)).unwrap());
            let values = |weight: microscale_tensor::WeightMatrix| match weight {
                microscale_tensor::WeightMatrix::Mx(tensor) => tensor.dequantize(),
                microscale_tensor::WeightMatrix::Bf16(_) => panic!("{name} is not quantized"),
            };
            assert!(values(ours) == values(theirs), "{name} by {}", kind.name());
        }
    }
}

#[test]
fn experts_keep_their_codes() {
    let folder = Folder::new();
    std::fs::create_dir(folder.path("moe")).unwrap();
    std::fs::write(folder.path("moe").join("config.json"), r#"{"architectures": ["GptOssForCausalLM"]}"#).unwrap();
    let blocks: Vec<u8> = (0..2 * 3 * 2 * 16).map(|i| (i * 7) as u8).collect();
    let scales: Vec<u8> = (0..2 * 3 * 2).map(|i| 120 + i as u8).collect();
    for [codes, beside] in [["_blocks", "_scales"], [".blocks", ".scales"]] {
        let name = "model.layers.0.mlp.experts.down_proj";
        let [codes, beside] = [codes, beside].map(|suffix| format!("{name}{suffix}"));
        let view = |shape: Vec<usize>, bytes| {
            safetensors::tensor::TensorView::new(safetensors::Dtype::U8, shape, bytes).unwrap()
        };
        let tensors = [(codes, view(vec![2, 3, 2, 16], &blocks)), (beside, view(vec![2, 3, 2], &scales))];
        std::fs::write(folder.path("moe").join("model.safetensors"), safetensors::serialize(tensors, None).unwrap())
            .unwrap();
        let source = Source::open(&folder.path("moe")).unwrap();
        assert_eq!(source.kind(), Some(Kind::GptOss));
        let _ = std::fs::remove_dir_all(folder.path("torchao"));
        let _ = std::fs::remove_dir_all(folder.path("again"));
        let there = folder.convert(&folder.path("moe"), Kind::TorchAo, "torchao").unwrap();
        let back = folder.convert(&there, Kind::GptOss, "again").unwrap();
        let bytes = std::fs::read(back.join("model.safetensors")).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let codes = file.tensor(&format!("{name}_blocks")).unwrap();
        assert_eq!((codes.shape(), codes.data()), (&[2, 3, 2, 16][..], &blocks[..]));
        assert_eq!(file.tensor(&format!("{name}_scales")).unwrap().data(), scales);
        // A model that does not run here: one matrix, which can be dequantized.
        let _ = std::fs::remove_dir_all(folder.path("native"));
        let native = folder.convert(&there, Kind::Native, "native").unwrap().join("model.safetensors");
        dequantize_file(&native, &folder.path("values"), Float::F32, &go_on).unwrap();
        let bytes = std::fs::read(folder.path("values")).unwrap();
        let values = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(values.tensor(name).unwrap().shape(), [6, 64]);
    }
}

#[test]
fn activations_of_theirs_are_ours() {
    let folder = Folder::new();
    let start = folder.quantized("start", &config(false), "w4a8");
    let there = folder.convert(&start, Kind::CompressedTensors, "there").unwrap();
    let text = std::fs::read_to_string(there.join("config.json")).unwrap();
    let settings: serde_json::Value = serde_json::from_str(&text).unwrap();
    let input = &settings["quantization_config"]["config_groups"]["group_0"]["input_activations"];
    assert_eq!((&input["num_bits"], &input["dynamic"], E4M3.bits()), (&json!(8), &json!(true), 8));
}

/// Only the recipe's own integers are MX in a file whose other matrices are integers, too.
#[test]
fn plain_matrices_in_q8_0() {
    let folder = Folder::new();
    let options = Options { outtype: Outtype::Q8_0, ..Options::default() };
    for recipe in ["w4a4", "int8"] {
        let start = Source::open(&folder.quantized(recipe, &config(true), recipe)).unwrap();
        let file = folder.path(&format!("{recipe}.gguf"));
        convert(&start, Kind::Gguf, &file, &options, &go_on).unwrap();
        let error = Source::open(&file).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("token_embd.weight") && error.contains("Convert the original"), "{error}");
        let error = convert(&start, Kind::Mlx, &folder.path("mlx"), &options, &go_on).unwrap_err().to_string();
        assert!(error.contains("mlx has no --outtype") && !folder.path("mlx").exists(), "{error}");
    }
    let bytes = |name: &str, options: &Options| {
        let source = Source::of_checkpoint(checkpoint(&config(false))).unwrap();
        convert(&source, Kind::Gguf, &folder.path(name), options, &go_on).unwrap();
        std::fs::metadata(folder.path(name)).unwrap().len() as f64
    };
    let share = bytes("small.gguf", &options) / bytes("large.gguf", &Options::default());
    assert!((0.53..0.6).contains(&share), "{share}");
}
