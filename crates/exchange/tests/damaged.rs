//! Damaged files of others: errors, never panics, and no memory that the files do not justify.

mod support;

use std::path::Path;

use microscale_exchange::{Kind, Options, Source, convert};
use microscale_model::Checkpoint;
use support::{Folder, config, go_on};

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Opens and converts to the native layout and to another; whether that succeeded, and the message if not.
fn read(path: &Path, folder: &Folder) -> Result<(), String> {
    let source = Source::open(path).map_err(|e| e.to_string())?;
    for (kind, name) in [(Kind::Native, "native"), (Kind::GptOss, "gpt-oss"), (Kind::Gguf, "gguf")] {
        let output = folder.path(name);
        let result = convert(&source, kind, &output, &Options::default(), &go_on);
        if result.is_ok() && kind == Kind::Native {
            let _ = Checkpoint::open(&output).map_err(|e| e.to_string());
        }
        let _ = std::fs::remove_dir_all(&output);
        let _ = std::fs::remove_file(&output);
        let _ = std::fs::remove_dir_all(microscale_model::partial_path(&output));
        result.map_err(|e| e.to_string())?;
    }
    Ok(())
}

#[test]
fn mutations_never_panic() {
    let mut random = Random(11);
    let (mut read_well, mut refused) = (0, 0);
    let kinds =
        [Kind::CompressedTensors, Kind::Quark, Kind::ModelOpt, Kind::Mlx, Kind::GptOss, Kind::Gguf, Kind::TorchAo];
    for kind in kinds {
        let folder = Folder::new();
        let start = folder.quantized("start", &config(false), "w4a4");
        let source = Source::open(&start).unwrap();
        let there = folder.path("there");
        convert(&source, kind, &there, &Options::default(), &go_on).unwrap();
        let weights = if kind == Kind::Gguf { there.clone() } else { there.join("model.safetensors") };
        let settings = (kind != Kind::Gguf).then(|| there.join("config.json"));
        read(&there, &folder).unwrap();
        let original = std::fs::read(&weights).unwrap();
        let text = settings.as_ref().map(|path| std::fs::read(path).unwrap());
        // Where the header ends: of GGUF's at its first page of tensors, near enough.
        let header = match kind {
            Kind::Gguf => original.len() * 2 / 5,
            _ => 8 + u64::from_le_bytes(original[..8].try_into().unwrap()) as usize,
        };
        for round in 0..if kind == Kind::Gguf { 600 } else { 150 } {
            let (mut bytes, mut text) = (original.clone(), text.clone());
            match (round % 3, &mut text) {
                (0, Some(text)) => (0..=random.below(3)).for_each(|_| {
                    let at = random.below(text.len());
                    text[at] = b"0129-\"[]{},:abmx"[random.below(16)];
                }),
                (1, _) => (0..=random.below(2)).for_each(|_| {
                    bytes[random.below(header)] = b"0129-\"[]{},:\x00\xff\x7f\x80"[random.below(16)];
                }),
                _ if kind == Kind::Gguf && round % 2 == 0 => {
                    // A word of the first pages at an extreme: lengths, counts, offsets.
                    let at = random.below(header - 8);
                    let word = [u64::MAX, 1 << 62, 1 << 40, 1 << 31, 0][random.below(5)];
                    bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
                }
                _ => bytes.truncate(random.below(original.len())),
            }
            std::fs::write(&weights, bytes).unwrap();
            if let (Some(path), Some(text)) = (&settings, text) {
                std::fs::write(path, text).unwrap();
            }
            match read(&there, &folder) {
                Ok(()) => read_well += 1,
                Err(message) => {
                    assert!(!message.is_empty() && message.len() < 10_000);
                    refused += 1;
                }
            }
        }
    }
    assert!(read_well > 50 && refused > 300, "{read_well} read, {refused} refused");
}

#[test]
fn every_truncation_of_a_gguf_header_is_an_error() {
    let folder = Folder::new();
    let start = folder.quantized("start", &config(false), "w4a4");
    let there = folder.convert(&start, Kind::Gguf, "there.gguf").unwrap();
    let bytes = std::fs::read(&there).unwrap();
    for length in (0..bytes.len()).step_by(97) {
        std::fs::write(&there, &bytes[..length]).unwrap();
        assert!(Source::open(&there).is_err(), "{length} of {} bytes", bytes.len());
    }
}

/// What fuzzing found, and what it was held to: a file's own `config.json`, and the place of a tensor.
#[test]
fn gguf_headers_that_lie() {
    let folder = Folder::new();
    let start = folder.quantized("start", &config(false), "w4a4");
    let there = folder.convert(&start, Kind::Gguf, "there.gguf").unwrap();
    let original = std::fs::read(&there).unwrap();
    let find = |text: &str| original.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
    let refused = |at: usize, value: &[u8], words: &str| {
        let mut bytes = original.clone();
        bytes[at..at + value.len()].copy_from_slice(value);
        std::fs::write(&there, bytes).unwrap();
        let error = Source::open(&there).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(words), "{words:?} in {error}");
    };
    refused(find("{\"architectures\""), b"x", "its config.json is not valid JSON");
    // After the name come the number of sizes, two of them, the type, and the offset: that of the first tensor.
    let name = "blk.1.attn_output.weight";
    refused(find(name) + name.len() + 4 + 16 + 4, &[0; 8], "overlap");
}

#[test]
#[ignore = "writes the files that fuzz/README.md begins with"]
fn seeds() {
    let folder = Folder::new();
    let place = std::env::var_os("MICROSCALE_SEEDS").map(std::path::PathBuf::from);
    let place = place.expect("MICROSCALE_SEEDS names the folder to write to");
    std::fs::create_dir_all(&place).unwrap();
    let mut config = config(false);
    for (key, size) in [("hidden_size", 32), ("intermediate_size", 32), ("vocab_size", 8), ("num_hidden_layers", 1)] {
        config[key] = size.into();
    }
    for recipe in ["w4a4", "proj=int8,mlp=fp4,head=bf16"] {
        let start = folder.quantized(&format!("start-{}", recipe.len()), &config, recipe);
        let seed = folder.convert(&start, Kind::Gguf, "seed.gguf").unwrap();
        std::fs::copy(seed, place.join(format!("{}.gguf", recipe.len()))).unwrap();
    }
}
