//! A recipe: which format each role of the forward pass is held in, and how its blocks are scaled.
//!
//! A recipe is data. It comes from a preset's name, an inline text, a TOML file or TorchMX's own JSON.

mod inline;
mod names;
mod preset;
mod toml_file;
mod torchmx;

use std::path::Path;

use microscale_formats::{BLOCK, ElementFormat, ScaleRule};

use crate::Error;

/// Largest block size a recipe may ask for.
pub(crate) const MAX_BLOCK_SIZE: usize = 4096;

/// A kind of tensor that a recipe sets independently.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// `q_proj`, `k_proj`, `v_proj` and `o_proj` weights; blocks along the input features.
    ProjectionWeight,
    /// The inputs of those.
    ProjectionActivation,
    /// `gate_proj`, `up_proj` and `down_proj` weights.
    MlpWeight,
    /// The inputs of those.
    MlpActivation,
    /// `lm_head` weight.
    HeadWeight,
    /// The input of `lm_head`.
    HeadActivation,
    /// Queries after rotary embedding; blocks along head_dim.
    Query,
    /// Keys after rotary embedding; blocks along head_dim.
    Key,
    /// Values; blocks along the sequence.
    Value,
    /// Softmax output; blocks along the keys.
    AttentionWeights,
}

impl Role {
    /// Every role, in the order of the forward pass's weights, then attention.
    pub const ALL: [Role; 10] = [
        Self::ProjectionWeight,
        Self::ProjectionActivation,
        Self::MlpWeight,
        Self::MlpActivation,
        Self::HeadWeight,
        Self::HeadActivation,
        Self::Query,
        Self::Key,
        Self::Value,
        Self::AttentionWeights,
    ];

    /// The name manifests use: `projection_weight`.
    pub fn key(self) -> &'static str {
        match self {
            Role::ProjectionWeight => "projection_weight",
            Role::ProjectionActivation => "projection_activation",
            Role::MlpWeight => "mlp_weight",
            Role::MlpActivation => "mlp_activation",
            Role::HeadWeight => "head_weight",
            Role::HeadActivation => "head_activation",
            Role::Query => "query",
            Role::Key => "key",
            Role::Value => "value",
            Role::AttentionWeights => "attention_weights",
        }
    }
}

/// Over which tokens a block of values along the sequence is quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum ValueBlocks {
    /// `Sequence` where sequences are scored, `Causal` where tokens are generated.
    #[default]
    Auto,
    /// Over the whole sequence: a block's scale sees tokens later than the query, as in TorchMX's table.
    Sequence,
    /// For each query over the tokens seen so far, as decoding one token at a time does.
    Causal,
}

impl ValueBlocks {
    /// Every mode.
    pub const ALL: [ValueBlocks; 3] = [Self::Auto, Self::Sequence, Self::Causal];

    /// The name recipes use.
    pub fn name(self) -> &'static str {
        match self {
            ValueBlocks::Auto => "auto",
            ValueBlocks::Sequence => "sequence",
            ValueBlocks::Causal => "causal",
        }
    }

    /// The mode of this name, in any case.
    pub fn from_name(name: &str) -> Option<ValueBlocks> {
        Self::ALL.into_iter().find(|v| v.name().eq_ignore_ascii_case(name))
    }
}

/// Which format each role is held in.
///
/// ```
/// use microscale_model::{Recipe, Role};
///
/// let recipe = Recipe::parse("proj=fp6/fp8,mlp=fp6/fp8,attn=fp6")?;
/// assert!(recipe.same_formats(&Recipe::parse("w6a8-attn6")?));
/// assert_eq!(recipe.format(Role::HeadActivation).unwrap().name(), "fp8_e4m3"); // the head follows the MLP
/// # Ok::<(), microscale_model::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What to call it: a preset's name, the inline text, or the name a file gives.
    pub name: String,
    /// Values per block, 1 to 4096.
    pub block_size: usize,
    /// How a block's scale follows from its values.
    pub scale_rule: ScaleRule,
    /// Over which tokens blocks of V run.
    pub value_blocks: ValueBlocks,
    formats: [Option<ElementFormat>; Role::ALL.len()],
    warnings: Vec<String>,
}

impl Recipe {
    /// The recipe that quantizes nothing.
    pub fn bf16() -> Recipe {
        Draft::default().finish("bf16")
    }

    /// The format of `role`; `None` leaves it bf16.
    pub fn format(&self, role: Role) -> Option<ElementFormat> {
        self.formats[role as usize]
    }

    /// The same recipe with another format for `role`, and for no other: the head does not follow the MLP here.
    pub fn with(mut self, role: Role, format: Option<ElementFormat>) -> Recipe {
        self.formats[role as usize] = format;
        self
    }

    /// The recipe with `value-blocks` settled for scoring whole sequences.
    pub fn for_scoring(mut self) -> Recipe {
        if self.value_blocks == ValueBlocks::Auto {
            self.value_blocks = ValueBlocks::Sequence;
        }
        self
    }

    /// The recipe with `value-blocks` settled for generating token by token.
    ///
    /// # Errors
    /// A recipe that asks for value blocks over the whole sequence, which is not known yet.
    pub fn for_generation(mut self) -> Result<Recipe, Error> {
        if self.value_blocks == ValueBlocks::Sequence {
            let reason = format!(
                "recipe {}: value-blocks \"sequence\" quantizes values over the whole sequence, which generation does \
                 not know in advance; use \"causal\" or \"auto\"",
                self.name
            );
            return Err(Error::Recipe { reason });
        }
        self.value_blocks = ValueBlocks::Causal;
        Ok(self)
    }

    /// Reads the recipe that `argument` means: inline if it holds a `=`, a file if it ends in `.toml` or `.json`
    /// (TorchMX's), else a preset's name. What is odd but usable about it is in [`warnings`](Self::warnings).
    ///
    /// # Errors
    /// An unknown name, key or format, with the nearest valid one; a file that cannot be read.
    pub fn parse(argument: &str) -> Result<Recipe, Error> {
        if argument.contains('=') {
            return inline::parse(argument);
        }
        let ends_in = |ending: &str| argument.to_ascii_lowercase().ends_with(ending);
        if !ends_in(".toml") && !ends_in(".json") {
            return preset::parse(argument);
        }
        let path = Path::new(argument);
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        if ends_in(".toml") {
            return Recipe::from_toml(&text, argument);
        }
        let (mut recipe, warnings) = Recipe::from_torchmx_json(&text, argument)?;
        recipe.warnings = warnings;
        Ok(recipe)
    }

    /// Reads a recipe file; `origin` names it in errors, and the recipe where the file does not.
    ///
    /// # Errors
    /// Not TOML; an unknown table, key, format, rule or mode; a block size outside 1 to 4096; `[[layer]]`, which is
    /// reserved.
    pub fn from_toml(text: &str, origin: &str) -> Result<Recipe, Error> {
        toml_file::parse(text, origin)
    }

    /// Reads TorchMX's configuration as JSON, with what it says that TorchMX would not do.
    ///
    /// An object with the keys of `quantize_llm_`, `qattention_config` (a `QAttentionConfig.to_dict()`) and
    /// `qmlp_config` (a `QLinearConfig.to_dict()`), or the attention keys (`projection_config`, `query_config`, …)
    /// beside `mlp_config`; or one `QLinearConfig`, for every linear layer, as `quantize_linear_` has it.
    ///
    /// # Errors
    /// Not JSON; an unknown key or format; block sizes that differ.
    pub fn from_torchmx_json(text: &str, origin: &str) -> Result<(Recipe, Vec<String>), Error> {
        torchmx::parse(text, origin)
    }

    /// The recipe as a file; [`from_toml`](Self::from_toml) reads the same back, warnings aside.
    pub fn to_toml(&self) -> String {
        toml_file::write(self)
    }

    /// The recipes worth listing: every row of the published table, and their neighbours.
    pub fn presets() -> Vec<Recipe> {
        preset::all()
    }

    /// Whether both give the same numbers: names, and settings that touch no format, do not count.
    pub fn same_formats(&self, other: &Recipe) -> bool {
        self.formats == other.formats
            && (self.is_bf16() || (self.block_size, self.scale_rule) == (other.block_size, other.scale_rule))
            && (self.format(Role::Value).is_none() || self.value_blocks == other.value_blocks)
    }

    /// Whether nothing is quantized.
    pub fn is_bf16(&self) -> bool {
        self.formats.iter().all(Option::is_none)
    }

    /// What [`parse`](Self::parse) found odd but usable, one sentence each.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// A recipe in the making: a role that nobody has set yet is told from one set to bf16, so that the head can follow.
#[derive(Default)]
struct Draft {
    block_size: Option<usize>,
    scale_rule: ScaleRule,
    value_blocks: ValueBlocks,
    formats: [Option<Option<ElementFormat>>; Role::ALL.len()],
}

impl Draft {
    /// Sets `roles` to one format.
    fn set(&mut self, roles: &[Role], format: Option<ElementFormat>) {
        for &role in roles {
            self.formats[role as usize] = Some(format);
        }
    }

    /// The recipe: the head follows the MLP where it is not set, everything else is bf16.
    fn finish(mut self, name: &str) -> Recipe {
        for (head, mlp) in [(Role::HeadWeight, Role::MlpWeight), (Role::HeadActivation, Role::MlpActivation)] {
            self.formats[head as usize] = self.formats[head as usize].or(self.formats[mlp as usize]);
        }
        Recipe {
            name: name.to_owned(),
            block_size: self.block_size.unwrap_or(BLOCK),
            scale_rule: self.scale_rule,
            value_blocks: self.value_blocks,
            formats: self.formats.map(Option::flatten),
            warnings: Vec::new(),
        }
    }
}

const PROJECTION: [Role; 2] = [Role::ProjectionWeight, Role::ProjectionActivation];
const MLP: [Role; 2] = [Role::MlpWeight, Role::MlpActivation];
const HEAD: [Role; 2] = [Role::HeadWeight, Role::HeadActivation];
const ATTENTION: [Role; 4] = [Role::Query, Role::Key, Role::Value, Role::AttentionWeights];

/// A recipe error.
fn error(reason: impl Into<String>) -> Error {
    Error::Recipe { reason: reason.into() }
}
