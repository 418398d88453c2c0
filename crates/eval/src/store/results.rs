//! What a run's documents came to, kept so that runs can be shown and compared without their model and data.

use rusqlite::params;

use super::Store;
use crate::Error;
use crate::metrics::{TaskScore, Verdict};
use crate::runner::Answer;
use crate::statistics::{Comparison, Flips};
use crate::tasks::{Metric, Task};

/// One document: its verdicts and the right choice's log-likelihood.
type Judged = (Verdict, f64);

/// Bytes of a document: its verdicts as bits, or 255 where it has none, and a little-endian double.
const RECORD: usize = 9;
const NONE: u8 = 255;

/// A task of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct StoredTask {
    /// Its name.
    pub task: String,
    /// SHA-256 of its data.
    pub data_sha256: String,
    /// Examples before each question.
    pub shots: usize,
    /// Documents of the data set.
    pub available: usize,
    /// The metric that enters the average.
    pub headline: Metric,
    /// By document; `None` where it was not scored.
    pub documents: Vec<Option<Judged>>,
}

impl StoredTask {
    /// What a run's answers to a task say.
    pub fn of(task: &Task, answers: &[Option<Vec<Answer>>]) -> Self {
        let verdicts = task.verdicts(answers);
        let documents = task.documents.iter().zip(answers).zip(verdicts).map(|((document, answers), verdict)| {
            Some((verdict?, answers.as_ref()?.get(document.gold)?.log_likelihood))
        });
        StoredTask {
            task: task.name.clone(),
            data_sha256: task.sha256.clone(),
            shots: task.shots,
            available: task.available,
            headline: task.definition.headline,
            documents: documents.collect(),
        }
    }

    /// Its scores.
    pub fn score(&self) -> TaskScore {
        let verdicts: Vec<Verdict> = self.documents.iter().flatten().map(|(verdict, _)| *verdict).collect();
        TaskScore::by(self.headline, &verdicts)
    }

    /// Flips from `self` to `other` over the documents both have, and the changes of the right choice's
    /// log-likelihood; `None` if they are not the same task on the same data.
    pub fn paired(&self, other: &StoredTask) -> Option<(Flips, Vec<f64>)> {
        if self.key() != other.key() {
            return None;
        }
        let both: Vec<(Judged, Judged)> =
            self.documents.iter().zip(&other.documents).filter_map(|(a, b)| a.zip(*b)).collect();
        let by = |judged: &Judged| judged.0.by(self.headline);
        let flips = Flips::of(both.iter().map(|(a, b)| (by(a), by(b))));
        (!both.is_empty()).then(|| (flips, both.iter().map(|(a, b)| b.1 - a.1).collect()))
    }

    /// The comparison of `other` with `self` over the documents both have.
    pub fn compare(&self, other: &StoredTask, margin: f64, seed: u32) -> Option<Comparison> {
        let (flips, gold) = self.paired(other)?;
        Some(Comparison::of(&[flips], &gold, margin, seed))
    }

    fn key(&self) -> (&str, &str, usize) {
        (&self.task, &self.data_sha256, self.shots)
    }

    fn bytes(&self) -> Vec<u8> {
        let record = |document: &Option<Judged>| {
            let (flags, gold) = match document {
                Some((verdict, gold)) => (u8::from(verdict.acc) | u8::from(verdict.acc_norm) << 1, *gold),
                None => (NONE, 0.0),
            };
            let mut record = [flags; RECORD];
            record[1..].copy_from_slice(&gold.to_le_bytes());
            record
        };
        self.documents.iter().flat_map(record).collect()
    }
}

fn documents(bytes: &[u8]) -> Vec<Option<Judged>> {
    let records = bytes.as_chunks::<RECORD>().0.iter();
    let document = |[flags, gold @ ..]: &[u8; RECORD]| {
        let verdict = Verdict { acc: flags & 1 != 0, acc_norm: flags & 2 != 0 };
        (*flags != NONE).then(|| (verdict, f64::from_le_bytes(*gold)))
    };
    records.map(document).collect()
}

impl Store {
    /// Keeps what a run's answers to a task say. What was known of other documents of the same data stays.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_task(&self, run: i64, task: &StoredTask) -> Result<(), Error> {
        let mut task = task.clone();
        for old in self.tasks(run)? {
            if old.key() == task.key() {
                task.documents.resize(task.documents.len().max(old.documents.len()), None);
                for (new, old) in task.documents.iter_mut().zip(old.documents) {
                    *new = new.or(old);
                }
            }
        }
        self.try_to(|c| {
            c.execute(
                "INSERT OR REPLACE INTO tasks VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    run,
                    task.task,
                    task.data_sha256,
                    task.shots as i64,
                    task.available as i64,
                    task.headline.name(),
                    task.bytes()
                ],
            )
        })
        .map(|_| ())
    }

    /// The tasks of a run, by name.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn tasks(&self, run: i64) -> Result<Vec<StoredTask>, Error> {
        let query = "SELECT task, data_sha256, shots, available, headline, documents FROM tasks WHERE run = ?1";
        self.try_to(|c| {
            c.prepare(query)?
                .query_map([run], |row| {
                    let (shots, available): (i64, i64) = (row.get(2)?, row.get(3)?);
                    let (headline, bytes): (String, Vec<u8>) = (row.get(4)?, row.get(5)?);
                    Ok(StoredTask {
                        task: row.get(0)?,
                        data_sha256: row.get(1)?,
                        shots: shots.max(0) as usize,
                        available: available.max(0) as usize,
                        headline: if headline == Metric::Acc.name() { Metric::Acc } else { Metric::AccNorm },
                        documents: documents(&bytes),
                    })
                })?
                .collect()
        })
    }
}
