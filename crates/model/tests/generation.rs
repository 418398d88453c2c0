//! Growing a sequence token by token: the same bits as at once, greedy choices, and text as it comes.

use std::path::Path;

use microscale_model::{Checkpoint, Config, End, Error, Generation, Llama, RandomWeights, Recipe};
use microscale_tensor::{Backend, Cpu};

fn demo() -> Checkpoint {
    Checkpoint::open(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../demo/model"))).unwrap()
}

fn model(checkpoint: &Checkpoint, recipe: &str) -> Llama<Cpu> {
    let recipe = Recipe::parse(recipe).unwrap().for_generation().unwrap();
    Llama::load(Cpu::new(), checkpoint, &recipe).unwrap()
}

fn some_tokens(count: u32) -> Vec<u32> {
    (0..count).map(|i| (i * 37 + 5) % 1000).collect()
}

#[test]
fn step_by_step_the_bits_are_those_of_the_whole_sequence() {
    let checkpoint = demo();
    let splits = [vec![1; 70], vec![7, 1, 30], vec![33, 31], vec![32, 1, 31, 1]];
    for recipe in ["bf16", "w6a8-attn6", "w4a4-attn4"] {
        let model = model(&checkpoint, recipe);
        for split in &splits {
            let tokens = some_tokens(split.iter().sum());
            let whole = model.logits(&tokens).unwrap();
            let mut cache = model.cache();
            for &count in split {
                let start = cache.tokens();
                let last = model.extend(&mut cache, &tokens[start..start + count as usize]).unwrap();
                let last = model.backend().download(&last);
                assert_eq!((last.rows(), cache.tokens()), (1, start + count as usize));
                assert!(last.row(0) == whole.row(cache.tokens() - 1), "{recipe}, {split:?}, {} tokens", cache.tokens());
            }
        }
    }
}

/// What the model says next, by one pass over everything for every token.
fn slowly(model: &Llama<Cpu>, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let logits = model.logits(&tokens).unwrap();
        let last: Vec<f32> = logits.row(tokens.len() - 1).iter().map(|x| x.to_f32()).collect();
        let largest = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        tokens.push(last.iter().position(|&x| x == largest).unwrap() as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn greedy_tokens_until_an_end() {
    let checkpoint = demo();
    let model = model(&checkpoint, "w6a8-attn6");
    let prompt = checkpoint.tokenizer().unwrap().encode("Question: Where does the", true).unwrap();
    let expected = slowly(&model, &prompt, 20);
    let run = |end_tokens: &[u32]| {
        let mut generation = Generation::new(&model, &prompt, end_tokens).unwrap();
        let tokens: Vec<u32> = generation.by_ref().take(20).collect::<Result<_, _>>().unwrap();
        (tokens, generation.end())
    };
    assert_eq!(run(&[]), (expected.clone(), None));
    let end = expected[7];
    let first = expected.iter().position(|&token| token == end).unwrap();
    assert_eq!(run(&[1279, end]), (expected[..first].to_vec(), Some(End::Token(end))));
}

#[test]
fn positions_bound_a_sequence() {
    let checkpoint = demo();
    let model = model(&checkpoint, "bf16");
    let mut generation = Generation::new(&model, &some_tokens(254), &[]).unwrap();
    // The model takes in 254, 255 and 256 tokens; what it says after these needs no position.
    assert_eq!(generation.by_ref().map(Result::unwrap).count(), 3);
    assert_eq!(generation.end(), Some(End::Positions));
    assert!(generation.next().is_none());
    let refused = |prompt: &[u32]| match Generation::new(&model, prompt, &[]) {
        Err(Error::Generation { reason }) => reason,
        _ => panic!("{} tokens are no prompt", prompt.len()),
    };
    assert!(refused(&[]).contains("no tokens"));
    assert!(refused(&some_tokens(257)).contains("257 tokens, the model 256 positions"));
    assert!(refused(&[3, 1280]).contains("token 1280 is outside the vocabulary"));
}

#[test]
fn a_model_needs_no_checkpoint() {
    let json = br#"{"architectures": ["Qwen2ForCausalLM"], "hidden_size": 48, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 70, "intermediate_size": 96, "num_hidden_layers": 2,
        "tie_word_embeddings": true}"#;
    let config = Config::from_json(json, Path::new("config.json")).unwrap();
    let logits = |seed| {
        let recipe = Recipe::parse("w6a8").unwrap();
        Llama::load(Cpu::new(), &RandomWeights::new(config.clone(), seed), &recipe).unwrap().logits(&[1, 69]).unwrap()
    };
    assert!(logits(1).values().iter().all(|x| x.is_finite()));
    assert!(logits(1) == logits(1) && logits(1) != logits(2));
}
