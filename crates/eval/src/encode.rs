//! Documents to token sequences, as lm-eval's Hugging Face model tokenises a request.

use microscale_model::{Request, Tokenizer};
use rayon::prelude::*;

use crate::Error;
use crate::python_text::strip_end;
use crate::tasks::{Document, Task};

/// Turns documents into requests with a model's tokenizer.
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    max_length: usize,
    add_special_tokens: bool,
    /// What a text begins with that spells its BOS itself, so that none is added.
    bos_text: Option<String>,
}

/// The requests of one task: for each document, one for each choice.
#[derive(Clone, Debug)]
pub struct TaskRequests {
    /// Name of the task.
    pub task: String,
    /// By document, then by choice.
    pub documents: Vec<Vec<Request>>,
    /// How many requests lost tokens on the left to fit the maximal length.
    pub truncated: usize,
}

impl<'a> Encoder<'a> {
    /// `max_length` is the longest input of the model, in tokens; the final token of a request is only a target and
    /// comes on top.
    pub fn new(tokenizer: &'a Tokenizer, max_length: usize) -> Self {
        let bos_text = tokenizer.bos().and_then(|id| tokenizer.token(id)).filter(|text| !text.is_empty());
        Encoder { tokenizer, max_length, add_special_tokens: true, bos_text }
    }

    /// Whether the tokenizer's own post-processor adds its special tokens (BOS, for LLaMA); it does by default.
    pub fn add_special_tokens(mut self, add: bool) -> Self {
        self.add_special_tokens = add;
        self
    }

    /// Encodes all documents of a task, in parallel; the result is in their order.
    ///
    /// # Errors
    /// A request that has no context or no continuation in tokens, or a continuation longer than the model's input;
    /// with the task, document and choice.
    pub fn encode_task(&self, task: &Task) -> Result<TaskRequests, Error> {
        let encoded: Vec<_> = task.documents.par_iter().map(|document| self.encode_document(document)).collect();
        let mut requests = TaskRequests { task: task.name.clone(), documents: Vec::new(), truncated: 0 };
        for (index, result) in encoded.into_iter().enumerate() {
            let (choices, truncated) = result.map_err(|(choice, reason)| Error::Request {
                task: task.name.clone(),
                document: index,
                choice,
                reason,
            })?;
            requests.documents.push(choices);
            requests.truncated += truncated;
        }
        Ok(requests)
    }

    /// The requests of one document and how many of them were truncated, or the choice that failed and why.
    fn encode_document(&self, document: &Document) -> Result<(Vec<Request>, usize), (usize, String)> {
        let mut requests = Vec::with_capacity(document.choices.len());
        let mut truncated = 0;
        // Choices mostly share one context; its ids are kept from one choice to the next.
        let mut known: Option<(&str, Vec<u32>)> = None;
        for choice in 0..document.choices.len() {
            let context = document.context(choice);
            let ids = match known.take() {
                Some((text, ids)) if text == context => ids,
                _ => self.encode_context(context).map_err(|reason| (choice, reason))?,
            };
            let (request, cut) =
                self.encode_choice(context, &ids, &document.continuation(choice)).map_err(|reason| (choice, reason))?;
            known = Some((context, ids));
            requests.push(request);
            truncated += usize::from(cut);
        }
        Ok((requests, truncated))
    }

    fn encode_context(&self, context: &str) -> Result<Vec<u32>, String> {
        self.encode(strip_end(context))
    }

    /// The request of one choice and whether it was truncated. `context_ids` are the ids of the context without its
    /// trailing white space, which belongs to the continuation.
    fn encode_choice(&self, context: &str, context_ids: &[u32], continuation: &str) -> Result<(Request, bool), String> {
        let (context_ids, continuation_ids) = if context.is_empty() {
            self.encode_without_context(continuation)?
        } else {
            // The continuation is what the whole has beyond the length of the context, whether or not the whole begins
            // with the context's ids.
            let whole = self.encode(&format!("{context}{continuation}"))?;
            (context_ids.to_vec(), whole.get(context_ids.len()..).unwrap_or_default().to_vec())
        };
        if context_ids.is_empty() {
            return Err(
                "the context has no tokens; give the tokenizer a BOS token or the document a context".to_owned()
            );
        }
        if continuation_ids.is_empty() {
            return Err(format!("the continuation {continuation:?} has no tokens of its own; change the choice"));
        }
        if continuation_ids.len() > self.max_length {
            return Err(format!(
                "the continuation has {} tokens but the model's input is at most {}; shorten the choice",
                continuation_ids.len(),
                self.max_length
            ));
        }
        let mut tokens = context_ids;
        let mut context = tokens.len();
        tokens.extend(continuation_ids);
        let surplus = tokens.len().saturating_sub(self.max_length + 1);
        tokens.drain(..surplus);
        context -= surplus;
        Ok((Request { tokens, context }, surplus > 0))
    }

    /// An empty context is the BOS token (else EOS), which the continuation may bring along itself.
    fn encode_without_context(&self, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), String> {
        let mut ids = self.tokenizer.encode(continuation, false).map_err(|error| error.to_string())?;
        let prefix = self.tokenizer.bos().or(self.tokenizer.eos());
        let prefix = prefix.ok_or("the context is empty and the tokenizer has neither a BOS nor an EOS token")?;
        if ids.first() == Some(&prefix) {
            ids.remove(0);
        }
        Ok((vec![prefix], ids))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let spelled = self.bos_text.as_ref().is_some_and(|bos| text.starts_with(bos.as_str()));
        self.tokenizer.encode(text, self.add_special_tokens && !spelled).map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{Catalog, Files};

    const BOS: u32 = 1;
    const SPACE: u32 = 3;
    const A: u32 = 4;
    const B: u32 = 5;
    const AB: u32 = 6;
    const SPACE_A: u32 = 7;

    /// Byte-pair encoding over `a`, `b` and the space with the merges `ab` and ` a`; adds BOS where `adds_bos`.
    fn tokenizer(adds_bos: bool) -> Tokenizer {
        let special = |id: u32, text: &str| {
            serde_json::json!({
                "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true,
            })
        };
        let template = serde_json::json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [BOS], "tokens": ["<s>"]}},
        });
        let json = serde_json::json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "decoder": null,
            "added_tokens": [special(0, "<unk>"), special(BOS, "<s>"), special(2, "</s>")],
            "post_processor": if adds_bos { template } else { serde_json::Value::Null },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                "vocab": {"<unk>": 0, "<s>": BOS, "</s>": 2, " ": SPACE, "a": A, "b": B, "ab": AB, " a": SPACE_A},
                "merges": [["a", "b"], [" ", "a"]],
            },
        });
        Tokenizer::from_bytes(json.to_string().as_bytes(), Path::new("tokenizer.json")).unwrap()
    }

    fn encode_with(
        encoder: &Encoder<'_>,
        context: &str,
        continuation: &str,
    ) -> Result<(Vec<u32>, usize, bool), String> {
        let ids = encoder.encode_context(context)?;
        let (request, truncated) = encoder.encode_choice(context, &ids, continuation)?;
        Ok((request.tokens, request.context, truncated))
    }

    fn encode(context: &str, continuation: &str) -> Result<(Vec<u32>, usize, bool), String> {
        encode_with(&Encoder::new(&tokenizer(true), 100), context, continuation)
    }

    #[test]
    fn white_space_at_the_end_of_the_context_goes_to_the_continuation() {
        assert_eq!(encode("b", " a").unwrap(), (vec![BOS, B, SPACE_A], 2, false));
        assert_eq!(encode("b ", "a").unwrap(), (vec![BOS, B, SPACE_A], 2, false));
        assert_eq!(encode("b ", " a").unwrap(), (vec![BOS, B, SPACE, SPACE_A], 2, false));
        assert_eq!(encode(" ", "b").unwrap(), (vec![BOS, SPACE, B], 1, false));
    }

    #[test]
    fn the_continuation_is_sliced_by_count() {
        // Whole: BOS, ab, b. Context: BOS, a. The ids of the context are kept although the whole begins otherwise.
        assert_eq!(encode("a", "bb").unwrap(), (vec![BOS, A, B], 2, false));
        assert!(encode("a", "b").unwrap_err().contains("no tokens of its own"));
    }

    #[test]
    fn an_empty_context_is_the_bos_token() {
        assert_eq!(encode("", " a").unwrap(), (vec![BOS, SPACE_A], 1, false));
        assert_eq!(encode("", "<s>b").unwrap(), (vec![BOS, B], 1, false));
    }

    #[test]
    fn a_spelled_bos_is_not_doubled() {
        assert_eq!(encode("<s>b", " a").unwrap(), (vec![BOS, B, SPACE_A], 2, false));
    }

    #[test]
    fn without_special_tokens_there_is_no_bos() {
        let tokenizer = tokenizer(true);
        let encoder = Encoder::new(&tokenizer, 100).add_special_tokens(false);
        assert_eq!(encode_with(&encoder, "b", " a").unwrap(), (vec![B, SPACE_A], 1, false));
        assert!(encode_with(&encoder, " ", "b").unwrap_err().contains("the context has no tokens"));
    }

    #[test]
    fn long_requests_lose_tokens_on_the_left() {
        let tokenizer = tokenizer(true);
        let encoder = Encoder::new(&tokenizer, 3);
        assert_eq!(encode_with(&encoder, "bbb", " a").unwrap(), (vec![B, B, B, SPACE_A], 3, true));
        assert_eq!(encode_with(&encoder, "bb", " a").unwrap(), (vec![BOS, B, B, SPACE_A], 3, false));
        assert_eq!(encode_with(&encoder, "bb", " bb").unwrap(), (vec![B, SPACE, B, B], 1, true));
        assert!(
            encode_with(&encoder, "b", " bbb").unwrap_err().contains("4 tokens but the model's input is at most 3")
        );
    }

    #[test]
    fn tasks_are_encoded_in_order_with_a_context_per_choice() {
        let lines: Vec<String> = (0..200)
            .map(|i| serde_json::json!({ "query": "b".repeat(i + 1), "choices": ["a", "b"], "gold": 0 }).to_string())
            .collect();
        let winogrande = r#"{"sentence":"b _ b","option1":"a","option2":"ab","answer":"1"}"#;
        let files = Files::from_memory(
            "m",
            [("t.jsonl", lines.join("\n").into_bytes()), ("dev.jsonl", winogrande.as_bytes().to_vec())],
        );
        let catalog = Catalog::discover(files).unwrap();
        let tokenizer = tokenizer(true);
        let encoder = Encoder::new(&tokenizer, 150);
        let requests = encoder.encode_task(&catalog.load("t").unwrap()).unwrap();
        assert_eq!(requests.documents.len(), 200);
        assert_eq!(requests.documents[9][0].tokens.len(), 12);
        assert_eq!(requests.documents[9][1].tokens[10..], [B, SPACE, B]);
        // BOS, i + 1 times b and the choice against 151 tokens: the last 51 for " a", the last 52 for " ", "b".
        assert_eq!(requests.truncated, 51 + 52);
        let requests = encoder.encode_task(&catalog.load("winogrande").unwrap()).unwrap();
        assert_eq!(requests.documents[0][0].tokens, [BOS, B, SPACE_A, SPACE, B]);
        assert_eq!(requests.documents[0][1].tokens, [BOS, B, SPACE, AB, SPACE, B]);
        assert_eq!(requests.documents[0].iter().map(|request| request.context).collect::<Vec<_>>(), [3, 4]);
    }

    #[test]
    fn a_request_that_cannot_be_encoded_is_named() {
        let text = "{\"query\":\"b\",\"choices\":[\"a\"],\"gold\":0}\n{\"query\":\"b\",\"choices\":[\"a\",\"bbbbb\"],\"gold\":0}";
        let files = Files::from_memory("m", [("t.jsonl", text.as_bytes())]);
        let task = Catalog::discover(files).unwrap().load("t").unwrap();
        let tokenizer = tokenizer(true);
        let error = Encoder::new(&tokenizer, 4).encode_task(&task).unwrap_err().to_string();
        assert!(error.starts_with("task `t`, document 1, choice 1: the continuation has 6 tokens"), "{error}");
    }
}
