//! The sequences of a forward pass, concatenated; those that begin alike may share that beginning.

use std::ops::Range;

/// Several sequences, concatenated, each beginning at a position of its own.
///
/// A sequence may follow another: it then goes on where that one ends, and sees its keys and values. Several that
/// follow the same one share its computation.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    pub(crate) tokens: Vec<u32>,
    pub(crate) sequences: Vec<Sequence>,
}

/// A sequence of a batch, or what one adds to another.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// Its rows in the batch.
    pub(crate) rows: Range<usize>,
    /// Position of its first token.
    pub(crate) position: usize,
    /// The sequence it follows.
    pub(crate) after: Option<usize>,
    /// How many it follows, one after another.
    pub(crate) depth: usize,
}

impl Batch {
    /// Appends a sequence that begins at position 0 and returns the rows of its tokens.
    pub fn push(&mut self, tokens: &[u32]) -> Range<usize> {
        self.push_at(0, tokens)
    }

    /// Appends the tokens that follow `position` others and returns their rows.
    pub fn push_at(&mut self, position: usize, tokens: &[u32]) -> Range<usize> {
        self.add(Sequence { rows: 0..0, position, after: None, depth: 0 }, tokens)
    }

    /// Appends the tokens that follow sequence `after` of the batch, counted as they were pushed, and returns their
    /// rows. Of values in blocks, whole blocks only should be followed unless they are causal: `after`'s own last block
    /// does not see these tokens.
    ///
    /// # Panics
    /// If there is no such sequence.
    pub fn push_after(&mut self, after: usize, tokens: &[u32]) -> Range<usize> {
        let before = &self.sequences[after];
        let position = before.position + before.rows.len();
        let depth = before.depth + 1;
        self.add(Sequence { rows: 0..0, position, after: Some(after), depth }, tokens)
    }

    fn add(&mut self, sequence: Sequence, tokens: &[u32]) -> Range<usize> {
        let rows = self.tokens.len()..self.tokens.len() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.sequences.push(Sequence { rows: rows.clone(), ..sequence });
        rows
    }

    /// How many sequences it holds.
    pub fn sequences(&self) -> usize {
        self.sequences.len()
    }

    /// How many tokens it holds.
    pub fn tokens(&self) -> usize {
        self.tokens.len()
    }

    /// The rows of all sequences.
    pub(crate) fn rows(&self) -> Vec<Range<usize>> {
        self.sequences.iter().map(|s| s.rows.clone()).collect()
    }
}
