#![no_main]

use libfuzzer_sys::fuzz_target;
use microscale_model::{Contents, compare};
use serde_json::json;

// A file with a matrix of 2 · 33 codes of 6 bits, and the input as its description.
fuzz_target!(|text: &str| {
    let notes = json!({
        "microscale.layout": "1",
        "microscale.version": "0",
        "microscale.source": "x",
        "microscale.source_sha256": "0",
        "microscale.tensors": text,
    });
    let header = json!({
        "__metadata__": notes,
        "w": {"dtype": "U8", "shape": [2, 25], "data_offsets": [0, 50]},
        "w_scale": {"dtype": "U8", "shape": [2, 2], "data_offsets": [50, 54]},
    })
    .to_string();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &[0x7Eu8; 54]].concat();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    if let Ok(contents) = Contents::of_file(file.path()) {
        assert!(compare(&contents, &contents).unwrap().same());
    }
});
