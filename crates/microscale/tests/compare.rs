//! `compare`, `conform` and `quantize --report` as a user meets them.

use std::process::Command;

use serde_json::Value;

/// Exit code, standard output and standard error.
fn microscale(arguments: &[&str]) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_microscale"));
    let output = command.args(arguments).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(!err.contains("panicked"), "{arguments:?}: {err}");
    (output.status.code(), out, err)
}

#[test]
fn models_are_the_same_or_not_and_reports_agree() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (packed, even, plain) = (path("packed"), path("even"), path("plain"));
    let (code, report, _) = microscale(&["quantize", "demo", "--recipe", "w4a4", "-o", &packed, "--report=json"]);
    let report: Value = serde_json::from_str(&report).unwrap();
    let tensors = report["tensors"].as_array().unwrap();
    assert!(code == Some(0) && tensors.len() > 7 && tensors.iter().all(|t| t["worst"].as_array().unwrap().len() == 3));
    let clipped = tensors.iter().map(|t| t["clipped"].as_f64().unwrap()).fold(0.0, f64::max);
    assert!((1e-4..0.1).contains(&clipped), "floor clips some: {clipped}");

    microscale(&["dequantize", &packed, "-o", &plain]);
    assert_eq!(microscale(&["compare", &packed, &plain]).0, Some(0));
    let (code, text, _) = microscale(&["compare", "demo", &packed, "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &found["same"]), (Some(1), &Value::Bool(false)));
    // The comparison with the original is what the report says.
    for tensor in tensors {
        let beside = found["tensors"].as_array().unwrap().iter().find(|t| t["name"] == tensor["name"]).unwrap();
        assert_eq!(beside["stored"][1], "fp4_e2m1");
        let [found, reported] = [&beside["difference"], tensor].map(|t| t["sqnr_db"].as_f64().unwrap());
        assert!((found - reported).abs() < 1e-9, "{tensor}"); // they add in another order
    }
    let arguments = ["quantize", "demo", "--recipe", "w4a4", "--scale-rule", "auto", "-o", &even, "--report"];
    let (code, table, _) = microscale(&arguments);
    assert!(code == Some(0) && table.contains("SQNR dB") && table.contains(" even "), "{table}");
    let (code, text, _) = microscale(&["compare", &packed, &even]);
    assert!(code == Some(1) && text.contains("fp4_e2m1") && text.contains("different: "), "{text}");
    // What runs in `auto` is what `even` would be; activations follow.
    let logits = |model: &str, recipe: &str| {
        let name = path("logits");
        microscale(&["logits", model, "--recipe", recipe, "--tokens", "0,17,400", "--output", &name]);
        let bytes = std::fs::read(&name).unwrap();
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("logits").unwrap().data().to_vec()
    };
    assert!(logits(&even, "proj=fp4,mlp=fp4,rule=auto") == logits("demo", "proj=fp4,mlp=fp4,rule=even"));
    for (a, b) in [("demo", "nowhere"), (&*packed, concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))] {
        let (code, text, error) = microscale(&["compare", a, b]);
        assert!(code == Some(2) && text.is_empty() && error.starts_with("error: "), "{error}");
    }
}

#[test]
fn conventions_listed_shown_and_compared() {
    let (code, list, _) = microscale(&["conform"]);
    assert!(code == Some(0) && list.contains("torchao-rceil") && list.contains("modelopt"));
    let (_, text, _) = microscale(&["conform", "--as", "ggml", "--format", "fp4"]);
    for line in ["ggml: scale rule floor, ties to zero", "zeros: 0.0 -0.0", "codes 07 00 01 02 03 04 05 08 0b"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let (_, text, _) = microscale(&["conform", "--as", "mlx", "--as", "ocp", "--format", "fp8_e4m3", "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    let scale = |convention: usize, what: &str| {
        let blocks = found["conventions"][convention]["blocks"].as_array().unwrap().clone();
        blocks.into_iter().find(|block| block["what"] == what).unwrap()["scale"].as_u64().unwrap()
    };
    assert_eq!([scale(0, "just above it"), scale(1, "just above it"), scale(1, "NaN")], [128, 127, 255]);
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model/model.safetensors");
    let (code, text, _) = microscale(&["conform", "--as", "torchao-even", file, "--tensor", "q_proj"]);
    assert!(code == Some(0) && text.contains("where torchao-even and ocp differ"), "{text}");
    let (_, text, _) = microscale(&["conform", "--as", "quark", "--as", "torchao-even", file, "--json"]);
    let found: Value = serde_json::from_str(&text).unwrap();
    assert!(found["tensors"].as_array().unwrap().iter().all(|t| t["different_codes"] == 0 && t["codes"] != 0));
    for (arguments, words) in [
        (&["conform", "--as", "gguf"][..], "known: ocp"),
        (&["conform", file], "give --as"),
        (&["conform", "--as", "ocp", "--as", "ocp", "--as", "ocp"], "at most two"),
    ] {
        let (code, _, error) = microscale(arguments);
        assert!(code == Some(2) && error.contains(words), "{error}");
    }
}
