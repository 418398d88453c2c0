//! Recipes: presets, inline texts, files, TorchMX's dicts, and what each error says.

use microscale_formats::{E2M1, E2M3, E3M2, E4M3, ElementFormat, INT8, ScaleRule};
use microscale_model::{Recipe, Role, ValueBlocks};

type Format = Option<ElementFormat>;

const S: Format = Some(INT8);
const A: Format = Some(E4M3);
const B: Format = Some(E3M2);
const D: Format = Some(E2M1);
const N: Format = None;

fn formats(recipe: &Recipe) -> [Format; 10] {
    Role::ALL.map(|role| recipe.format(role))
}

fn message(argument: &str) -> String {
    Recipe::parse(argument).unwrap_err().to_string()
}

/// In the order of `Role::ALL`: projection, MLP and head, weight and activation each; query, key, value, weights.
#[test]
fn presets_spelled_out() {
    for (name, expected) in [
        ("bf16", [N; 10]),
        ("w6a8", [B, A, B, A, B, A, N, N, N, N]),
        ("w6a6", [B, B, B, B, B, B, N, N, N, N]),
        ("w6a8-attn6", [B, A, B, A, B, A, B, B, B, B]),
        ("w6a6-attn6", [B; 10]),
        ("w6a8-mlp6", [B, A, B, B, B, B, N, N, N, N]),
        ("w6a8-mlp6-attn6", [B, A, B, B, B, B, B, B, B, B]),
        ("w6a8-attn6-v4", [B, A, B, A, B, A, B, B, D, B]),
        ("int8", [S, S, S, S, S, S, N, N, N, N]),
        ("int8-attn8i", [S; 10]),
        ("w8a8", [A, A, A, A, A, A, N, N, N, N]),
        ("w8a8-attn8", [A; 10]),
        ("w4a8", [D, A, D, A, D, A, N, N, N, N]),
        ("w4a8-attn4", [D, A, D, A, D, A, D, D, D, D]),
        ("w4a4", [D, D, D, D, D, D, N, N, N, N]),
        ("w4a4-attn4", [D; 10]),
        ("w4a6-q8-k6-v4-p8i", [D, B, D, B, D, B, A, B, D, S]),
        ("bf16-attn6", [N, N, N, N, N, N, B, B, B, B]),
    ] {
        let recipe = Recipe::parse(name).unwrap();
        assert_eq!(formats(&recipe), expected, "{name}");
        assert_eq!((recipe.name.as_str(), recipe.block_size), (name, 32));
        assert_eq!((recipe.scale_rule, recipe.value_blocks), (ScaleRule::Floor, ValueBlocks::Auto));
        assert_eq!(recipe.is_bf16(), name == "bf16");
    }
    let listed: Vec<String> = Recipe::presets().into_iter().map(|r| r.name).collect();
    for name in ["bf16", "w6a8", "w6a6", "w6a8-attn6", "w6a6-attn6", "w6a8-mlp6", "w6a8-mlp6-attn6", "w6a8-attn6-v4"] {
        assert!(listed.iter().any(|l| l == name), "{name}");
    }
    assert_eq!(Recipe::parse(" W6A8 ").unwrap().name, "w6a8");
}

#[test]
fn no_preset() {
    for name in
        ["", "w5a8", "w6", "a8", "w6a8-", "w6a8-attn", "w6a8-attn5", "w6a8-x6", "w6a8attn6", "int8i", "-", "é-é6"]
    {
        let message = message(name);
        assert!(message.starts_with(&format!("unknown recipe {name:?}")), "{message}");
    }
    assert!(message("w6a8-atn6").contains("did you mean \"w6a8-attn6\"?"));
    assert!(message("w6a9").contains("did you mean \"w6a8\"?"));
}

#[test]
fn inline_settings() {
    let text = "proj=fp6/fp8,mlp=fp6/fp6,attn=fp6,value=fp4,head=bf16,rule=even";
    let recipe = Recipe::parse(text).unwrap();
    assert_eq!(formats(&recipe), [B, A, B, B, N, N, B, B, D, B]);
    assert_eq!((recipe.name.as_str(), recipe.scale_rule), (text, ScaleRule::Even));
    let recipe = Recipe::parse("mlp = fp6_e2m3, q=int8 ,p=fp4,block=16,value-blocks=causal,").unwrap();
    let c = Some(E2M3);
    assert_eq!(formats(&recipe), [N, N, c, c, c, c, S, N, N, D]);
    assert_eq!((recipe.block_size, recipe.value_blocks), (16, ValueBlocks::Causal));
    let later = Recipe::parse("v=fp4,attn=fp6,proj=fp8,proj=fp6/fp8").unwrap();
    assert_eq!(formats(&later), [B, A, N, N, N, N, B, B, B, B]);
    let preset = Recipe::parse("proj=fp6/fp8,mlp=fp6/fp8").unwrap();
    assert!(preset.same_formats(&Recipe::parse("w6a8").unwrap()));
}

#[test]
fn errors_suggest_the_nearest_name() {
    for (argument, expected) in [
        (
            "mlp=fp7",
            "unknown format \"fp7\" in mlp of recipe \"mlp=fp7\"; did you mean \"fp6\"? known: bf16, fp8_e5m2, fp8_e4m3 (fp8), fp6_e3m2 (fp6), fp6_e2m3, fp4_e2m1 (fp4), int8",
        ),
        ("proj=fp6_e3m3", "did you mean \"fp6_e3m2\"?"),
        ("proj=fp6/", "unknown format \"\""),
        ("projection=fp6", "unknown key \"projection\""),
        ("vlaue=fp6", "did you mean \"value\"?"),
        (
            "rule=flor",
            "unknown scale rule \"flor\" in rule of recipe \"rule=flor\"; did you mean \"floor\"? known: floor, ceil, rceil, even, rfloor, rnearest, mse, auto",
        ),
        ("value-blocks=sequenc", "did you mean \"sequence\"?"),
        ("block=0", "block size 0 in block of recipe \"block=0\"; expected a whole number from 1 to 4096"),
        ("block=4097", "block size 4097"),
        ("block=-1", "block size -1"),
        ("proj=fp6,mlp", "setting \"mlp\""),
        ("proj=completely-different", "in proj of recipe \"proj=completely-different\"; known: bf16"),
    ] {
        let found = message(argument);
        assert!(found.contains(expected), "{found}");
    }
    assert!(!message("proj=completely-different").contains("did you mean"));
    assert!(message(&format!("proj={}", "x".repeat(100_000))).starts_with("unknown format"));
}

#[test]
fn toml_round_trip() {
    let inline = ["proj=fp6/fp8,head=bf16,block=64,rule=mse,value-blocks=sequence", "q=int8"];
    let mut recipes = Recipe::presets();
    recipes.extend(inline.iter().map(|text| Recipe::parse(text).unwrap()));
    let mut odd = Recipe::bf16();
    odd.name = "a \"quoted\"\n\\ name".to_owned();
    recipes.push(odd);
    for recipe in recipes {
        let text = recipe.to_toml();
        assert_eq!(Recipe::from_toml(&text, "x.toml").unwrap(), recipe, "{text}");
    }
}

#[test]
fn toml_files() {
    let text = r#"
        name = "mine"
        block-size = 16
        scale-rule = "rceil"
        value-blocks = "sequence"
        [projection]
        weight = "fp6_e3m2"
        activation = "fp8_e4m3"
        [mlp]
        weight = "fp4"
        activation = "fp8"
        [attention]
        key = "fp6_e3m2"
        [head]
        weight = "bf16"
    "#;
    let recipe = Recipe::from_toml(text, "dir/x.toml").unwrap();
    assert_eq!(formats(&recipe), [B, A, D, A, N, A, N, B, N, N]);
    assert_eq!((recipe.name.as_str(), recipe.block_size, recipe.scale_rule), ("mine", 16, ScaleRule::Rceil));
    assert_eq!(Recipe::from_toml("", "dir/plain.toml").unwrap().name, "plain");
    for (text, expected) in [
        (
            "[mlp]\nweight = \"fp7\"",
            "unknown format \"fp7\" in [mlp] weight of F.toml; did you mean \"fp6\"? known: bf16, ",
        ),
        (
            "[mlp]\nweigth = \"fp6\"",
            "unknown key \"weigth\" in [mlp] of F.toml; did you mean \"weight\"? known: weight, activation",
        ),
        ("[attenton]\nkey = \"fp6\"", "unknown key \"attenton\" in F.toml; did you mean \"attention\"?"),
        ("block_size = 32", "did you mean \"block-size\"?"),
        ("block-size = 0", "block size 0 in block-size of F.toml; expected a whole number from 1 to 4096"),
        ("block-size = \"32\"", "block size \"32\""),
        ("scale-rule = \"floors\"", "did you mean \"floor\"?"),
        ("mlp = \"fp6\"", "mlp of F.toml is \"fp6\"; expected a table [mlp]"),
        ("[mlp]\nweight = 6", "[mlp] weight of F.toml is 6; expected a string in quotes"),
        ("[[layer]]\nmatch = \"0..4\"", "F.toml: [[layer]] is reserved"),
        ("name = ", "F.toml is not valid TOML"),
    ] {
        let message = Recipe::from_toml(text, "F.toml").unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn files_by_their_ending() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("a.toml"), Recipe::parse("w6a8").unwrap().to_toml()).unwrap();
    assert_eq!(Recipe::parse(&path("a.toml")).unwrap(), Recipe::parse("w6a8").unwrap());
    std::fs::write(path("b.json"), r#"{"query_config": {"elem_dtype_name": "int8"}}"#).unwrap();
    let recipe = Recipe::parse(&path("b.json")).unwrap();
    assert_eq!((recipe.name.as_str(), recipe.format(Role::Query)), ("b", S));
    assert_eq!(recipe.warnings().len(), 3);
    assert!(message(&path("absent.toml")).starts_with("cannot read "));
}

/// The forms of `torchmx/config.py`'s `to_dict`.
#[test]
fn torchmx_dicts() {
    let mx = |name: &str| format!(r#"{{"elem_dtype_name": "{name}", "block_size": 32}}"#);
    let linear = format!(
        r#"{{"weights_config": {}, "activations_config": {}}}"#,
        mx("float6_e3m2"),
        r#"{"elem_dtype_name": "float8_e4m3"}"#
    );
    let attention = format!(
        r#""projection_config": {linear}, "query_config": {q}, "key_config": {q}, "value_config": {q}, "attention_weights_config": {q}"#,
        q = mx("float6_e3m2")
    );
    let expected = Recipe::parse("w6a8-attn6").unwrap();
    for text in [
        format!(r#"{{"qattention_config": {{{attention}}}, "qmlp_config": {linear}}}"#),
        format!(r#"{{{attention}, "mlp_config": {linear}}}"#),
    ] {
        let (recipe, warnings) = Recipe::from_torchmx_json(&text, "x.json").unwrap();
        assert!(recipe.same_formats(&expected), "{recipe:?}");
        assert!(warnings.is_empty(), "{warnings:?}");
    }
    let (recipe, warnings) = Recipe::from_torchmx_json(&linear, "x.json").unwrap();
    assert!(recipe.same_formats(&Recipe::parse("w6a8").unwrap()) && warnings.is_empty());

    let partial =
        format!(r#"{{"projection_config": {linear}, "qmlp_config": {linear}, "value_config": {}}}"#, mx("int8"));
    let (recipe, warnings) = Recipe::from_torchmx_json(&partial, "x.json").unwrap();
    assert_eq!((recipe.format(Role::Value), recipe.format(Role::Query)), (S, None));
    assert_eq!(
        warnings,
        ["x.json has no query_config, key_config, attention_weights_config: TorchMX would ignore the other attention \
          formats, here they are used"]
    );
    for (text, expected) in [
        ("{", "x.json is not valid JSON"),
        ("[]", "the file of x.json is not an object"),
        (r#"{"quer_config": {}}"#, "unknown key \"quer_config\" in x.json; did you mean \"query_config\"?"),
        (r#"{"query_config": {}}"#, "query_config of x.json has no elem_dtype_name"),
        (r#"{"query_config": {"elem_dtype_name": "float6"}}"#, "unknown format \"float6\" in query_config of x.json"),
        (r#"{"query_config": {"elem_dtype_name": "int8", "block_size": 0}}"#, "block size 0"),
        (r#"{"query_config": {"elem_dtype_name": "int8", "size": 0}}"#, "unknown key \"size\""),
        (r#"{"projection_config": {"weights_config": {"elem_dtype_name": "int8"}}}"#, "has no activations_config"),
        (
            r#"{"query_config": {"elem_dtype_name": "int8"}, "key_config": {"elem_dtype_name": "int8", "block_size": 16}}"#,
            "block_size 16 in key_config of x.json, 32 before it",
        ),
    ] {
        let message = Recipe::from_torchmx_json(text, "x.json").unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn sameness_is_about_numbers() {
    let parse = |text: &str| Recipe::parse(text).unwrap();
    assert!(parse("proj=bf16,block=64,rule=even").same_formats(&Recipe::bf16()));
    assert!(parse("proj=fp6,value-blocks=causal").same_formats(&parse("proj=fp6")));
    assert!(!parse("v=fp6,value-blocks=causal").same_formats(&parse("v=fp6")));
    assert!(!parse("proj=fp6,block=16").same_formats(&parse("proj=fp6")));
    assert!(!parse("proj=fp6,rule=even").same_formats(&parse("proj=fp6")));
    let with = Recipe::bf16().with(Role::MlpWeight, B);
    assert_eq!(formats(&with), [N, N, B, N, N, N, N, N, N, N]);
    let keys = Role::ALL.map(Role::key);
    assert!(keys[0] == "projection_weight" && keys[9] == "attention_weights");
}
