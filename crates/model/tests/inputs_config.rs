//! Configurations: defaults, refusals, and what each error says.

use std::path::Path;

use microscale_model::{Architecture, Config, Scaling};
use serde_json::{Value, json};

fn llama() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 100,
        "intermediate_size": 96, "num_hidden_layers": 2,
    })
}

/// The base configuration with some keys replaced.
fn with(changes: Value) -> Value {
    let mut config = llama();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn read(config: &Value) -> Result<Config, String> {
    Config::from_json(config.to_string().as_bytes(), Path::new("dir/config.json")).map_err(|e| e.to_string())
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read(&llama()).unwrap();
    assert_eq!(config.architecture, Architecture::Llama);
    assert_eq!((config.kv_heads, config.head_dim, config.max_position_embeddings), (4, 16, 2048));
    assert_eq!((config.rms_norm_eps, config.rope.theta, &config.rope.scaling), (1e-6, 10000.0, &Scaling::Default));
    assert!(!config.tie_word_embeddings && !config.qkv_bias && !config.o_bias && !config.mlp_bias);
    assert_eq!((config.bos, config.eos.as_slice()), (None, &[][..]));

    let qwen2 = read(&with(json!({"architectures": ["Qwen2ForCausalLM"]}))).unwrap();
    assert_eq!((qwen2.architecture, qwen2.max_position_embeddings), (Architecture::Qwen2, 32768));
    assert!(qwen2.qkv_bias && !qwen2.o_bias);
    let biased = read(&with(json!({"attention_bias": true, "mlp_bias": true}))).unwrap();
    assert!(biased.qkv_bias && biased.o_bias && biased.mlp_bias);
    let family = with(json!({"architectures": null, "model_type": "qwen2"}));
    assert_eq!(read(&family).unwrap().architecture, Architecture::Qwen2);
}

#[test]
fn explicit_values_are_taken() {
    let config = read(&with(json!({
        "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5, "tie_word_embeddings": true,
        "bos_token_id": 1, "eos_token_id": [2, 7], "rope_theta": 500000,
        "rope_scaling": {"type": "linear", "factor": 2}, "unknown_key": {"x": []},
    })))
    .unwrap();
    assert_eq!((config.kv_heads, config.head_dim, config.rms_norm_eps), (2, 8, 1e-5));
    assert_eq!((config.bos, config.eos), (Some(1), vec![2, 7]));
    assert_eq!(config.rope.scaling, Scaling::Linear { factor: 2.0 });
}

#[test]
fn refusals_name_key_found_and_expected() {
    let window = json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true, "sliding_window": 4096});
    for (changes, expected) in [
        (
            json!({"architectures": ["MistralForCausalLM"]}),
            "architectures is [\"MistralForCausalLM\"]; expected one of LlamaForCausalLM, Qwen2ForCausalLM",
        ),
        (json!({"architectures": null}), "architectures is null"),
        (json!({"hidden_act": "gelu"}), "hidden_act is \"gelu\"; expected \"silu\""),
        (json!({"quantization_config": {"bits": 4}}), "give the bf16 original"),
        (json!({"hidden_size": 0}), "hidden_size is 0; expected a whole number from 1"),
        (json!({"hidden_size": 64.5}), "hidden_size is 64.5"),
        (json!({"hidden_size": -64}), "hidden_size is -64"),
        (json!({"vocab_size": 1u64 << 60}), "vocab_size is 1152921504606846976"),
        (json!({"intermediate_size": "96"}), "intermediate_size is \"96\""),
        (json!({"num_hidden_layers": null}), "num_hidden_layers is null"),
        (json!({"num_key_value_heads": 3}), "a divisor of num_attention_heads, which is 4"),
        (json!({"hidden_size": 66}), "hidden_size is 66; expected a multiple of num_attention_heads, which is 4"),
        (json!({"hidden_size": 60}), "expected an even head_dim, which rotary embedding needs, not 15"),
        (json!({"head_dim": 7}), "head_dim is 7"),
        (json!({"rms_norm_eps": -1.0}), "rms_norm_eps is -1.0"),
        (json!({"tie_word_embeddings": "yes"}), "tie_word_embeddings is \"yes\"; expected true or false"),
        (json!({"bos_token_id": 100}), "expected ids below vocab_size, which is 100"),
        (json!({"rope_theta": 0}), "rope_theta is 0"),
        (json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor is 0.5"),
        (
            json!({"rope_scaling": {"rope_type": "su", "factor": 2.0}}),
            "rope_scaling.rope_type is \"su\"; expected one of default, linear, dynamic, yarn, longrope, llama3",
        ),
        (json!({"rope_scaling": {"type": "su"}}), "rope_scaling.type is \"su\""),
        (json!({"rope_scaling": {}}), "rope_scaling.rope_type is missing"),
        (json!({"rope_scaling": 2.0}), "rope_scaling is 2.0; expected an object or null"),
        (json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing; expected a positive number"),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}}),
            "rope_scaling.low_freq_factor is missing",
        ),
        (
            json!({"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4.0, "high_freq_factor": 4.0}}),
            "rope_scaling.high_freq_factor is 4.0; expected a number above low_freq_factor",
        ),
        (
            json!({"rope_scaling": {"rope_type": "longrope", "factor": 8.0, "long_factor": [1.0]}}),
            "rope_scaling.long_factor is [1.0]; expected a list of 8",
        ),
        (json!({"rope_parameters": {"rope_type": "yarn"}}), "rope_parameters.factor is missing"),
        (
            json!({"rope_parameters": {"rope_type": "default", "rope_theta": "x"}}),
            "rope_parameters.rope_theta is \"x\"",
        ),
        (
            json!({"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": true}),
            "sliding_window is missing; expected at least",
        ),
        (window, "sliding_window is 4096; expected at least max_position_embeddings (32768)"),
    ] {
        let message = read(&with(changes)).unwrap_err();
        assert!(message.starts_with("dir/config.json: ") && message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    let mut incomplete = llama();
    incomplete.as_object_mut().unwrap().remove("num_hidden_layers");
    assert!(read(&incomplete).unwrap_err().contains("num_hidden_layers is missing"));
    for bytes in ["", "[]", "{", "3", "{\"a\": NaN}"] {
        let message = Config::from_json(bytes.as_bytes(), Path::new("config.json")).unwrap_err().to_string();
        assert!(message.starts_with("config.json: "), "{message}");
    }
}

#[test]
fn a_window_that_cuts_nothing_off_is_fine() {
    for changes in [
        json!({"use_sliding_window": false, "sliding_window": 4096}),
        json!({"use_sliding_window": true, "sliding_window": 32768}),
        json!({"use_sliding_window": true, "sliding_window": null}),
    ] {
        let mut config = with(changes);
        config["architectures"] = json!(["Qwen2ForCausalLM"]);
        read(&config).unwrap();
    }
}
