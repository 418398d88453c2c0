//! The tokenizer of a directory: which files count, and which special tokens a text gets.

use microscale_model::{Checkpoint, Tokenizer};
use serde_json::{Value, json};

/// A word-level tokenizer whose post-processor adds `<s>`, with truncation and padding left on.
fn tokenizer_json() -> Value {
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    };
    let piece = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
    let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "<unk>"},
        "added_tokens": [added(0, "<unk>"), added(1, "<s>"), added(2, "</s>"), added(3, "end of text: ")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "decoder": null,
        "post_processor": {"type": "TemplateProcessing", "single": [piece("<s>"), sequence], "pair": [sequence],
                           "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}},
        "model": {"type": "WordLevel", "unk_token": "<unk>",
                  "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "end of text: ": 3, "a": 4, "b": 5, "c": 6}},
    })
}

/// A checkpoint in a directory with these tokenizer files.
fn checkpoint(files: &[(&str, String)]) -> (tempfile::TempDir, Checkpoint) {
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "hidden_size": 2, "num_attention_heads": 1, "vocab_size": 7,
        "intermediate_size": 2, "num_hidden_layers": 1, "tie_word_embeddings": true, "bos_token_id": 1,
        "eos_token_id": [5, 2],
    });
    let layer = "model.layers.0";
    let mut names = vec!["model.embed_tokens.weight".to_owned(), "model.norm.weight".to_owned()];
    names.extend(["input_layernorm", "post_attention_layernorm"].map(|n| format!("{layer}.{n}.weight")));
    names.extend(["q", "k", "v", "o"].map(|n| format!("{layer}.self_attn.{n}_proj.weight")));
    names.extend(["gate", "up", "down"].map(|n| format!("{layer}.mlp.{n}_proj.weight")));
    let zeros = [0; 28];
    let views = names.iter().map(|name| {
        let shape = match name.as_str() {
            "model.embed_tokens.weight" => vec![7, 2],
            name if name.contains("norm") => vec![2],
            _ => vec![2, 2],
        };
        let bytes = 2 * shape.iter().product::<usize>();
        (name, safetensors::tensor::TensorView::new(safetensors::Dtype::BF16, shape, &zeros[..bytes]).unwrap())
    });
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    std::fs::write(directory.path().join("config.json"), config.to_string()).unwrap();
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    (directory, checkpoint)
}

type Ids = (Vec<u32>, Option<u32>, Option<u32>);

/// Ids of "a b c" with special tokens, BOS and EOS, under a `tokenizer_config.json`.
fn ids(settings: Value) -> Result<Ids, String> {
    let files = [("tokenizer.json", tokenizer_json().to_string()), ("tokenizer_config.json", settings.to_string())];
    let tokenizer = checkpoint(&files).1.tokenizer().map_err(|e| e.to_string())?;
    Ok((tokenizer.encode("a b c", true).unwrap(), tokenizer.bos(), tokenizer.eos()))
}

#[test]
fn special_tokens_follow_the_files() {
    let (_directory, plain) = checkpoint(&[("tokenizer.json", tokenizer_json().to_string())]);
    let tokenizer = plain.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("a b c", true).unwrap(), [1, 4, 5, 6], "neither truncated nor padded");
    assert_eq!(tokenizer.encode("a b c", false).unwrap(), [4, 5, 6]);
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(1), Some(5)), "of config.json");

    let named = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    assert_eq!(ids(named).unwrap(), (vec![1, 4, 5, 6], Some(1), Some(2)));
    let other = json!({"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": false});
    assert_eq!(ids(other).unwrap().0, [1, 4, 5, 6], "only LlamaTokenizer builds its own template");
    for (settings, expected) in [
        (json!({"add_bos_token": false}), vec![4, 5, 6]),
        (json!({"add_bos_token": true, "add_eos_token": true}), vec![1, 4, 5, 6, 2]),
        (json!({"add_eos_token": true, "eos_token": "end of text: "}), vec![1, 4, 5, 6, 3]),
        (json!({"bos_token": "b", "add_bos_token": true}), vec![5, 4, 5, 6]),
        (json!({"bos_token": "<s>"}), vec![1, 4, 5, 6]),
    ] {
        for class in ["LlamaTokenizer", "LlamaTokenizerFast"] {
            let mut settings = settings.clone();
            settings["tokenizer_class"] = json!(class);
            assert_eq!(ids(settings.clone()).unwrap().0, expected, "{settings}");
        }
    }
    let absent = json!({"tokenizer_class": "LlamaTokenizer", "add_bos_token": true, "bos_token": "<bos>"});
    assert!(
        ids(absent).unwrap_err().contains("tokenizer_config.json: not a usable tokenizer: special token \"<bos>\"")
    );
}

#[test]
fn missing_and_damaged_files() {
    let error = |files: &[(&str, String)]| checkpoint(files).1.tokenizer().err().unwrap().to_string();
    assert!(error(&[]).contains("has no tokenizer.json, the only form of tokenizer that can be read; fetch it"));
    assert!(error(&[("tokenizer.model", String::new())]).contains("convert tokenizer.model"));
    assert!(error(&[("tokenizer.json", "{".to_owned())]).contains("tokenizer.json: not a usable tokenizer"));
    let files = [("tokenizer.json", tokenizer_json().to_string()), ("tokenizer_config.json", "[]".to_owned())];
    assert!(error(&files).contains("tokenizer_config.json: not a JSON object"));
}

#[test]
fn a_text_ends_where_the_files_say() {
    let plain = ("tokenizer.json", tokenizer_json().to_string());
    let ends = |generation: &str| {
        let files = [plain.clone(), ("generation_config.json", generation.to_owned())];
        checkpoint(&files).1.end_tokens().map_err(|e| e.to_string())
    };
    assert_eq!(checkpoint(&[]).1.end_tokens().unwrap(), [5, 2], "of config.json");
    assert_eq!(ends(r#"{"eos_token_id": 3}"#).unwrap(), [3]);
    assert_eq!(ends(r#"{"eos_token_id": [6, 3], "temperature": 0.6}"#).unwrap(), [6, 3]);
    assert_eq!(ends(r#"{"do_sample": true}"#).unwrap(), [5, 2], "of config.json");
    assert_eq!(ends(r#"{"eos_token_id": null}"#).unwrap(), [5, 2], "of config.json");
    let (high, text) = (ends(r#"{"eos_token_id": 7}"#), ends("eos"));
    assert!(high.unwrap_err().contains("generation_config.json: eos_token_id is 7; expected ids below vocab_size"));
    assert!(text.unwrap_err().contains("fetch the model's generation_config.json again"));
}

/// The pieces a text comes in: of every id after the prompt, and at the end.
fn pieces(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = tokenizer.stream(prompt);
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

/// A tokenizer that decodes as LLaMA 2's: spaces are ▁, bytes are tokens, and a text begins without its first space.
#[test]
fn spaces_and_bytes_of_a_growing_text() {
    let mut json = tokenizer_json();
    let words = ["<unk>", "<s>", "</s>", "end of text: ", "▁the", "▁caf", "<0xC3>", "<0xA9>"];
    json["model"]["vocab"] =
        words.into_iter().zip(0..).map(|(word, id): (&str, u32)| (word.to_owned(), json!(id))).collect();
    json["decoder"] = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json".as_ref()).unwrap();
    assert_eq!(pieces(&tokenizer, &[1, 4], &[5, 6, 7, 4]), [" caf", "", "é", " the", ""]);
    assert_eq!(pieces(&tokenizer, &[1], &[4, 2, 4, 4]), ["the", "", " the", " the", ""], "the text's own beginning");
    assert_eq!(pieces(&tokenizer, &[], &[4, 5]), ["the", " caf", ""]);
    assert_eq!(pieces(&tokenizer, &[1, 4], &[4, 6]), [" the", "", "\u{FFFD}"], "half a character");
    assert_eq!(pieces(&tokenizer, &[1, 4], &[6, 4]), ["", "\u{FFFD} the", ""]);
    assert_eq!(pieces(&tokenizer, &[1, 4], &[]), [""]);
}

#[test]
fn a_growing_text_is_the_whole_one() {
    let demo = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model"));
    let tokenizer = Checkpoint::open(demo).unwrap().tokenizer().unwrap();
    let text = " naïve – 😀  two\n\nspaces, Ünïcödé 漢字 end";
    let (prompt, ids) = (tokenizer.encode("Once", true).unwrap(), tokenizer.encode(text, false).unwrap());
    let pieces = pieces(&tokenizer, &prompt, &ids);
    assert_eq!(pieces.concat(), text);
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() > 15, "it comes as it grows: {pieces:?}");
}

/// A real LLaMA checkpoint in f32; the ids are `LlamaTokenizerFast`'s.
#[test]
fn stories260k() {
    let Some(shared) = microscale_testing::shared("stories260k") else { return };
    let checkpoint = Checkpoint::open(&shared.join("data/models/stories260K")).unwrap();
    let embedding = checkpoint.read("model.embed_tokens.weight", &[512, 64]).unwrap();
    assert_eq!((checkpoint.name(), embedding.len()), ("stories260K", 512 * 64));
    let tokenizer = checkpoint.tokenizer().unwrap();
    assert_eq!(tokenizer.encode("Once upon", true).unwrap(), [1, 403, 407]);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.vocabulary_size()), (Some(1), Some(2), 512));
}
