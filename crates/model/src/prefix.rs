//! Requests that begin alike: which are scored together, and how their common beginning is computed once.

use std::cmp::Ordering;
use std::ops::Range;

use crate::Request;
use crate::batch::Batch;

/// Fewer common tokens than these are computed for each request by itself.
const LEAST_SHARED: usize = 8;

/// What a batch may hold and what its requests may share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sharing {
    /// Requests per batch; `None` fills a batch up to `tokens`.
    pub(crate) requests: Option<usize>,
    /// Tokens per batch.
    pub(crate) tokens: usize,
    /// Whether beginnings are shared at all.
    pub(crate) enabled: bool,
    /// Inputs longer than this share nothing: their rotary frequencies depend on their length.
    pub(crate) longest: usize,
}

/// The requests in batches, by index. Requests that begin alike are side by side in one, sorted by their tokens; groups
/// of them keep the order of their first members.
pub(crate) fn batches(requests: &[Request], sharing: &Sharing) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    if sharing.enabled {
        order.sort_by(|&a, &b| by_tokens(&requests[a], &requests[b]).then(a.cmp(&b)));
    }
    // Groups are cut where neighbours have little in common.
    let mut groups: Vec<Vec<(usize, usize)>> = Vec::new();
    for (i, &request) in order.iter().enumerate() {
        let input = requests[request].input();
        let common = if i > 0 && sharing.enabled { common(requests[order[i - 1]].input(), input) } else { 0 };
        let fresh = input.len() - common;
        match groups.last_mut() {
            Some(group) if common >= LEAST_SHARED => group.push((request, fresh)),
            _ => groups.push(vec![(request, input.len())]),
        }
    }
    groups.sort_by_key(|group| group.iter().map(|&(request, _)| request).min());
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let (mut batch, mut tokens) = (Vec::new(), 0);
    for group in groups {
        let whole: usize = group.iter().map(|&(_, fresh)| fresh).sum();
        let mut begun = tokens > 0 && tokens + whole > sharing.tokens && sharing.requests.is_none();
        for (request, fresh) in group {
            let full = match sharing.requests {
                Some(most) => batch.len() >= most,
                // A group goes into one batch if it fits into one at all.
                None => begun || tokens > 0 && tokens + fresh > sharing.tokens,
            };
            if full {
                batches.push(std::mem::take(&mut batch));
                tokens = 0;
            }
            begun = false;
            tokens += if batch.is_empty() { requests[request].input().len() } else { fresh };
            batch.push(request);
        }
    }
    batches.extend((!batch.is_empty()).then_some(batch));
    batches
}

fn by_tokens(a: &Request, b: &Request) -> Ordering {
    a.input().cmp(b.input())
}

/// How many tokens two inputs have in common at their beginning.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// The sequences that a batch of requests comes to, and where each request's logits are.
pub(crate) struct Layout {
    pub(crate) batch: Batch,
    /// For each request, in the order given, the rows of the batch whose logits score its continuation.
    pub(crate) places: Vec<Vec<u32>>,
    /// For each request, the tokens of its input that were computed for another.
    pub(crate) reused: Vec<usize>,
}

impl Layout {
    /// Lays out requests sorted by their tokens. Beginnings are shared up to multiples of `step` tokens.
    pub(crate) fn new(requests: &[&Request], step: usize, sharing: &Sharing) -> Layout {
        let mut inputs: Vec<&[u32]> = Vec::new();
        let mut cuts: Vec<usize> = Vec::new();
        let mut which = Vec::with_capacity(requests.len());
        for request in requests {
            let input = request.input();
            if !sharing.enabled || inputs.last() != Some(&input) {
                let last = inputs.last().copied().unwrap_or_default();
                let short = sharing.enabled && input.len().max(last.len()) <= sharing.longest;
                cuts.push(if short { common(last, input) / step * step } else { 0 });
                inputs.push(input);
            }
            which.push(inputs.len() - 1);
        }
        let mut tree = Tree { inputs: &inputs, cuts: &cuts, batch: Batch::default(), paths: Vec::new(), unpaid: 0 };
        tree.grow(0..inputs.len(), &[], 0);
        let mut seen = None;
        let placed = requests.iter().zip(&which).map(|(request, &input)| {
            let path = &tree.paths[input];
            let row = |position: usize| {
                let part = path.parts.iter().rev().find(|part| part.position <= position);
                part.map_or(0, |part| (part.row + position - part.position) as u32)
            };
            let reused = if seen == Some(input) { inputs[input].len() } else { inputs[input].len() - path.paid };
            seen = Some(input);
            ((request.context - 1..request.tokens.len() - 1).map(row).collect(), reused)
        });
        let (places, reused) = placed.unzip();
        Layout { batch: tree.batch, places, reused }
    }
}

/// Inputs as a tree of their common beginnings, while it grows.
struct Tree<'a> {
    inputs: &'a [&'a [u32]],
    /// How many tokens each input may share with the one before it.
    cuts: &'a [usize],
    batch: Batch,
    /// By input, as they are reached.
    paths: Vec<Path>,
    /// Tokens of beginnings that no input has accounted for.
    unpaid: usize,
}

/// Where an input's tokens are.
struct Path {
    parts: Vec<Part>,
    /// Tokens computed for this input first.
    paid: usize,
}

/// A piece of an input: its sequence in the batch, the position and the row of its first token.
#[derive(Clone, Copy)]
struct Part {
    sequence: usize,
    position: usize,
    row: usize,
}

impl Tree<'_> {
    /// Adds the inputs `range`, whose first `start` tokens are those of `parts`.
    fn grow(&mut self, range: Range<usize>, parts: &[Part], start: usize) {
        let mut first = range.start;
        while first < range.end {
            let joins = |i: &usize| self.cuts[*i] >= start + LEAST_SHARED;
            let end = first + 1 + (first + 1..range.end).take_while(joins).count();
            if end == first + 1 {
                let tokens = &self.inputs[first][start..];
                let parts = if tokens.is_empty() { parts.to_vec() } else { self.push(tokens, parts) };
                let paid = std::mem::take(&mut self.unpaid) + tokens.len();
                self.paths.push(Path { parts, paid });
            } else {
                let cut = self.cuts[first + 1..end].iter().copied().min().unwrap_or(start);
                let parts = self.push(&self.inputs[first][start..cut], parts);
                self.unpaid += cut - start;
                self.grow(first..end, &parts, cut);
            }
            first = end;
        }
    }

    /// Appends a sequence after those of `parts`; the parts with it.
    fn push(&mut self, tokens: &[u32], parts: &[Part]) -> Vec<Part> {
        let sequence = self.batch.sequences();
        let (rows, position) = match parts.last() {
            None => (self.batch.push(tokens), 0),
            Some(last) => {
                let rows = self.batch.push_after(last.sequence, tokens);
                (rows, self.batch.sequences[sequence].position)
            }
        };
        parts.iter().copied().chain([Part { sequence, position, row: rows.start }]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Sharing = Sharing { requests: None, tokens: 100, enabled: true, longest: usize::MAX };

    fn request(tokens: impl IntoIterator<Item = u32>, context: usize) -> Request {
        Request { tokens: tokens.into_iter().collect(), context }
    }

    /// The tokens an input has in the batch, read back through the sequences it follows.
    fn read_back(layout: &Layout, row: usize) -> Vec<u32> {
        let batch = &layout.batch;
        let mut at = batch.sequences.iter().position(|s| s.rows.contains(&row));
        let mut tokens: Vec<u32> = Vec::new();
        let mut end = row + 1;
        while let Some(i) = at {
            let sequence = &batch.sequences[i];
            tokens.splice(0..0, batch.tokens[sequence.rows.start..end].iter().copied());
            at = sequence.after;
            end = at.map_or(0, |i| batch.sequences[i].rows.end);
        }
        tokens
    }

    #[test]
    fn every_input_is_there_and_beginnings_are_once() {
        let ends: [&[u32]; 6] = [&[1, 2, 3], &[1, 2, 4, 9], &[1], &[7, 7], &[1, 2, 3], &[]];
        let mut requests: Vec<Request> =
            ends.iter().map(|end| request((0..40).chain(end.iter().copied()).chain([50]), 40)).collect();
        requests.push(request(100..130, 3));
        requests.push(request((0..40).chain(200..212), 45));
        requests.sort_by(by_tokens);
        let all: Vec<&Request> = requests.iter().collect();
        for step in [1, 32] {
            let layout = Layout::new(&all, step, &ALL);
            let mut computed = 0;
            for (request, (places, reused)) in all.iter().zip(layout.places.iter().zip(&layout.reused)) {
                assert_eq!(places.len(), request.tokens.len() - request.context);
                for (i, &row) in places.iter().enumerate() {
                    assert_eq!(read_back(&layout, row as usize), request.tokens[..request.context + i], "step {step}");
                }
                computed += request.input().len() - reused;
            }
            assert_eq!(computed, layout.batch.tokens());
            for sequence in &layout.batch.sequences {
                assert!(sequence.after.is_none() || sequence.position.is_multiple_of(step));
            }
        }
        // 40 tokens once, then 3, 4, 1, 2 and 11 of their own, and 29 alone.
        assert_eq!(Layout::new(&all, 1, &ALL).batch.tokens(), 40 + 3 + 4 + 1 + 2 + 11 + 29);
        let none = Layout::new(&all, 1, &Sharing { enabled: false, ..ALL });
        assert_eq!(none.batch.tokens(), requests.iter().map(|r| r.input().len()).sum::<usize>());
        let short = Layout::new(&all, 1, &Sharing { longest: 40, ..ALL });
        assert!(short.batch.sequences.iter().all(|s| s.after.is_none()));
    }

    #[test]
    fn batches_keep_groups_together_and_hold_everything() {
        let document =
            |first: u32, choices: u32| (0..choices).map(move |c| request((first..first + 30).chain([c, 9]), 30));
        let requests: Vec<Request> = document(0, 4).chain(document(100, 4)).chain(document(200, 70)).collect();
        let found = batches(&requests, &ALL);
        let mut all: Vec<usize> = found.concat();
        all.sort_unstable();
        assert_eq!(all, (0..requests.len()).collect::<Vec<_>>());
        assert_eq!(found[0], [0, 1, 2, 3, 4, 5, 6, 7]);
        for batch in &found {
            let some: Vec<&Request> = batch.iter().map(|&i| &requests[i]).collect();
            assert!(Layout::new(&some, 1, &ALL).batch.tokens() <= ALL.tokens);
        }
        let twos = batches(&requests, &Sharing { requests: Some(2), ..ALL });
        assert!(twos.iter().all(|batch| batch.len() <= 2) && twos.len() == 39);
        let alone = batches(&requests, &Sharing { enabled: false, ..ALL });
        assert_eq!(alone.concat(), (0..requests.len()).collect::<Vec<_>>());
    }
}
