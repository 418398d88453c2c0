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
