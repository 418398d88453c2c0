#![no_main]

use libfuzzer_sys::fuzz_target;
use microscale_model::{Contents, compare};

fuzz_target!(|bytes: &[u8]| {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if let Ok(contents) = Contents::of_file(file.path()) {
        assert!(compare(&contents, &contents).unwrap().same());
    }
});
