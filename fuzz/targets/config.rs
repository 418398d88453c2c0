#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use microscale_model::Config;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = Config::from_json(bytes, Path::new("config.json")) {
        let frequencies = config.rope.inverse_frequencies(config.head_dim, 4096);
        assert_eq!(frequencies.inverse.len(), config.head_dim / 2);
    }
});
