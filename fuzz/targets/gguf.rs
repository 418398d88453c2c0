#![no_main]

use std::ops::ControlFlow;

use libfuzzer_sys::fuzz_target;
use microscale_exchange::{Kind, Options, Source, convert};

fuzz_target!(|bytes: &[u8]| {
    let folder = tempfile::tempdir().unwrap();
    let (file, native) = (folder.path().join("model.gguf"), folder.path().join("native"));
    std::fs::write(&file, bytes).unwrap();
    let Ok(source) = Source::open(&file) else { return };
    if convert(&source, Kind::Native, &native, &Options::default(), &|_| ControlFlow::Continue(())).is_ok() {
        let again = Source::open(&native).map_err(|error| error.to_string());
        assert_eq!(again.map(|source| source.kind()), Ok(Some(Kind::Native)));
    }
});
