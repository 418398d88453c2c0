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
    outputs: Vec<Output>,
    /// Bytes of tensors.
    data: usize,
    /// Bytes before them: the header and its length.
    start: usize,
}

/// The files, and where in them the outputs of the jobs are.
pub(crate) struct Layout {
    pub(crate) shards: Vec<Shard>,
    /// Of each job and each of its outputs the shard and the offset in it.
    pub(crate) places: Vec<Vec<(usize, usize)>>,
    header: Header,
}

/// What the headers say beside the tensors.
#[derive(Clone, Debug, Default)]
pub(crate) struct Header {
    /// Of the tensors that are quantized; without them, the source was and the output is not.
    pub(crate) notes: Option<Notes>,
    /// Whatever else the source's own header said.
    pub(crate) kept: BTreeMap<String, String>,
}

impl Layout {
    /// The outputs of a model in files of at most `limit` bytes of tensors, or as few more as one job has.
    pub(crate) fn of_model(jobs: &[Job], limit: usize, header: Header) -> Layout {
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
        Layout::new(jobs, names.zip(groups).collect(), header)
    }

    /// The outputs in one file.
    pub(crate) fn of_file(jobs: &[Job], name: String, header: Header) -> Layout {
        Layout::new(jobs, vec![(name, (0..jobs.len()).collect())], header)
    }

    fn new(jobs: &[Job], files: Vec<(String, Vec<usize>)>, header: Header) -> Layout {
        let mut places: Vec<Vec<(usize, usize)>> = jobs.iter().map(|job| vec![(0, 0); job.outputs.len()]).collect();
        let mut layout = Layout { shards: Vec::new(), places: Vec::new(), header };
        for (shard, (name, members)) in files.into_iter().enumerate() {
            let mut outputs: Vec<(usize, usize)> =
                members.iter().flat_map(|&job| (0..jobs[job].outputs.len()).map(move |output| (job, output))).collect();
            // The wider types first: PyTorch reads a value only from a multiple of its own size.
            outputs.sort_by_key(|&(job, output)| std::cmp::Reverse(jobs[job].outputs[output].dtype.bitsize()));
            let mut data = 0;
            for &(job, output) in &outputs {
                places[job][output] = (shard, data);
                data += jobs[job].outputs[output].bytes();
            }
            let outputs = outputs.into_iter().map(|(job, output)| jobs[job].outputs[output].clone()).collect();
            layout.shards.push(Shard { name, outputs, data, start: 0 });
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

    /// The first bytes of a shard, for a source of this hash (64 digits): its header's length and its header.
    pub(crate) fn header(&self, shard: usize, source_sha256: &str) -> Vec<u8> {
        let outputs = &self.shards[shard].outputs;
        let mut about: Map<String, Value> =
            self.header.kept.iter().map(|(key, text)| (key.clone(), json!(text))).collect();
        let notes = match &self.header.notes {
            Some(notes) => {
                let notes = Notes { source_sha256: source_sha256.to_owned(), ..notes.clone() };
                let here: HashSet<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
                notes.write(|name| here.contains(name))
            }
            None => native::dequantized(source_sha256),
        };
        about.extend(notes);
        let mut header = Map::new();
        header.insert("__metadata__".to_owned(), Value::Object(about));
        let mut offset = 0;
        for output in outputs {
            let end = offset + output.bytes();
            let entry = json!({"dtype": output.dtype, "shape": output.shape, "data_offsets": [offset, end]});
            header.insert(output.name.clone(), entry);
            offset = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(ALIGNMENT), b' ');
        [&(text.len() as u64).to_le_bytes()[..], &text].concat()
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
            .flat_map(|shard| shard.outputs.iter().map(|output| (output.name.as_str(), shard.name.as_str())))
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
