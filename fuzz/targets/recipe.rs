#![no_main]

use libfuzzer_sys::fuzz_target;
use microscale_model::Recipe;

fuzz_target!(|text: &str| {
    let toml = Recipe::from_toml(text, "input");
    let json = Recipe::from_torchmx_json(text, "input").map(|(recipe, _)| recipe);
    // Without `=` a text may name a file.
    let inline = text.contains('=').then(|| Recipe::parse(text)).and_then(Result::ok);
    for recipe in toml.into_iter().chain(json).chain(inline) {
        let again = Recipe::from_toml(&recipe.to_toml(), "again").unwrap();
        assert!(again.same_formats(&recipe) && again.name == recipe.name);
    }
});
