//! Text to token ids, by the `tokenizer.json` beside the checkpoint.

use std::path::Path;

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
        let inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::Tokenizer { path: origin.to_owned(), reason: e.to_string() })?;
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
