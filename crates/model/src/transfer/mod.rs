//! Turning the tensors of files into those of others in bounded memory: in slices, on all threads, with a journal from
//! which a later run of the same work goes on.

mod digest;
mod existing;
mod job;
mod partial;
mod positioned;
mod shards;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use crate::checkpoint::hexadecimal;
use crate::{Error, MappedFile};
use digest::SourceDigest;
pub use job::{Input, Job, Output, RowTransform, Transform};
use partial::{Partial, Record};
pub use partial::{Target, partial_path};
pub(crate) use shards::Header;
pub use shards::{Container, Layout, Placed, safetensors_header};

/// How far a transfer is, in bytes of the source.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Bytes done, those of earlier runs too.
    pub done: usize,
    /// All of them.
    pub total: usize,
}

/// Called now and then from any thread; what it answers may end the work.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) -> ControlFlow<()> + Sync);

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The output is complete.
    Complete,
    /// It was complete before.
    AlreadyThere,
    /// The caller asked to stop; the same call goes on from there.
    Interrupted,
}

/// What a transfer did.
#[derive(Clone, Debug)]
pub struct Transferred {
    /// How it ended.
    pub ending: Ending,
    /// Bytes of the source's files.
    pub bytes_read: usize,
    /// Bytes of the files with tensors.
    pub bytes_written: usize,
    /// Bytes that earlier runs of the same work had read and written, so that this one need not.
    pub bytes_resumed: usize,
    /// Values in quantized tensors.
    pub quantized_values: usize,
    /// Bytes that these take, scales included.
    pub quantized_bytes: usize,
    /// Of tensors that are not finite, by name, how many blocks (of a quantized one) or values are not.
    pub not_finite: Vec<(String, usize)>,
}

/// Files to be made of files.
pub struct Transfer<'a> {
    /// The source's files, which the jobs' inputs count.
    pub files: Vec<&'a MappedFile>,
    /// The `config.json` of a model, which is part of its hash.
    pub config: Option<&'a [u8]>,
    /// What becomes of the tensors.
    pub jobs: Vec<Job>,
    /// Where the outputs of these jobs go.
    pub layout: Layout,
    /// Small files to put beside, by name; not of a single file.
    pub companions: Vec<(String, Vec<u8>)>,
    /// Where the output goes.
    pub target: Target,
    /// Whether values may be infinite or NaN.
    pub allow_not_finite: bool,
}

/// Some rows of a job.
struct Slice {
    job: usize,
    rows: Range<usize>,
}

/// What the threads share.
struct Shared<'t> {
    partial: &'t Partial,
    digest: &'t SourceDigest<'t>,
    slices: &'t [Slice],
    /// Slices that are not written yet, and the next of them.
    todo: &'t [usize],
    next: AtomicUsize,
    /// The next file to hash.
    file: AtomicUsize,
    done: AtomicUsize,
    total: usize,
    stop: AtomicBool,
    error: Mutex<Option<Error>>,
    not_finite: Mutex<BTreeMap<usize, usize>>,
    progress: OnProgress<'t>,
}

impl Shared<'_> {
    /// Tells the caller, and whether to go on.
    fn report(&self, more: usize) -> bool {
        let done = self.done.fetch_add(more, Ordering::Relaxed) + more;
        if (self.progress)(Progress { done, total: self.total }).is_break() {
            self.stop.store(true, Ordering::Relaxed);
        }
        !self.stop.load(Ordering::Relaxed)
    }

    /// Keeps the first error and ends the work.
    fn fail(&self, error: Error) {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Transfer<'_> {
    /// Does the work, or what is left of it, on rayon's threads.
    ///
    /// # Errors
    /// An output that exists and is another's; a tensor that is not finite; what the system says of a write. After
    /// the last, what is done stays for the next run.
    pub fn run(&self, progress: OnProgress<'_>) -> Result<Transferred, Error> {
        if self.already_there()? {
            return Ok(self.transferred(Ending::AlreadyThere, 0, &BTreeMap::new()));
        }
        let (partial, record) = Partial::open(&self.target, &self.key(), &self.layout)?;
        let digest = SourceDigest::new(&self.files);
        let slices = self.slices();
        let kept = self.trusted(record, &slices, &digest, &partial)?;
        let todo: Vec<usize> = (0..slices.len()).filter(|index| !kept.contains_key(index)).collect();
        let resumed = kept.keys().map(|&index| self.bytes_of(&slices[index])).sum();
        let mut not_finite = BTreeMap::new();
        kept.iter().for_each(|(&index, &count)| *not_finite.entry(slices[index].job).or_default() += count);
        let shared = Shared {
            partial: &partial,
            digest: &digest,
            slices: &slices,
            todo: &todo,
            next: AtomicUsize::new(0),
            file: AtomicUsize::new(0),
            done: AtomicUsize::new(resumed),
            total: self.jobs.iter().map(Job::input_bytes).sum(),
            stop: AtomicBool::new(false),
            error: Mutex::new(None),
            not_finite: Mutex::new(not_finite),
            progress,
        };
        // Half of the threads begin with hashing, a file each, and all go on with slices.
        rayon::broadcast(|thread| {
            if thread.index() < thread.num_threads().div_ceil(2) {
                self.hash(&shared);
            }
            self.work(&shared);
        });
        let Shared { error, stop, not_finite, .. } = shared;
        if let Some(error) = error.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if matches!(error, Error::Tensor { .. }) {
                partial.discard(); // the same source will not do better next time
            }
            return Err(error);
        }
        let not_finite = not_finite.into_inner().unwrap_or_else(PoisonError::into_inner);
        if stop.into_inner() {
            return Ok(self.transferred(Ending::Interrupted, resumed, &not_finite));
        }
        let hash = digest.whole(self.config);
        self.complete(partial, &hash)?;
        Ok(self.transferred(Ending::Complete, resumed, &not_finite))
    }

    /// Adds what is small and gives the output its name.
    fn complete(&self, partial: Partial, hash: &str) -> Result<(), Error> {
        for shard in 0..self.layout.shards.len() {
            partial.write(shard, 0, &self.layout.header(shard, hash))?;
        }
        for (name, bytes) in self.companions.iter().chain(&self.layout.index()) {
            partial.add(name, bytes)?;
        }
        partial.finish(&self.target)
    }

    /// Hashes files until none is left, noting how far it got.
    fn hash(&self, shared: &Shared<'_>) {
        loop {
            let index = shared.file.fetch_add(1, Ordering::Relaxed);
            let Some(file) = self.files.get(index) else { return };
            shared.digest.advance(index, file.bytes().len(), |length, digest| {
                if let Err(error) = shared.partial.note_digest(index, length, digest) {
                    shared.fail(error);
                }
                shared.report(0)
            });
        }
    }

    /// Writes slices until none is left.
    fn work(&self, shared: &Shared<'_>) {
        let mut buffers = [Vec::new(), Vec::new()];
        while !shared.stop.load(Ordering::Relaxed) {
            let Some(&index) = shared.todo.get(shared.next.fetch_add(1, Ordering::Relaxed)) else { return };
            let slice = &shared.slices[index];
            match self.write(slice, shared.partial, &mut buffers) {
                Ok(count) => {
                    if count > 0 {
                        let mut all = shared.not_finite.lock().unwrap_or_else(PoisonError::into_inner);
                        *all.entry(slice.job).or_default() += count;
                    }
                    if let Err(error) = shared.partial.note_slice(index, count) {
                        shared.fail(error);
                    }
                    shared.report(self.bytes_of(slice));
                }
                Err(error) => shared.fail(error),
            }
        }
    }

    /// Transforms one slice and writes it; answers how much of it is not finite.
    fn write(&self, slice: &Slice, partial: &Partial, buffers: &mut [Vec<u8>; 2]) -> Result<usize, Error> {
        let not_finite = self.transform(slice, buffers)?;
        if not_finite > 0 && !self.allow_not_finite {
            return Err(self.not_finite(&self.jobs[slice.job]));
        }
        for (buffer, (shard, offset)) in buffers.iter().zip(self.places(slice)) {
            partial.write(shard, offset, buffer)?;
        }
        Ok(not_finite)
    }

    /// Makes a slice's outputs; answers how much of it is not finite.
    fn transform(&self, slice: &Slice, buffers: &mut [Vec<u8>; 2]) -> Result<usize, Error> {
        let (job, rows) = (&self.jobs[slice.job], slice.rows.len());
        let place = |input: &Input| input.offset + slice.rows.start * input.row_bytes;
        let inputs: Vec<&[u8]> = job
            .inputs
            .iter()
            .map(|input| self.files[input.file].stretch(place(input), rows * input.row_bytes))
            .collect();
        for (buffer, output) in buffers.iter_mut().zip(&job.outputs) {
            buffer.resize(rows * (output.bytes() / job.rows), 0);
        }
        let mut outputs: Vec<&mut [u8]> = buffers[..job.outputs.len()].iter_mut().map(Vec::as_mut_slice).collect();
        let not_finite =
            job.transform.apply(rows, &inputs, &mut outputs).map_err(|reason| self.tensor_error(job, reason))?;
        for input in &job.inputs {
            self.files[input.file].release(place(input), rows * input.row_bytes);
        }
        Ok(not_finite)
    }

    /// Of each output of a slice's job the shard, and where in it the slice's rows begin.
    fn places(&self, slice: &Slice) -> impl Iterator<Item = (usize, usize)> {
        let job = &self.jobs[slice.job];
        let places = self.layout.places[slice.job].iter().zip(&job.outputs);
        places.map(|(&(shard, offset), output)| (shard, offset + slice.rows.start * (output.bytes() / job.rows)))
    }

    /// The error for a tensor that is not finite, with how many values are not.
    fn not_finite(&self, job: &Job) -> Error {
        let (Transform::Round(from) | Transform::Quantize { from, .. }) = job.transform else {
            return self.tensor_error(job, "not finite".to_owned());
        };
        let input = &job.inputs[0];
        let (total, width) = (job.rows * input.row_bytes, from.bitsize() / 8);
        let bytes = &self.files[input.file].bytes()[input.offset..][..total];
        let mut rounded = vec![0; 2 * STRETCH];
        let stretches = bytes.chunks(STRETCH * width).enumerate();
        let count: usize = stretches
            .map(|(i, bytes)| {
                let count = job::round_values(bytes, from, &mut rounded[..bytes.len() / width * 2]);
                self.files[input.file].release(input.offset + i * STRETCH * width, bytes.len());
                count
            })
            .sum();
        let reason = format!(
            "{count} of {} values are not finite as bf16; the file is damaged or the model diverged",
            total / width
        );
        self.tensor_error(job, reason)
    }

    fn tensor_error(&self, job: &Job, reason: String) -> Error {
        Error::Tensor { path: self.files[job.inputs[0].file].path().to_owned(), name: job.name.clone(), reason }
    }

    /// All slices, in the order of the jobs. The numbers of a journal are their indices.
    fn slices(&self) -> Vec<Slice> {
        let of_job = |(index, job): (usize, &Job)| {
            let (rows, step) = (job.rows, job.slice_rows());
            (0..rows).step_by(step).map(move |start| Slice { job: index, rows: start..(start + step).min(rows) })
        };
        self.jobs.iter().enumerate().flat_map(of_job).collect()
    }

    /// Bytes that a slice reads.
    fn bytes_of(&self, slice: &Slice) -> usize {
        slice.rows.len() * self.jobs[slice.job].inputs.iter().map(|input| input.row_bytes).sum::<usize>()
    }

    /// The slices of a record that were made of the source as it is: its files are hashed anew, as far as the record
    /// goes. The journal forgets the others, since they will be written again and in another order.
    fn trusted(
        &self,
        record: Record,
        slices: &[Slice],
        digest: &SourceDigest<'_>,
        partial: &Partial,
    ) -> Result<BTreeMap<usize, usize>, Error> {
        let mut proven = vec![0; self.files.len()];
        for (&index, (length, expected)) in record.digests.iter().filter(|&(&index, _)| index < self.files.len()) {
            digest.advance(index, (*length).min(self.files[index].bytes().len()), |_, _| true);
            let (length, found) = digest.of(index);
            if hexadecimal(&found) != *expected {
                partial.note_afresh()?;
                for file in 0..self.files.len() {
                    let (length, found) = digest.of(file);
                    partial.note_digest(file, length, found)?;
                }
                return Ok(BTreeMap::new());
            }
            proven[index] = length;
        }
        let keep = |index: &usize| slices.get(*index).is_some_and(|slice| self.is_proven(slice, &proven));
        let (kept, lost): (BTreeMap<_, _>, BTreeMap<_, _>) =
            record.slices.into_iter().partition(|(index, _)| keep(index));
        partial.note_lost(lost.keys().copied())?;
        Ok(kept)
    }

    /// Whether all that a slice was made of is proven.
    fn is_proven(&self, slice: &Slice, proven: &[usize]) -> bool {
        let mut inputs = self.jobs[slice.job].inputs.iter();
        inputs.all(|input| input.offset + slice.rows.end * input.row_bytes <= proven[input.file])
    }

    /// What distinguishes this work from any other, but for the content of the source, whose hash is not known yet.
    fn key(&self) -> String {
        let mut key = Sha256::new();
        key.update(env!("CARGO_PKG_VERSION"));
        for shard in 0..self.layout.shards.len() {
            key.update(&self.layout.shards[shard].name);
            key.update(self.layout.header(shard, &"0".repeat(64)));
        }
        key.update(format!("{:?}", self.jobs));
        key.update(self.config.unwrap_or_default());
        key.update([u8::from(self.allow_not_finite)]); // or what one run allowed would slip through the next
        self.files.iter().for_each(|file| key.update(file.bytes().len().to_le_bytes()));
        hexadecimal(&key.finalize().into())
    }

    fn transferred(&self, ending: Ending, bytes_resumed: usize, not_finite: &BTreeMap<usize, usize>) -> Transferred {
        let quantized = self.jobs.iter().filter_map(|job| match &job.transform {
            Transform::Quantize { to, .. } => Some((to, job)),
            _ => None,
        });
        let (values, bytes) = quantized.fold((0, 0), |(values, bytes), (to, job)| {
            let [rows, columns] = to.shape;
            (values + rows * columns, bytes + job.outputs.iter().map(Output::bytes).sum::<usize>())
        });
        Transferred {
            ending,
            bytes_read: self.files.iter().map(|file| file.bytes().len()).sum(),
            bytes_written: self.layout.shards.iter().map(shards::Shard::bytes).sum(),
            bytes_resumed,
            quantized_values: values,
            quantized_bytes: bytes,
            not_finite: not_finite
                .iter()
                .filter(|&(_, &count)| count > 0)
                .map(|(&job, &count)| (self.jobs[job].name.clone(), count))
                .collect(),
        }
    }
}

/// Values counted in one go.
const STRETCH: usize = 1 << 20;
