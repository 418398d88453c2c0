//! Which output goes into which file and where, and the files' headers.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};

use super::job::{Job, Output};
use crate::native::{self, Notes};

/// The name of a model's only file, of one of several, and of the list of them.
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Headers are padded to this many bytes, as other writers do.
const ALIGNMENT: usize = 8;

/// A file to be written.
pub(crate) struct Shard {
    pub(crate) name: String,
    outputs: Vec<Placed>,
    /// Bytes of tensors.
    data: usize,
    /// Bytes before them: what the container begins with.
    start: usize,
}

/// A tensor in a file.
pub struct Placed {
    /// The tensor.
    pub output: Output,
    /// Where it begins, counted from the first one.
    pub offset: usize,
}

/// A format of files that begin with a header, with tensors after it.
pub trait Container: Send + Sync {
    /// Tensors begin at multiples of this many bytes, counted from the first.
    fn alignment(&self) -> usize {
        1
    }

    /// All that comes before the first tensor, for a source with this hash (64 digits), which must not change its
    /// length.
    fn header(&self, outputs: &[Placed], source_sha256: &str) -> Vec<u8>;
}

/// The files, and where in them the outputs of the jobs are.
pub struct Layout {
    pub(crate) shards: Vec<Shard>,
    /// Of each job and each of its outputs the shard and the offset in it.
    pub(crate) places: Vec<Vec<(usize, usize)>>,
    container: Box<dyn Container>,
}

/// What the headers of native files say beside the tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    /// Of the tensors that are quantized; without them, the source was and the output is not.
    pub(crate) notes: Option<Notes>,
    /// Whatever else the source's own header said.
    pub(crate) kept: BTreeMap<String, String>,
}

impl Container for Header {
    fn header(&self, outputs: &[Placed], source_sha256: &str) -> Vec<u8> {
        let mut about: Map<String, Value> = self.kept.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
        let notes = match &self.notes {
            Some(notes) => {
                let notes = Notes { source_sha256: source_sha256.to_owned(), ..notes.clone() };
                let here: HashSet<&str> = outputs.iter().map(|placed| placed.output.name.as_str()).collect();
                notes.write(|name| here.contains(name))
            }
            None => native::dequantized(source_sha256),
        };
        about.extend(notes);
        safetensors_header(about, outputs)
    }
}

/// The beginning of a safetensors file: its header's length and its header, with `about` as its metadata.
pub fn safetensors_header(about: Map<String, Value>, outputs: &[Placed]) -> Vec<u8> {
    let mut header = Map::new();
    header.insert("__metadata__".to_owned(), Value::Object(about));
    for Placed { output, offset } in outputs {
        let end = offset + output.bytes();
        let entry = json!({"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]});
        header.insert(output.name.clone(), entry);
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
    [&(text.len() as u64).to_le_bytes()[..], &text].concat()
}

impl Layout {
    /// The outputs of a model in files of at most `limit` bytes of tensors, or as few more as one job has.
    pub fn of_model(jobs: &[Job], limit: usize, container: Box<dyn Container>) -> Layout {
        let mut groups: Vec<Vec<usize>> = Vec::new();
        let mut size = 0;
        for (index, job) in jobs.iter().enumerate() {
            let bytes: usize = job.outputs.iter().map(Output::bytes).sum();
            match groups.last_mut() {
                Some(group) if size + bytes <= limit => group.push(index),
                _ => {
                    groups.push(vec![index]);
                    size = 0;
                }
            }
            size += bytes;
        }
        let count = groups.len();
        let name = |i: usize| format!("model-{:05}-of-{count:05}.safetensors", i + 1);
        let names = (0..count).map(|i| if count == 1 { SINGLE.to_owned() } else { name(i) });
        Layout::new(jobs, names.zip(groups).collect(), container)
    }

    /// The outputs in one file.
    pub fn of_file(jobs: &[Job], name: String, container: Box<dyn Container>) -> Layout {
        Layout::new(jobs, vec![(name, (0..jobs.len()).collect())], container)
    }

    fn new(jobs: &[Job], files: Vec<(String, Vec<usize>)>, container: Box<dyn Container>) -> Layout {
        let mut places: Vec<Vec<(usize, usize)>> = jobs.iter().map(|job| vec![(0, 0); job.outputs.len()]).collect();
        let mut layout = Layout { shards: Vec::new(), places: Vec::new(), container };
        for (shard, (name, members)) in files.into_iter().enumerate() {
            let mut outputs: Vec<(usize, usize)> =
                members.iter().flat_map(|&job| (0..jobs[job].outputs.len()).map(move |output| (job, output))).collect();
            // The wider types first: PyTorch reads a value only from a multiple of its own size.
            outputs.sort_by_key(|&(job, output)| std::cmp::Reverse(jobs[job].outputs[output].dtype.bitsize()));
            let mut data = 0usize;
            let mut placed = Vec::new();
            for (job, output) in outputs {
                data = data.next_multiple_of(layout.container.alignment());
                places[job][output] = (shard, data);
                let output = jobs[job].outputs[output].clone();
                placed.push(Placed { offset: data, output });
                data += placed.last().map_or(0, |placed| placed.output.bytes());
            }
            data = data.next_multiple_of(layout.container.alignment());
            layout.shards.push(Shard { name, outputs: placed, data, start: 0 });
        }
        for shard in 0..layout.shards.len() {
            layout.shards[shard].start = layout.header(shard, &"0".repeat(64)).len();
        }
        for (shard, offset) in places.iter_mut().flatten() {
            *offset += layout.shards[*shard].start;
        }
        layout.places = places;
        layout
    }

    /// The first bytes of a shard, for a source of this hash (64 digits).
    pub(crate) fn header(&self, shard: usize, source_sha256: &str) -> Vec<u8> {
        self.container.header(&self.shards[shard].outputs, source_sha256)
    }

    /// The list of a model's files, if there are several: name and content.
    pub(crate) fn index(&self) -> Option<(String, Vec<u8>)> {
        if self.shards.len() < 2 {
            return None;
        }
        let total: usize = self.shards.iter().map(|shard| shard.data).sum();
        let mut names: Vec<(&str, &str)> = self
            .shards
            .iter()
            .flat_map(|shard| shard.outputs.iter().map(|placed| (placed.output.name.as_str(), shard.name.as_str())))
            .collect();
        names.sort_unstable();
        let map: Map<String, Value> = names.into_iter().map(|(name, file)| (name.to_owned(), json!(file))).collect();
        let index = json!({"metadata": {"total_size": total}, "weight_map": map});
        Some((INDEX.to_owned(), format!("{index:#}\n").into_bytes()))
    }
}

impl Shard {
    /// Bytes of the whole file.
    pub(crate) fn bytes(&self) -> usize {
        self.start + self.data
    }
}
