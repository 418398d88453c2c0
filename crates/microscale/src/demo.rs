//! The demo world: a small trained LLaMA and five tasks about a made-up world, carried in the binary.
//!
//! It is a demonstration and a test, not a benchmark; `demo/README.md` says how it was made.

use microscale_eval::Files;
use microscale_model::{Checkpoint, Error};

/// What the model is called in tables.
pub const NAME: &str = "demo";

/// The demo model.
///
/// # Errors
/// None in a binary that was built right.
pub fn checkpoint() -> Result<Checkpoint, Error> {
    Checkpoint::from_memory(
        NAME,
        include_bytes!("../../../demo/model/config.json"),
        include_bytes!("../../../demo/model/model.safetensors"),
        include_bytes!("../../../demo/model/tokenizer.json"),
    )
}

/// Embeds task files under their own paths.
macro_rules! tasks {
    ($($path:literal),* $(,)?) => {
        [$(($path, &include_bytes!(concat!("../../../demo/tasks/", $path))[..])),*]
    };
}

/// The files of the five demo tasks, as their authors would release them.
pub fn tasks() -> Files {
    Files::from_memory(
        "demo",
        tasks![
            "piqa/valid.jsonl",
            "piqa/valid-labels.lst",
            "arc/ARC-Easy-Test.jsonl",
            "arc/ARC-Challenge-Test.jsonl",
            "hellaswag/hellaswag_val.jsonl",
            "winogrande/dev.jsonl",
        ],
    )
}
