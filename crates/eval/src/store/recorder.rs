//! A store as the archive of a run that is going on.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use microscale_model::{Divergence, Request};
use rusqlite::{TransactionBehavior, params};
use sha2::{Digest, Sha256};

use super::{RunKey, Store, error};
use crate::Error;
use crate::runner::{Answer, Archive, Kept};

/// How long a score may wait to be written, unless so many wait.
const DELAY: Duration = Duration::from_millis(500);
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

/// Keeps the scores of some rows in a store. What is waiting is written when it is dropped, too.
pub struct Recorder<'s> {
    store: &'s mut Store,
    /// Of each row; divergences are from the first.
    runs: Vec<i64>,
    waiting: Vec<(i64, RequestHash, Kept)>,
    written: Instant,
}

impl<'s> Recorder<'s> {
    /// For the rows of these keys.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn new(store: &'s mut Store, keys: &[RunKey]) -> Result<Self, Error> {
        let runs = keys.iter().map(|key| store.begin(key)).collect::<Result<_, _>>()?;
        Ok(Recorder { store, runs, waiting: Vec::new(), written: Instant::now() })
    }

    /// The store's numbers of the rows.
    pub fn runs(&self) -> &[i64] {
        &self.runs
    }

    /// Writes what is waiting, all of it or, on an error, nothing.
    ///
    /// # Errors
    /// The store cannot be written.
    pub fn write(&mut self) -> Result<(), Error> {
        let (first, waiting) = (self.runs.first().copied(), std::mem::take(&mut self.waiting));
        self.written = Instant::now();
        let path = self.store.path.clone();
        let mut work = || -> rusqlite::Result<()> {
            let transaction = self.store.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            {
                let mut score = transaction.prepare_cached("INSERT OR REPLACE INTO scores VALUES (?1, ?2, ?3, ?4)")?;
                let mut divergence =
                    transaction.prepare_cached("INSERT OR REPLACE INTO divergences VALUES (?1, ?2, ?3, ?4, ?5)")?;
                for (run, request, kept) in &waiting {
                    score.execute(params![run, request, bits(kept.answer.log_likelihood), kept.answer.greedy])?;
                    if let Some(apart) = &kept.divergence {
                        let kl: Vec<u8> = apart.kl.iter().flat_map(|kl| kl.to_le_bytes()).collect();
                        divergence.execute(params![run, first, request, kl, apart.agreed as i64])?;
                    }
                }
            }
            transaction.commit()
        };
        work().map_err(|e| error(&path, &e))
    }
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
        self.waiting.push((self.runs[row], hash(request), kept.clone()));
        if self.waiting.len() >= MOST_WAITING || self.written.elapsed() > DELAY { self.write() } else { Ok(()) }
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        // An error here has been one at the last explicit write too, or loses what can be scored again.
        let _ = self.write();
    }
}
