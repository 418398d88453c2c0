//! Rotary frequencies against transformers 4.44.2 (`goldens/rope.py`).

use std::path::Path;

use microscale_model::Config;
use serde_json::{Value, json};

/// A golden case as a configuration, in the old form or the new.
fn config(case: &Value, new_form: bool) -> Config {
    let dim = case["head_dim"].as_u64().unwrap();
    let mut config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 4 * dim, "num_attention_heads": 4, "vocab_size": 16,
        "intermediate_size": 8, "num_hidden_layers": 1, "max_position_embeddings": case["max_position_embeddings"],
    });
    if new_form {
        let mut parameters = case["rope_scaling"].clone();
        if parameters.is_null() {
            parameters = json!({"rope_type": "default"});
        }
        parameters["rope_theta"] = case["rope_theta"].clone();
        config["rope_parameters"] = parameters;
    } else {
        config["rope_theta"] = case["rope_theta"].clone();
        config["rope_scaling"] = case["rope_scaling"].clone();
    }
    Config::from_json(config.to_string().as_bytes(), Path::new("config.json")).unwrap()
}

#[test]
fn frequencies_are_those_of_transformers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("goldens/rope.json")).unwrap();
    let (mut total, mut different) = (0, 0);
    for case in &cases {
        let label = format!("{} {} {}", case["head_dim"], case["rope_theta"], case["rope_scaling"]);
        let golden: Vec<i32> = serde_json::from_value(case["inverse"].clone()).unwrap();
        let length = case["length"].as_u64().unwrap() as usize;
        for new_form in [false, true] {
            let config = config(case, new_form);
            let found = config.rope.inverse_frequencies(config.head_dim, length);
            assert_eq!(found.inverse.len(), golden.len(), "{label}");
            assert_eq!(i64::from(found.attention_factor.to_bits()), case["attention_factor"], "{label}");
            for (i, (x, &bits)) in found.inverse.iter().zip(&golden).enumerate() {
                let ulps = (x.to_bits() as i32).abs_diff(bits);
                // torch's vectorised powf is within one unit of the correctly rounded power, not always equal.
                assert!(ulps <= 1, "{label}: frequency {i} is {ulps} units off");
                (total, different) = (total + 1, different + usize::from(ulps > 0));
            }
        }
    }
    assert_eq!((different, total), (6, 1456), "frequencies that differ by one unit");
}

#[test]
fn only_dynamic_depends_on_the_length() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("goldens/rope.json")).unwrap();
    for case in &cases {
        let rope = config(case, false).rope;
        let maximum = case["max_position_embeddings"].as_u64().unwrap() as usize;
        let at = |length| rope.inverse_frequencies(8, length);
        assert_eq!(at(1), at(maximum));
        let dynamic = case["rope_scaling"]["type"] == "dynamic";
        assert_eq!(at(1) != at(maximum + 1), dynamic);
        assert_eq!(rope.changes_beyond(), dynamic.then_some(maximum));
    }
}
