//! Where the reference vectors and real inputs lie, for the tests of several crates.

use std::path::PathBuf;

/// The folder of reference files: `$MICROSCALE_SHARED`, else `../shared` beside the repository.
///
/// `None` where it is absent, after one line that says which test was skipped.
///
/// # Panics
/// If it is absent although `MICROSCALE_REQUIRE_SHARED=1` says that it must not be.
pub fn shared(test: &str) -> Option<PathBuf> {
    let beside = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let folder = std::env::var_os("MICROSCALE_SHARED").map_or(beside, PathBuf::from);
    if folder.join("reference").is_dir() {
        return Some(folder);
    }
    let required = std::env::var_os("MICROSCALE_REQUIRE_SHARED").is_some_and(|v| v == "1");
    assert!(!required, "{test}: MICROSCALE_REQUIRE_SHARED=1, but {} holds no reference files", folder.display());
    eprintln!("skipped {test}: no reference files (set MICROSCALE_SHARED to their folder)");
    None
}
