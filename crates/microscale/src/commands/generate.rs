//! `microscale generate`: a model continues a text.

use std::io::{ErrorKind, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use microscale_model::{End, Generation, Llama, Recipe, Tokenizer, check_prompt};
use microscale_tensor::Backend;

use crate::arguments::Generate;
use crate::engine::{self, Engine};
use crate::{interrupt, sources, usage};

pub(crate) fn run(arguments: &Generate) -> Result<ExitCode> {
    let engine = Engine::new(arguments.threads)?;
    let asked = arguments.recipe.as_deref().map(|name| engine::recipe(name, arguments.value_blocks)).transpose()?;
    let asked = asked.map(Recipe::for_generation).transpose().map_err(usage)?;
    let text = prompt(&arguments.prompt)?;
    let checkpoint = sources::model(Some(&arguments.model))?;
    let recipe = engine::recipe_for(&checkpoint, asked, arguments.value_blocks)?.for_generation().map_err(usage)?;
    let tokenizer = checkpoint.tokenizer()?;
    let prompt = tokenizer.encode(&text, true)?;
    check_prompt(checkpoint.config(), &prompt)?;
    let end_tokens = if arguments.ignore_eos { Vec::new() } else { checkpoint.end_tokens()? };
    let model = engine.load(&checkpoint, &recipe)?;
    interrupt::listen("this token")?;
    let generation = Generation::new(&model, &prompt, &end_tokens)?;
    let done = stream(generation, &tokenizer, &prompt, arguments.max_tokens as usize)?;
    report(&model, &prompt, &done);
    Ok(if interrupt::requested() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The text to continue: the argument, or standard input for `-`.
fn prompt(argument: &str) -> Result<String> {
    if argument != "-" {
        return Ok(argument.to_owned());
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from standard input")?;
    // The line end that `echo` and editors add would change what comes next.
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(line.strip_suffix('\r').unwrap_or(line).to_owned())
}

/// What was generated, and how long it took.
struct Done {
    tokens: usize,
    /// Time of each pass: the prompt's, then one per token.
    passes: Vec<Duration>,
    end: Option<End>,
}

/// Prints the text of up to `limit` tokens as they come.
fn stream<B: Backend>(
    mut generation: Generation<'_, B>,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    limit: usize,
) -> Result<Done> {
    let mut text = tokenizer.stream(prompt);
    let mut output = Output { line_begins: false, closed: false };
    let (mut tokens, mut passes) = (0, Vec::new());
    while tokens < limit && !output.closed && !interrupt::requested() {
        let start = Instant::now();
        let token = generation.next().transpose()?;
        if generation.end() != Some(End::Positions) {
            passes.push(start.elapsed());
        }
        let Some(token) = token else { break };
        tokens += 1;
        output.print(&text.push(token)?)?;
    }
    output.print(&text.finish()?)?;
    if !output.line_begins {
        output.print("\n")?;
    }
    Ok(Done { tokens, passes, end: generation.end() })
}

/// Standard output, until nobody reads it any more.
struct Output {
    /// Whether what was printed last is the end of a line.
    line_begins: bool,
    closed: bool,
}

impl Output {
    /// Prints at once.
    fn print(&mut self, text: &str) -> Result<()> {
        if text.is_empty() || self.closed {
            return Ok(());
        }
        let mut stdout = std::io::stdout().lock();
        match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
            // `| head` has seen enough; that is no failure.
            Err(e) if e.kind() == ErrorKind::BrokenPipe => self.closed = true,
            other => other.context("cannot write to standard output")?,
        }
        self.line_begins = text.ends_with('\n');
        Ok(())
    }
}

/// Says on standard error what was done and how fast.
fn report<B: Backend>(model: &Llama<B>, prompt: &[u32], done: &Done) {
    if done.end == Some(End::Positions) {
        let positions = model.config().max_position_embeddings;
        eprintln!("stopped: the text fills the {positions} positions the model was made for");
    } else if interrupt::requested() {
        eprintln!("interrupted");
    }
    let (prefill, decode) = done.passes.split_at(done.passes.len().min(1));
    let rate = |tokens: usize, passes: &[Duration]| match passes {
        [] => "–".to_owned(),
        passes => format!("{:.1} tokens/s", tokens as f64 / passes.iter().sum::<Duration>().as_secs_f64().max(1e-9)),
    };
    eprintln!(
        "{} prompt tokens, {} generated; prefill {}, decode {}",
        prompt.len(),
        done.tokens,
        rate(prompt.len(), prefill),
        rate(decode.len(), decode)
    );
}
