//! `microscale logits`: the logits of a token sequence.

use std::collections::HashMap;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use half::slice::HalfFloatSliceExt;
use microscale_eval::write_atomically;
use safetensors::tensor::{Dtype, TensorView};

use crate::arguments::Logits;
use crate::commands::table::roles;
use crate::engine::{self, Engine};
use crate::{sources, usage};

pub(crate) fn run(arguments: &Logits) -> Result<ExitCode> {
    let engine = Engine::new(arguments.scoring.threads)?;
    let value_blocks = arguments.scoring.value_blocks;
    let asked = arguments.recipe.as_deref().map(|name| engine::recipe(name, value_blocks)).transpose()?;
    let tokens = tokens(&arguments.tokens)?;
    let checkpoint = sources::model(Some(&arguments.model))?;
    let recipe = engine::recipe_for(&checkpoint, asked, value_blocks)?.for_scoring();
    engine::warn_of_length(&arguments.scoring, &checkpoint);
    let limit = engine::limits(&arguments.scoring, &checkpoint).max_length;
    if tokens.len() > limit {
        bail!("{} tokens are more than the limit of {limit}; shorten the input or raise --max-length", tokens.len());
    }
    let logits = engine.load(&checkpoint, &recipe)?.logits(&tokens)?;
    let shape = vec![logits.rows(), logits.columns()];
    let bytes: Vec<u8> = logits.values().reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()).collect();
    let metadata = HashMap::from([
        ("recipe".to_owned(), recipe.name.clone()),
        ("roles".to_owned(), serde_json::to_string(&roles(&recipe))?),
        ("block_size".to_owned(), recipe.block_size.to_string()),
        ("scale_rule".to_owned(), recipe.scale_rule.name().to_owned()),
        ("value_blocks".to_owned(), recipe.value_blocks.name().to_owned()),
        ("model".to_owned(), checkpoint.name().to_owned()),
        ("model_sha256".to_owned(), checkpoint.hash()),
        ("instruction_set".to_owned(), engine.isa().name().to_owned()),
        ("microscale".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    let view = TensorView::new(Dtype::BF16, shape, &bytes)?;
    let file = safetensors::serialize([("logits", view)], Some(metadata))?;
    write_atomically(&arguments.output, &file)?;
    eprintln!("{}: logits [{}, {}] of {}", arguments.output.display(), logits.rows(), logits.columns(), recipe.name);
    Ok(ExitCode::SUCCESS)
}

/// Token ids from the command line, or from a JSON file that holds an array of them.
fn tokens(argument: &str) -> Result<Vec<u32>> {
    let tokens: Vec<u32> = if argument.ends_with(".json") {
        let text = std::fs::read(Path::new(argument)).with_context(|| format!("cannot read {argument}"))?;
        serde_json::from_slice(&text).with_context(|| format!("{argument}: an array of token ids expected"))?
    } else {
        let parse = |part: &str| {
            part.trim()
                .parse()
                .map_err(|_| usage(anyhow!("--tokens: {part:?} is no token id; give ids as \"1,2,3\" or a .json file")))
        };
        argument.split(',').map(parse).collect::<Result<_>>()?
    };
    if tokens.is_empty() {
        return Err(usage(anyhow!("--tokens: no token ids given")));
    }
    Ok(tokens)
}
