//! A `tokenizer.json` as llama.cpp's keys: byte-level BPE as LLaMA 3, Qwen 2 and GPT-2 have it, and BPE over pieces as
//! LLaMA 2 has it.

use std::collections::HashMap;

use microscale_model::{Config, Error};
use serde_json::{Map, Value as Json};

use super::container::Value;
use super::write::TOKENIZER;
use crate::source::{Source, checkpoint};

/// How texts are cut before BPE: a part of the expression that tells it, and llama.cpp's name. `llama-bpe` also takes
/// words that are tokens whole, as `ignore_merges` says; `dbrx` is the same without that.
const CUTS: [(&str, bool, &str); 4] = [
    (r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", true, "llama-bpe"),
    (r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*", false, "dbrx"),
    (r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*", false, "qwen2"),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", false, "gpt-2"),
];

/// llama.cpp's types of tokens.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// The pairs that make llama.cpp's tokenizer; none for a model without one.
///
/// # Errors
/// A tokenizer that is no JSON, or of a kind that llama.cpp has not.
pub(super) fn pairs(source: &Source, config: &Config) -> Result<Vec<(String, Value)>, Error> {
    let companion = |name: &str| source.companions.iter().find(|(file, _)| file == name).map(|(_, bytes)| bytes);
    let Some(bytes) = companion(TOKENIZER) else {
        return Ok(vec![("tokenizer.ggml.model".to_owned(), Value::Text("none".to_owned()))]);
    };
    let fail = |reason: String| checkpoint(&source.path.join(TOKENIZER), reason);
    let json: Json = serde_json::from_slice(bytes).map_err(|error| fail(format!("not valid JSON ({error})")))?;
    let settings: Map<String, Json> =
        companion("tokenizer_config.json").and_then(|bytes| serde_json::from_slice(bytes).ok()).unwrap_or_default();
    let mut pairs = vocabulary(&json, config.vocab_size).map_err(fail)?;
    let mut put = |key: &str, value: Value| pairs.push((format!("tokenizer.ggml.{key}"), value));
    let special = |key: &str| {
        let named = settings.get(key)?;
        let text = named.get("content").unwrap_or(named).as_str()?;
        let added = json.get("added_tokens")?.as_array()?.iter();
        let found = added.into_iter().find(|token| token.get("content").and_then(Json::as_str) == Some(text))?;
        found.get("id")?.as_u64().map(|id| id as u32)
    };
    let (bos, eos) = (special("bos_token").or(config.bos), special("eos_token").or(config.eos.first().copied()));
    bos.iter().for_each(|&id| put("bos_token_id", Value::U32(id)));
    eos.iter().for_each(|&id| put("eos_token_id", Value::U32(id)));
    special("unk_token").iter().for_each(|&id| put("unknown_token_id", Value::U32(id)));
    special("pad_token").iter().for_each(|&id| put("padding_token_id", Value::U32(id)));
    put("add_bos_token", Value::Bool(bos.is_some_and(|bos| adds_first(&json, bos))));
    put("add_eos_token", Value::Bool(false));
    let chat = companion("chat_template.jinja").and_then(|bytes| String::from_utf8(bytes.clone()).ok());
    let chat = chat.or_else(|| settings.get("chat_template").and_then(Json::as_str).map(str::to_owned));
    chat.into_iter().for_each(|text| pairs.push(("tokenizer.chat_template".to_owned(), Value::Text(text))));
    Ok(pairs)
}

/// Whether the tokenizer puts this token before every text.
fn adds_first(json: &Json, bos: u32) -> bool {
    fn first(processor: &Json) -> Option<String> {
        if let Some(all) = processor.get("processors").and_then(Json::as_array) {
            return all.iter().find_map(first);
        }
        let single = processor.get("single")?.as_array()?.first()?;
        single.get("SpecialToken")?.get("id")?.as_str().map(str::to_owned)
    }
    let Some(processor) = json.get("post_processor") else { return false };
    let token = first(processor);
    let added = json.get("added_tokens").and_then(Json::as_array).into_iter().flatten();
    let id = |token: &Json| token.get("id").and_then(Json::as_u64) == Some(u64::from(bos));
    added.filter(|token| id(token)).any(|found| found.get("content").and_then(Json::as_str) == token.as_deref())
}

/// The tokens, with what they are merged of.
fn vocabulary(json: &Json, size: usize) -> Result<Vec<(String, Value)>, String> {
    let model = json.get("model").filter(|model| model.get("merges").is_some());
    let model = model.ok_or("is no BPE; llama.cpp's other kinds of tokenizers cannot be made of it")?;
    let mut tokens: Vec<String> = (0..size).map(|id| format!("[PAD{id}]")).collect();
    let mut types = vec![UNUSED; size];
    let entries = model.get("vocab").and_then(Json::as_object).ok_or("has no vocabulary")?;
    let unknown = model.get("unk_token").and_then(Json::as_str);
    let pieces = model.get("byte_fallback").and_then(Json::as_bool).unwrap_or(false);
    let mut ids: HashMap<&str, usize> = HashMap::new();
    for (text, id) in entries {
        let id = id.as_u64().map(|id| id as usize).filter(|&id| id < size);
        let id = id.ok_or_else(|| format!("has the token {text:?} beyond vocab_size, which is {size}"))?;
        let byte = pieces && text.len() == 6 && text.starts_with("<0x") && text.ends_with('>');
        types[id] = if Some(text.as_str()) == unknown {
            UNKNOWN
        } else if byte {
            BYTE
        } else {
            NORMAL
        };
        tokens[id].clone_from(text);
        ids.insert(text, id);
    }
    for added in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
        let id = added.get("id").and_then(Json::as_u64).map(|id| id as usize).filter(|&id| id < size);
        let (Some(id), Some(text)) = (id, added.get("content").and_then(Json::as_str)) else {
            return Err(format!("has an added token beyond vocab_size, which is {size}"));
        };
        let special = added.get("special").and_then(Json::as_bool).unwrap_or(false);
        if types[id] != UNKNOWN {
            types[id] = if special { CONTROL } else { USER_DEFINED };
        }
        tokens[id] = text.to_owned();
    }
    let merges = merges(model)?;
    let mut pairs = Vec::new();
    let mut put = |key: &str, value: Value| pairs.push((format!("tokenizer.ggml.{key}"), value));
    if pieces {
        let prefix = json.get("normalizer").is_some_and(|normalizer| normalizer.to_string().contains("\"Prepend\""));
        put("model", Value::Text("llama".to_owned()));
        put("pre", Value::Text("default".to_owned()));
        put("add_space_prefix", Value::Bool(prefix));
        put("scores", Value::F32s(scores(&merges, &ids, size)));
    } else {
        put("model", Value::Text("gpt2".to_owned()));
        put("pre", Value::Text(cut(json, model)?.to_owned()));
        put("merges", Value::Texts(merges.iter().map(|(left, right)| format!("{left} {right}")).collect()));
    }
    put("tokens", Value::Texts(tokens));
    put("token_type", Value::I32s(types));
    Ok(pairs)
}

/// The merges, each as a text with a space or as a list of two.
fn merges(model: &Json) -> Result<Vec<(String, String)>, String> {
    let all = model.get("merges").and_then(Json::as_array).ok_or("has no list of merges")?;
    let merge = |merge: &Json| match merge {
        Json::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        Json::Array(parts) => match &parts[..] {
            [Json::String(left), Json::String(right)] => Some((left.clone(), right.clone())),
            _ => None,
        },
        _ => None,
    };
    let merges: Option<Vec<_>> = all.iter().map(merge).collect();
    merges.ok_or_else(|| "has a merge that is no pair of texts".to_owned())
}

/// llama.cpp merges pieces by the score of what they become: what is merged first here has the highest.
fn scores(merges: &[(String, String)], ids: &HashMap<&str, usize>, size: usize) -> Vec<f32> {
    let mut scores = vec![0.0; size];
    let mut scored = vec![false; size];
    for (rank, (left, right)) in merges.iter().enumerate() {
        if let Some(&id) = ids.get(format!("{left}{right}").as_str())
            && !std::mem::replace(&mut scored[id], true)
        {
            scores[id] = -(rank as f32);
        }
    }
    let lowest = -(merges.len() as f32);
    scores.iter_mut().zip(scored).filter(|(_, scored)| !scored).for_each(|(score, _)| *score = lowest);
    scores
}

/// llama.cpp's name for the way in which texts are cut before BPE.
fn cut(json: &Json, model: &Json) -> Result<&'static str, String> {
    let whole = model.get("ignore_merges").and_then(Json::as_bool).unwrap_or(false);
    let cutter = json.get("pre_tokenizer").cloned().unwrap_or_default();
    let mut all: Vec<&Json> = vec![&cutter];
    all.extend(cutter.get("pretokenizers").and_then(Json::as_array).into_iter().flatten());
    let expression = all.iter().find_map(|part| part.get("pattern")?.get("Regex")?.as_str());
    let expression = match expression {
        Some(expression) => expression,
        // Byte level by itself cuts as GPT-2.
        None if all.iter().any(|part| part.get("use_regex").and_then(Json::as_bool) == Some(true)) => CUTS[3].0,
        None => return Err("cuts texts in a way that llama.cpp has no name for here".to_owned()),
    };
    let found = CUTS.iter().find(|(part, takes_whole, _)| expression.contains(part) && *takes_whole == whole);
    found
        .map(|(_, _, name)| *name)
        .ok_or_else(|| format!("cuts texts by {expression:?}, which is none of LLaMA 3's, Qwen 2's and GPT-2's"))
}
