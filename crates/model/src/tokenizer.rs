//! Text to token ids, by the `tokenizer.json` beside the checkpoint.

use std::path::Path;

use serde_json::json;
use tokenizers::processors::template::TemplateProcessing;

use crate::Error;

/// A checkpoint's own tokenizer.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    bos: Option<u32>,
    eos: Option<u32>,
}

impl Tokenizer {
    /// Reads a `tokenizer.json` from memory; `origin` names it in errors.
    ///
    /// BOS and EOS start out as the ids of the usual names (`<s>`, `<|begin_of_text|>`, …) where the vocabulary has
    /// them; [`with_special_ids`](Self::with_special_ids) sets what the model's configuration says.
    pub fn from_bytes(bytes: &[u8], origin: &Path) -> Result<Self, Error> {
        let unusable = |e: tokenizers::Error| Error::Tokenizer { path: origin.to_owned(), reason: e.to_string() };
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes).map_err(unusable)?;
        // Some files were saved with truncation or padding on; transformers switches both off unless asked, and so
        // must we, or long texts would silently lose their end.
        inner.with_truncation(None).map_err(unusable)?;
        inner.with_padding(None);
        let first = |names: &[&str]| names.iter().find_map(|n| inner.token_to_id(n));
        let bos = first(&["<|begin_of_text|>", "<s>", "<|endoftext|>"]);
        let eos = first(&["<|end_of_text|>", "</s>", "<|endoftext|>"]);
        Ok(Tokenizer { inner, bos, eos })
    }

    /// The same tokenizer with the BOS and EOS ids of the model's configuration, where it names them.
    pub fn with_special_ids(mut self, bos: Option<u32>, eos: Option<u32>) -> Self {
        self.bos = bos.or(self.bos);
        self.eos = eos.or(self.eos);
        self
    }

    /// The same tokenizer with special tokens added as `LlamaTokenizerFast` does: `bos` before and `eos` after a text,
    /// whatever the file's post-processor says.
    ///
    /// # Errors
    /// A token that the vocabulary does not have.
    pub(crate) fn with_template(mut self, bos: Option<&str>, eos: Option<&str>) -> Result<Self, String> {
        let mut pieces = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut special = serde_json::Map::new();
        for (token, at_end) in [(bos, false), (eos, true)] {
            let Some(token) = token else { continue };
            let id = self.id(token).ok_or_else(|| format!("special token {token:?} is not in tokenizer.json"))?;
            let piece = json!({"SpecialToken": {"id": token, "type_id": 0}});
            pieces.insert(if at_end { pieces.len() } else { 0 }, piece);
            special.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
        }
        // Built from JSON because the builder's own notation cannot hold tokens with spaces or colons.
        let template =
            json!({"type": "TemplateProcessing", "single": pieces, "pair": pieces, "special_tokens": special});
        let template: TemplateProcessing = serde_json::from_value(template).map_err(|e| e.to_string())?;
        self.inner.with_post_processor(Some(template));
        Ok(self)
    }

    /// The id of a token, special or not.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Ids of `text`; `add_special_tokens` runs the tokenizer's own post-processor, which adds BOS where it does.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, Error> {
        let encoding = self
            .inner
            .encode_fast(text, add_special_tokens)
            .map_err(|e| Error::Encode { text: text.chars().take(60).collect(), reason: e.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    pub fn decode(&self, ids: &[u32]) -> Result<String, Error> {
        self.inner.decode(ids, true).map_err(|e| Error::Encode { text: format!("{ids:?}"), reason: e.to_string() })
    }

    /// The text of what follows `prompt`, as it comes.
    pub fn stream(&self, prompt: &[u32]) -> TextStream<'_> {
        let ids = prompt[prompt.len().saturating_sub(CONTEXT)..].to_vec();
        TextStream { tokenizer: self, before: 0, said: ids.len(), ids }
    }

    /// The text of one token, special or not; `None` outside the vocabulary.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Id of the beginning-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Id of the end-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// Number of tokens, added ones included.
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Ids of the prompt that decoding looks back at: enough for any decoder to know that it is not at a text's beginning.
const CONTEXT: usize = 6;

/// What a decoder makes of bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{FFFD}';

/// Text that grows token by token.
///
/// A token by itself may be a part of a character, and some decoders drop the space before the first word of what they
/// are given. So the tokens are decoded together with those before, and what came out earlier is cut off.
/// (`DecodeStream` of the tokenizers library does the same, but cannot give out what it holds back at the end.)
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// The last ids of the prompt, and all since.
    ids: Vec<u32>,
    /// Where the ids begin that are decoded with the next one.
    before: usize,
    /// Where the ids begin whose text has not been given out.
    said: usize,
}

impl TextStream<'_> {
    /// The text that `id` completes; empty for a special token and within a character.
    ///
    /// # Errors
    /// An id that the tokenizer cannot decode.
    pub fn push(&mut self, id: u32) -> Result<String, Error> {
        self.ids.push(id);
        let text = self.rest()?;
        if text.is_empty() || text.ends_with(REPLACEMENT) {
            return Ok(String::new());
        }
        (self.before, self.said) = (self.said, self.ids.len());
        Ok(text)
    }

    /// What is held back when no more comes: the beginning of a character, as U+FFFD.
    ///
    /// # Errors
    /// As [`push`](Self::push).
    pub fn finish(self) -> Result<String, Error> {
        self.rest()
    }

    /// The text that has not been given out.
    fn rest(&self) -> Result<String, Error> {
        let known = self.tokenizer.decode(&self.ids[self.before..self.said])?;
        let mut text = self.tokenizer.decode(&self.ids[self.before..])?;
        // Where a decoder writes earlier text otherwise once it sees more, what it has in common with that counts.
        let common = known.chars().zip(text.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        Ok(text.split_off(common))
    }
}
