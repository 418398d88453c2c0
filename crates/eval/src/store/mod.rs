//! Scores that outlive the process: a SQLite file of runs, written in batches while they go on.
//!
//! A run is one model under one recipe, whatever it was asked. A score belongs to a run and the tokens of its request,
//! so it is found again by whoever asks the same of the same, and by nobody else: tokenizer, task version, examples and
//! longest input decide the tokens, and the rest is in the run's key.

mod recorder;
mod results;

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::{Connection, ErrorCode, OptionalExtension, Row, params};

pub use recorder::Recorder;
pub use results::StoredTask;

use crate::Error;
use crate::digest::sha256;

/// Raised when the tables change; files of another version are refused.
const SCHEMA: i64 = 1;
/// How long one process waits for another that is writing.
const PATIENCE: Duration = Duration::from_secs(60);

const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, model TEXT NOT NULL, model_sha256 TEXT NOT NULL,
        recipe TEXT NOT NULL, formats TEXT NOT NULL, numerics INTEGER NOT NULL,
        created INTEGER NOT NULL, used INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS scores (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, request BLOB NOT NULL,
        log_likelihood INTEGER NOT NULL, greedy INTEGER NOT NULL, PRIMARY KEY (run, request)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS divergences (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, first INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE,
        request BLOB NOT NULL, kl BLOB NOT NULL, agreed INTEGER NOT NULL,
        PRIMARY KEY (run, first, request)) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tasks (
        run INTEGER NOT NULL REFERENCES runs ON DELETE CASCADE, task TEXT NOT NULL, data_sha256 TEXT NOT NULL,
        shots INTEGER NOT NULL, available INTEGER NOT NULL, headline TEXT NOT NULL, documents BLOB NOT NULL,
        PRIMARY KEY (run, task, data_sha256, shots)) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS divergences_first ON divergences (first);
";

/// What decides a run's scores, beside the tokens of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunKey {
    /// The model's name; it is shown and decides nothing.
    pub model: String,
    /// Hash of its configuration and weights.
    pub model_sha256: String,
    /// The recipe's name; likewise.
    pub recipe: String,
    /// What the recipe means: formats, block size, scale rule, value blocks, always said in the same way.
    pub formats: String,
    /// Version of the arithmetic.
    pub numerics: u32,
}

impl RunKey {
    fn digest(&self) -> String {
        sha256(&format!("{}\n{}\n{}", self.model_sha256, self.formats, self.numerics))
    }
}

/// A run as it is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRun {
    /// Its number.
    pub id: i64,
    /// What was run.
    pub key: RunKey,
    /// Requests scored.
    pub scores: usize,
    /// When it was begun, in seconds since 1970.
    pub created: i64,
    /// When it was used last, likewise.
    pub used: i64,
}

/// The file.
pub struct Store {
    path: PathBuf,
    connection: Connection,
}

impl Store {
    /// Opens or makes the file, and the folder it lies in.
    ///
    /// # Errors
    /// It cannot be opened, is no store, or is one of another version.
    pub fn open(path: &Path) -> Result<Store, Error> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Error::Write { path: folder.to_owned(), source })?;
        }
        let connection = Connection::open(path).map_err(|e| error(path, &e))?;
        let store = Store { path: path.to_owned(), connection };
        store.try_to(|c| {
            c.busy_timeout(PATIENCE)?;
            write_ahead(c)?;
            // Safe against a crash of the process; a loss of power costs the last moments, not the file.
            c.pragma_update(None, "synchronous", "NORMAL")?;
            c.pragma_update(None, "foreign_keys", true)
        })?;
        store.create_tables()?;
        Ok(store)
    }

    fn create_tables(&self) -> Result<(), Error> {
        let version: i64 = self.try_to(|c| c.pragma_query_value(None, "user_version", |row| row.get(0)))?;
        match version {
            SCHEMA => Ok(()),
            0 => self.try_to(|c| {
                c.execute_batch(&format!("BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {SCHEMA}; COMMIT"))
            }),
            other => {
                let reason =
                    format!("it is a store of version {other}, this program reads {SCHEMA}; give another --store");
                Err(Error::Store { path: self.path.clone(), reason })
            }
        }
    }

    fn try_to<T>(&self, work: impl FnOnce(&Connection) -> rusqlite::Result<T>) -> Result<T, Error> {
        work(&self.connection).map_err(|e| error(&self.path, &e))
    }

    /// All runs, the one used last first.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn runs(&self) -> Result<Vec<StoredRun>, Error> {
        self.try_to(|c| {
            c.prepare(&format!("{SELECT} ORDER BY used DESC, id DESC"))?.query_map([], stored_run)?.collect()
        })
    }

    /// The run of this number.
    ///
    /// # Errors
    /// There is none, or the file cannot be read.
    pub fn run(&self, id: i64) -> Result<StoredRun, Error> {
        let found = self.try_to(|c| c.query_row(&format!("{SELECT} WHERE id = ?1"), [id], stored_run).optional())?;
        let reason = || format!("no run has the number {id}; `runs list` shows those there are");
        found.ok_or_else(|| Error::Store { path: self.path.clone(), reason: reason() })
    }

    /// Deletes a run with all its scores.
    ///
    /// # Errors
    /// There is none of this number, or the file cannot be written.
    pub fn delete(&self, id: i64) -> Result<(), Error> {
        self.run(id)?;
        self.try_to(|c| c.execute("DELETE FROM runs WHERE id = ?1", [id])).map(|_| ())
    }

    /// The number of the run of this key, which is begun if there is none.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn begin(&self, key: &RunKey) -> Result<i64, Error> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs() as i64;
        self.try_to(|c| {
            c.query_row(
                "INSERT INTO runs (key, model, model_sha256, recipe, formats, numerics, created, used)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7)
                 ON CONFLICT (key) DO UPDATE SET used = ?7, model = ?2, recipe = ?4 RETURNING id",
                params![key.digest(), key.model, key.model_sha256, key.recipe, key.formats, key.numerics, now],
                |row| row.get(0),
            )
        })
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Turns the write-ahead log on. Where two processes do so at once, one of them is refused without waiting.
fn write_ahead(connection: &Connection) -> rusqlite::Result<()> {
    let mut tries = 0;
    loop {
        match connection.pragma_update(None, "journal_mode", "WAL") {
            Err(e) if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && tries < 100 => {
                tries += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
            done => return done,
        }
    }
}

const SELECT: &str = "SELECT id, model, model_sha256, recipe, formats, numerics, created, used,
    (SELECT count(*) FROM scores WHERE run = id) FROM runs";

fn stored_run(row: &Row<'_>) -> rusqlite::Result<StoredRun> {
    let key = RunKey {
        model: row.get(1)?,
        model_sha256: row.get(2)?,
        recipe: row.get(3)?,
        formats: row.get(4)?,
        numerics: row.get(5)?,
    };
    let scores: i64 = row.get(8)?;
    Ok(StoredRun { id: row.get(0)?, key, created: row.get(6)?, used: row.get(7)?, scores: scores.max(0) as usize })
}

fn error(path: &Path, error: &rusqlite::Error) -> Error {
    Error::Store { path: path.to_owned(), reason: error.to_string() }
}
