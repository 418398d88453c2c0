//! Writing at a place in a file that several threads write at once.

use std::fs::File;
use std::io::Result;

/// Writes all bytes from `offset` on.
#[cfg(unix)]
pub(super) fn write_all_at(file: &File, bytes: &[u8], offset: usize) -> Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset as u64)
}

/// The same where a write moves the file's position: one thread at a time.
#[cfg(not(unix))]
pub(super) fn write_all_at(mut file: &File, bytes: &[u8], offset: usize) -> Result<()> {
    use std::io::{Seek, SeekFrom, Write};
    use std::sync::{Mutex, PoisonError};

    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    file.seek(SeekFrom::Start(offset as u64))?;
    file.write_all(bytes)
}
