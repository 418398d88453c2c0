//! What the command line takes.

use std::path::PathBuf;

use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum};
use microscale_exchange::{Kind, Outtype};
use microscale_formats::{Convention, ElementFormat, ScaleRule, Ties};
use regex::Regex;

/// Run and judge LLaMA-class models in OCP Microscaling (MX) formats.
///
/// Results go to standard output, everything else to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage.
/// MICROSCALE_ISA=scalar|avx2|avx512|avx512vnni|avx512bf16|amx|neon forces an instruction set; results are the same bits on
/// all of them.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Print the accuracy table: bf16 first, then one row per recipe.
    Table(Table),
    /// Evaluate one recipe and write lm-eval's results and samples files.
    Eval(Eval),
    /// Say how well a model predicts a text: perplexity and bits per byte.
    Perplexity(Perplexity),
    /// Show, compare, export or delete the runs of the store.
    Runs(Runs),
    /// Continue a text, each time with the most likely token.
    Generate(Generate),
    /// Measure tokens per second of prefill and decode, beside what the machine can do.
    Bench(Bench),
    /// Write the logits of a token sequence to a safetensors file.
    Logits(Logits),
    /// Write a model, or the tensors of a safetensors file, in an MX format.
    Quantize(Quantize),
    /// Write what `quantize` made as plain floats again.
    Dequantize(Dequantize),
    /// Say whether two models or files hold the same values; exit code 0 if so, 1 if not, 2 if that cannot be told.
    Compare(Compare),
    /// List what tools mean by MX (scale rule and ties), or show what one of them, or two, make of instructive blocks.
    Conform(Conform),
    /// Write a quantized model as another program stores it, or as this one does, bit for bit.
    Convert(Convert),
    /// List the recipes, or print one as TOML.
    Recipes(Recipes),
    /// Show what a checkpoint holds, and its packed size under each recipe.
    Inspect(Inspect),
    /// Print instruction set, threads, memory and cache folder.
    Doctor,
}

#[derive(Args)]
pub(crate) struct Table {
    /// A Hugging Face directory or hub id (owner/name); without it, the demo world in this binary.
    pub(crate) model: Option<String>,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6); may be repeated.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Vec<String>,
    #[command(flatten)]
    pub(crate) tasks: Tasks,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    #[command(flatten)]
    pub(crate) keeping: Keeping,
    /// A folder of lm-eval's results and samples that becomes a row, compared with the first; may be repeated.
    #[arg(long, value_name = "DIR")]
    pub(crate) import: Vec<PathBuf>,
    /// Columns after the formats, separated by commas: tasks, average, delta, interval, flips, p, tost, verdict, kl, kl99,
    /// top1, gold. Default: tasks,average,delta,interval,verdict,kl. JSON and CSV have all, the divergences (kl, kl99,
    /// top1) where one of these columns is asked for.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// Percentage points of accuracy within which a row counts as equivalent to the first.
    #[arg(long, value_name = "POINTS", default_value_t = 1.0, value_parser = positive)]
    pub(crate) margin: f64,
    /// Form of the table.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the table to a file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Eval {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) model: String,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6). Default: bf16, or that of a quantized
    /// model.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<String>,
    #[command(flatten)]
    pub(crate) tasks: Tasks,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    #[command(flatten)]
    pub(crate) keeping: Keeping,
    /// Folder for results_<date>.json, in a folder named after the model.
    #[arg(long, value_name = "DIR")]
    pub(crate) output: PathBuf,
    /// Also write samples_<task>_<date>.jsonl: every document with its log-likelihoods.
    #[arg(long)]
    pub(crate) samples: bool,
}

#[derive(Args)]
pub(crate) struct Generate {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) model: String,
    /// The text to continue; "-" reads it from standard input, less a line end at its end.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) prompt: String,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6). Default: bf16, or that of a quantized
    /// model.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<String>,
    /// Tokens at most; the text ends sooner at an end-of-sequence token or where the model has no more positions.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_tokens: u32,
    /// Go on after an end-of-sequence token.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Over which tokens blocks of V are quantized; overrides the recipe. Generation knows no `sequence`.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) value_blocks: Option<ValueBlocksArgument>,
    /// Threads; results do not depend on them. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

#[derive(Args)]
#[command(group = ArgGroup::new("what").required(true).args(["model", "shape"]))]
pub(crate) struct Bench {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) model: Option<String>,
    /// Instead of a model, random weights of a model's shape: llama-3.2-1b, llama-3.2-3b, llama-3.1-8b, llama-3.1-70b.
    #[arg(long, value_name = "NAME")]
    pub(crate) shape: Option<String>,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6); may be repeated. Default: w6a8,
    /// or that of a quantized model.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Vec<String>,
    /// Prompt lengths, separated by commas: tokens taken in at once. Default, with --decode not given either: 512.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = tokens())]
    pub(crate) prefill: Vec<u32>,
    /// Numbers of tokens to take in one at a time. Default, with --prefill not given either: 64.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = tokens())]
    pub(crate) decode: Vec<u32>,
    /// Tokens before the first one decoded; their time does not count.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=MAX_TOKENS))]
    pub(crate) context: u32,
    /// How often each is timed, after a warm-up.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub(crate) repetitions: u32,
    /// Wait for a line on standard input before each repetition: to take turns with another program.
    #[arg(long)]
    pub(crate) step: bool,
    /// Threads. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the report to a file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Logits {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) model: String,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6). Default: bf16, or that of a quantized
    /// model.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Option<String>,
    /// Token ids as "1,2,3", or a .json file that holds an array of them.
    #[arg(long, value_name = "IDS|FILE")]
    pub(crate) tokens: String,
    /// The file to write: one bf16 tensor `logits` [tokens, vocabulary].
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
}

#[derive(Args)]
pub(crate) struct Quantize {
    /// A Hugging Face directory or hub id (owner/name), "demo", or a safetensors file.
    pub(crate) source: String,
    /// The directory to write, or of a file the file.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// For a model: a preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6).
    #[arg(long, value_name = "RECIPE", required_unless_present = "format", conflicts_with = "format")]
    pub(crate) recipe: Option<String>,
    /// For a file: fp8_e5m2, fp8_e4m3, fp6_e3m2, fp6_e2m3, fp4_e2m1 or int8.
    #[arg(long, value_name = "FORMAT", value_parser = element_format)]
    pub(crate) format: Option<ElementFormat>,
    /// How a block's scale follows from its values: floor, ceil, rceil, even, rfloor, rnearest, mse, or auto, which is
    /// the best for the format. Default: the recipe's, or floor.
    #[arg(long, value_name = "RULE", value_parser = scale_rule)]
    pub(crate) scale_rule: Option<ScaleRule>,
    /// Where values halfway between two codes go: even, away (from zero) or zero. Others than even are slow.
    #[arg(long, value_name = "TIES", value_parser = ties, default_value = "even", hide_default_value = true)]
    pub(crate) ties: Ties,
    /// Values that share a scale. Default: the recipe's, or 32.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) block_size: Option<u32>,
    /// For a file: quantize only the matrices whose name this expression matches anywhere; may be repeated.
    #[arg(long, value_name = "REGEX", conflicts_with = "recipe")]
    pub(crate) tensor: Vec<Regex>,
    /// For a file: one code per byte instead of codes at their true width.
    #[arg(long, conflicts_with = "recipe")]
    pub(crate) unpacked: bool,
    /// For a model: quantize it although it has weights that are infinite or NaN. It cannot be run then.
    #[arg(long, conflicts_with = "format")]
    pub(crate) allow_nonfinite: bool,
    /// Print what it cost each tensor: signal-to-noise ratio, clipped share, worst blocks. Reads both once more.
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "table")]
    pub(crate) report: Option<ReportForm>,
    #[command(flatten)]
    pub(crate) writing: Writing,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ReportForm {
    Table,
    Json,
}

#[derive(Args)]
pub(crate) struct Compare {
    /// A Hugging Face directory or hub id (owner/name), "demo", or a safetensors file; plain or quantized by
    /// `quantize`. The reference.
    pub(crate) a: String,
    /// What to compare with it.
    pub(crate) b: String,
    /// JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Conform {
    /// A safetensors file: count where two conventions (the second being ocp if only one is given) differ on it.
    pub(crate) file: Option<PathBuf>,
    /// A convention: a tool, mostly with a mode of its own; twice to compare two. Without any, all are listed.
    #[arg(long = "as", value_name = "NAME", value_parser = convention)]
    pub(crate) conventions: Vec<&'static Convention>,
    /// fp8_e5m2, fp8_e4m3, fp6_e3m2, fp6_e2m3, fp4_e2m1 or int8.
    #[arg(long, value_name = "FORMAT", value_parser = element_format, default_value = "fp4_e2m1")]
    pub(crate) format: ElementFormat,
    /// Of a file, values that share a scale.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) block_size: u32,
    /// Of a file, only the matrices whose name this expression matches anywhere; may be repeated.
    #[arg(long, value_name = "REGEX", requires = "file")]
    pub(crate) tensor: Vec<Regex>,
    /// JSON instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args)]
pub(crate) struct Dequantize {
    /// A quantized model or file that `quantize` wrote.
    pub(crate) source: PathBuf,
    /// The directory to write, or of a file the file.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// What quantized values become.
    #[arg(long, value_enum, default_value_t = FloatArgument::Bf16)]
    pub(crate) dtype: FloatArgument,
    #[command(flatten)]
    pub(crate) writing: Writing,
}

#[derive(Args)]
pub(crate) struct Convert {
    /// A quantized model of any kind, told by its files: a folder, or a .gguf file. For --to gguf also a plain model: a
    /// folder, hub id (owner/name) or "demo".
    pub(crate) source: String,
    /// What to write: compressed-tensors, quark, modelopt, mlx, gpt-oss, gguf, torchao or native.
    #[arg(long, value_name = "KIND", value_parser = kind)]
    pub(crate) to: Kind,
    /// The directory to write, or of gguf the file.
    #[arg(short, long, value_name = "PATH")]
    pub(crate) output: PathBuf,
    /// For --to gguf, the type of matrices that are not quantized: bf16 (the default), or q8_0 by ggml's own rule, from
    /// which there is no way back.
    #[arg(long, value_name = "TYPE", value_parser = outtype)]
    pub(crate) outtype: Option<Outtype>,
    #[command(flatten)]
    pub(crate) writing: Writing,
}

/// How files of tensors are written.
#[derive(Args)]
pub(crate) struct Writing {
    /// Of a model, the most that one file holds: bytes, or with kB, MB or GB.
    #[arg(long, value_name = "BYTES", default_value = "4GB", value_parser = bytes)]
    pub(crate) shard_size: usize,
    /// Threads; results do not depend on them. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

#[derive(Args)]
pub(crate) struct Perplexity {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) model: String,
    /// The text, UTF-8.
    pub(crate) file: PathBuf,
    /// A preset's name, a .toml or .json file, or inline (proj=fp6/fp8,attn=fp6); may be repeated. bf16 comes first.
    #[arg(long, value_name = "RECIPE")]
    pub(crate) recipe: Vec<String>,
    /// Tokens the model sees at most. Default: its own limit, at most 2048.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) window: Option<u32>,
    /// Tokens predicted per window; fewer than the window has let every token but the first ones see at least the
    /// difference. Default: as many as the window has, so that windows do not overlap.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) stride: Option<u32>,
    #[command(flatten)]
    pub(crate) scoring: Scoring,
    #[command(flatten)]
    pub(crate) keeping: Keeping,
    /// Form of the report.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub(crate) format: Format,
    /// Write the report to a file instead of standard output.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct Runs {
    #[command(subcommand)]
    pub(crate) action: RunsAction,
    /// The store's file. Default: microscale/runs.sqlite in the user's data folder.
    #[arg(long, value_name = "FILE", global = true)]
    pub(crate) store: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(crate) enum RunsAction {
    /// List all runs, the one used last first.
    List,
    /// Show a run's tasks and accuracies.
    Show {
        /// Its number.
        run: i64,
    },
    /// Compare a run with another, document by document.
    Compare {
        /// The number of the run to compare with.
        first: i64,
        /// The number of the other.
        second: i64,
        /// Percentage points of accuracy within which they count as equivalent.
        #[arg(long, value_name = "POINTS", default_value_t = 1.0, value_parser = positive)]
        margin: f64,
    },
    /// Write a run's verdicts by document as JSON.
    Export {
        /// Its number.
        run: i64,
        /// The file to write; standard output otherwise.
        #[arg(long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Delete a run with all its scores.
    Delete {
        /// Its number.
        run: i64,
    },
}

#[derive(Args)]
pub(crate) struct Recipes {
    /// Print this recipe as TOML: a preset's name, a file, or inline.
    pub(crate) name: Option<String>,
}

#[derive(Args)]
pub(crate) struct Inspect {
    /// A Hugging Face directory or hub id (owner/name), or "demo".
    pub(crate) path: String,
    /// List every tensor, not only the sums by dtype.
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// Which documents to score.
#[derive(Args)]
pub(crate) struct Tasks {
    /// Tasks by name, separated by commas; without it, all that the data holds.
    #[arg(long, value_name = "LIST", value_delimiter = ',')]
    pub(crate) tasks: Vec<String>,
    /// Folder of task files, searched by name; without it, the data sets are downloaded.
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Examples before each document, drawn from the training split as lm-eval draws them.
    #[arg(long, value_name = "K", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1000))]
    pub(crate) num_fewshot: u32,
    /// The first N documents of each task; below 1, that share of them.
    #[arg(long, value_name = "N", value_parser = positive)]
    pub(crate) limit: Option<f64>,
}

/// Where scores are kept.
#[derive(Args)]
pub(crate) struct Keeping {
    /// The file that keeps every score, so that what was scored once is not scored again. Default:
    /// microscale/runs.sqlite in the user's data folder.
    #[arg(long, value_name = "FILE", conflicts_with = "no_store")]
    pub(crate) store: Option<PathBuf>,
    /// Keep nothing and reuse nothing.
    #[arg(long)]
    pub(crate) no_store: bool,
}

/// How to run the model.
#[derive(Args)]
pub(crate) struct Scoring {
    /// Longest model input in tokens, to which requests are cut from the left. Default: the model's own limit.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_length: Option<u32>,
    /// Sequences per batch (`logits` has one); results do not depend on it. Default: as many as make a good batch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) batch_size: Option<u32>,
    /// Over which tokens blocks of V are quantized; overrides the recipe.
    #[arg(long, value_enum, value_name = "MODE")]
    pub(crate) value_blocks: Option<ValueBlocksArgument>,
    /// Memory to stay within, as 6G or 500M (`logits` does not heed it): a model that does not fit is read layer by
    /// layer, once for as many requests as there is room for. Default: what is available, less a tenth.
    #[arg(long, value_name = "BYTES", value_parser = bytes)]
    pub(crate) memory: Option<usize>,
    /// Compute the common beginning of several requests for each of them; results do not depend on it.
    #[arg(long)]
    pub(crate) no_prefix_sharing: bool,
    /// Threads; results do not depend on them. Default: one per core.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub(crate) threads: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum ValueBlocksArgument {
    /// `sequence` where whole sequences are scored, `causal` where text is generated.
    Auto,
    /// Over the whole sequence, as the published table did.
    Sequence,
    /// Over the tokens up to the query, as decoding token by token does.
    Causal,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Text,
    Markdown,
    Json,
    Csv,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum FloatArgument {
    Bf16,
    F32,
}

/// More tokens than any model has positions.
const MAX_TOKENS: i64 = 1 << 24;

fn tokens() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=MAX_TOKENS)
}

fn positive(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| format!("{text:?} is not a number"))?;
    if number > 0.0 && number.is_finite() { Ok(number) } else { Err("must be above 0".to_owned()) }
}

fn element_format(name: &str) -> Result<ElementFormat, String> {
    let known = ElementFormat::ALL.map(ElementFormat::name).join(", ");
    ElementFormat::from_name(name).ok_or_else(|| format!("unknown format; known: {known}"))
}

fn scale_rule(name: &str) -> Result<ScaleRule, String> {
    let known = ScaleRule::ALL.map(ScaleRule::name).join(", ");
    ScaleRule::from_name(name).ok_or_else(|| format!("unknown rule; known: {known}"))
}

fn ties(name: &str) -> Result<Ties, String> {
    let known = Ties::ALL.map(Ties::name).join(", ");
    Ties::from_name(name).ok_or_else(|| format!("unknown ties; known: {known}"))
}

fn convention(name: &str) -> Result<&'static Convention, String> {
    let known = Convention::ALL.map(|c| c.name).join(", ");
    Convention::from_name(name).ok_or_else(|| format!("unknown convention; known: {known}"))
}

fn kind(name: &str) -> Result<Kind, String> {
    let known = Kind::ALL.map(Kind::name).join(", ");
    Kind::from_name(name).ok_or_else(|| format!("unknown kind; known: {known}"))
}

fn outtype(name: &str) -> Result<Outtype, String> {
    Outtype::from_name(name).ok_or_else(|| "unknown type; known: bf16, q8_0".to_owned())
}

/// A number of bytes, with or without a unit: 6G, 500MB, 1.5GiB.
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let factor = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        unit => return Err(format!("unknown unit {unit:?}; give bytes, or k, M, G, T, KiB, MiB or GiB")),
    };
    match positive(digits)? * factor {
        number if (1.0..1e18).contains(&number) => Ok(number as usize),
        _ => Err("must be at least one byte and no more than there can be".to_owned()),
    }
}
