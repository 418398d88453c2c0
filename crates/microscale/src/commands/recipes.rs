//! `microscale recipes`: the presets, or one recipe as TOML.

use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use microscale_formats::ElementFormat;
use microscale_model::{Recipe, Role};

use crate::arguments::Recipes;
use crate::{output, usage};

pub(crate) fn run(arguments: &Recipes) -> Result<ExitCode> {
    if let Some(name) = &arguments.name {
        let recipe = Recipe::parse(name).map_err(usage)?;
        for warning in recipe.warnings() {
            eprintln!("warning: {warning}");
        }
        output::emit(&recipe.to_toml(), None)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["RECIPE", "PROJECTION W/A", "MLP W/A", "HEAD W/A", "QUERY", "KEY", "VALUE", "ATTENTION WEIGHTS"]);
    for recipe in Recipe::presets() {
        let name = |role| recipe.format(role).map_or("bf16", ElementFormat::name);
        let pair = |weight, activation| match (name(weight), name(activation)) {
            (w, a) if w == a => w.to_owned(),
            (w, a) => format!("{w}/{a}"),
        };
        table.add_row([
            recipe.name.clone(),
            pair(Role::ProjectionWeight, Role::ProjectionActivation),
            pair(Role::MlpWeight, Role::MlpActivation),
            pair(Role::HeadWeight, Role::HeadActivation),
            name(Role::Query).to_owned(),
            name(Role::Key).to_owned(),
            name(Role::Value).to_owned(),
            name(Role::AttentionWeights).to_owned(),
        ]);
    }
    let note = "\nNames compose: w{4,6,8}a{4,6,8}, then -mlp{n} (MLP activations), -attn{n} (all four), -q{n} -k{n} -v{n} -p{n};\n\
                4 is E2M1, 6 is E3M2, 8 is E4M3, 8i is INT8. Or inline: proj=fp6/fp8,mlp=fp6/fp6,attn=fp6,value=fp4,rule=even.\n";
    output::emit(&format!("{}\n{note}", table.trim_fmt()), None)?;
    Ok(ExitCode::SUCCESS)
}
