//! A store as the archive of a run that goes on.

use std::collections::HashMap;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use microscale_model::{Divergence, Request};
use rusqlite::{Connection, TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::{RunKey, Store, error};
use crate::Error;
use crate::runner::{Answer, Archive, Kept};

/// How long a score may wait to be written, unless so many wait.
const DELAY: Duration = Duration::from_millis(200);
const MOST_WAITING: usize = 4096;

/// A request as the store knows it: half of a SHA-256 over context length and tokens.
type RequestHash = [u8; 16];

fn hash(request: &Request) -> RequestHash {
    let mut digest = Sha256::new();
    digest.update((request.context as u64).to_le_bytes());
    request.tokens.iter().for_each(|token| digest.update(token.to_le_bytes()));
    let mut half = [0; 16];
    half.copy_from_slice(&digest.finalize()[..16]);
    half
}

/// Keeps the scores of some rows in a store. A thread of its own writes them, since scores come in bursts with long
/// pauses between. What is waiting is written when it is dropped, too.
pub struct Recorder<'s> {
    store: &'s Store,
    /// Of each row; divergences are from the first.
    runs: Vec<i64>,
    scores: Option<Sender<Message>>,
    writer: Option<JoinHandle<()>>,
    failed: Arc<Mutex<Option<Error>>>,
}

enum Message {
    Score(i64, RequestHash, Kept),
    /// Write what waits and answer.
    Write(Sender<()>),
}

impl<'s> Recorder<'s> {
    /// For the rows of these keys.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn new(store: &'s Store, keys: &[RunKey]) -> Result<Self, Error> {
        let runs: Vec<i64> = keys.iter().map(|key| store.begin(key)).collect::<Result<_, _>>()?;
        let own = Store::open(store.path())?;
        let failed = Arc::new(Mutex::new(None));
        let (scores, receiver) = mpsc::channel();
        let (first, report) = (runs.first().copied(), Arc::clone(&failed));
        let writer = thread::spawn(move || {
            write_as_they_come(&receiver, own, first, |error| {
                report.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
            });
        });
        Ok(Recorder { store, runs, scores: Some(scores), writer: Some(writer), failed })
    }

    /// The store's numbers of the rows.
    pub fn runs(&self) -> &[i64] {
        &self.runs
    }

    /// Waits until all that was kept is written.
    ///
    /// # Errors
    /// Something could not be written, now or before.
    pub fn write(&mut self) -> Result<(), Error> {
        let (answer, done) = mpsc::channel();
        self.send(Message::Write(answer))?;
        let _ = done.recv(); // an error if the writer has ended, which `send` or the next line says
        self.failure()
    }

    fn failure(&self) -> Result<(), Error> {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).take().map_or(Ok(()), Err)
    }

    fn send(&self, message: Message) -> Result<(), Error> {
        self.failure()?;
        let sent = self.scores.as_ref().is_some_and(|scores| scores.send(message).is_ok());
        let reason = || "the thread that writes it has ended".to_owned();
        if sent { Ok(()) } else { Err(Error::Store { path: self.store.path.clone(), reason: reason() }) }
    }
}

/// Writes scores a moment after the first of them came, until nobody can send any more.
fn write_as_they_come(receiver: &Receiver<Message>, mut store: Store, first: Option<i64>, report: impl Fn(Error)) {
    let mut waiting: Vec<(i64, RequestHash, Kept)> = Vec::new();
    let mut since = Instant::now();
    loop {
        let patience =
            if waiting.is_empty() { Duration::from_secs(3600) } else { DELAY.saturating_sub(since.elapsed()) };
        let (answer, ended) = match receiver.recv_timeout(patience) {
            Ok(Message::Score(run, request, kept)) => {
                if waiting.is_empty() {
                    since = Instant::now();
                }
                waiting.push((run, request, kept));
                if waiting.len() < MOST_WAITING {
                    continue;
                }
                (None, false)
            }
            Ok(Message::Write(answer)) => (Some(answer), false),
            Err(RecvTimeoutError::Timeout) => (None, false),
            Err(RecvTimeoutError::Disconnected) => (None, true),
        };
        if let Err(e) = write(&mut store.connection, first, &waiting) {
            report(error(&store.path, &e));
        }
        waiting.clear();
        if let Some(answer) = answer {
            let _ = answer.send(()); // whoever asked may be gone
        }
        if ended {
            return;
        }
    }
}

/// Writes scores, all of them or none.
fn write(
    connection: &mut Connection,
    first: Option<i64>,
    waiting: &[(i64, RequestHash, Kept)],
) -> rusqlite::Result<()> {
    if waiting.is_empty() {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut score = transaction.prepare_cached("INSERT OR REPLACE INTO scores VALUES (?1, ?2, ?3, ?4)")?;
        let mut divergence =
            transaction.prepare_cached("INSERT OR REPLACE INTO divergences VALUES (?1, ?2, ?3, ?4, ?5)")?;
        for (run, request, kept) in waiting {
            score.execute(params![run, request, bits(kept.answer.log_likelihood), kept.answer.greedy])?;
            if let Some(apart) = &kept.divergence {
                let kl: Vec<u8> = apart.kl.iter().flat_map(|kl| kl.to_le_bytes()).collect();
                divergence.execute(params![run, first, request, kl, apart.agreed as i64])?;
            }
        }
    }
    transaction.commit()
}

/// SQLite has no NaN: it would become NULL. As whole numbers all doubles survive.
fn bits(value: f64) -> i64 {
    value.to_bits().cast_signed()
}

impl Archive for Recorder<'_> {
    fn recall(&mut self, row: usize, requests: &[Request]) -> Result<Vec<Option<Kept>>, Error> {
        let (run, first) = (self.runs[row], self.runs[0]);
        let mut known: HashMap<RequestHash, Kept> = HashMap::new();
        self.store.try_to(|c| {
            let mut scores = c.prepare("SELECT request, log_likelihood, greedy FROM scores WHERE run = ?1")?;
            let mut rows = scores.query([run])?;
            while let Some(row) = rows.next()? {
                let bits: i64 = row.get(1)?;
                let answer = Answer { log_likelihood: f64::from_bits(bits.cast_unsigned()), greedy: row.get(2)? };
                known.insert(row.get(0)?, Kept { answer, divergence: None });
            }
            let query = "SELECT request, kl, agreed FROM divergences WHERE run = ?1 AND first = ?2";
            let mut divergences = c.prepare(query)?;
            let mut rows = divergences.query([run, first])?;
            while let Some(row) = rows.next()? {
                let (bytes, agreed): (Vec<u8>, i64) = (row.get(1)?, row.get(2)?);
                let kl = bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
                if let Some(kept) = known.get_mut(&row.get::<_, RequestHash>(0)?) {
                    kept.divergence = Some(Divergence { kl, agreed: agreed.max(0) as usize });
                }
            }
            Ok(())
        })?;
        Ok(requests.iter().map(|request| known.get(&hash(request)).cloned()).collect())
    }

    fn keep(&mut self, row: usize, request: &Request, kept: &Kept) -> Result<(), Error> {
        self.send(Message::Score(self.runs[row], hash(request), kept.clone()))
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        self.scores = None; // the writer writes what waits, and ends
        if let Some(writer) = self.writer.take() {
            let _ = writer.join();
        }
    }
}
