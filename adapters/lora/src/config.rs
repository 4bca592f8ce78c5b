//! `adapter_config.json`: what it may say, and what of it cannot be served.

use regex::{Regex, RegexBuilder};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::Fault;

const FILE: &str = "adapter_config.json";

/// The parts of PEFT's configuration that matter for serving. Unknown keys are PEFT's own affair, unless
/// they change what the tensors mean; those are refused by [`PeftConfig::parse`].
#[derive(Clone, Debug, Deserialize)]
pub struct PeftConfig {
    /// `LORA`.
    #[serde(default)]
    pub peft_type: Option<String>,
    /// `SEQ_CLS`, `CAUSAL_LM`, or none.
    #[serde(default)]
    pub task_type: Option<String>,
    /// What the adapter was trained on.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// The rank, unless `rank_pattern` says otherwise.
    pub r: u64,
    /// The alpha, unless `alpha_pattern` says otherwise.
    pub lora_alpha: f64,
    /// Whether the scale is alpha / sqrt(rank) in place of alpha / rank.
    #[serde(default)]
    pub use_rslora: bool,
    /// Ranks by module; the first pattern that matches holds.
    #[serde(default)]
    pub rank_pattern: Option<Map<String, Value>>,
    /// Alphas by module, as above.
    #[serde(default)]
    pub alpha_pattern: Option<Map<String, Value>>,
    /// Names of modules, or one pattern.
    #[serde(default)]
    pub target_modules: Option<Targets>,
    /// The layers that have tensors; all without it.
    #[serde(default)]
    pub layers_to_transform: Option<Layers>,
    /// Modules that are stored whole.
    #[serde(default)]
    pub modules_to_save: Option<Vec<String>>,
    /// Whether biases were trained.
    #[serde(default)]
    pub bias: Option<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
    #[serde(skip)]
    ranks: Vec<(Regex, f64)>,
    #[serde(skip)]
    alphas: Vec<(Regex, f64)>,
}

/// `target_modules`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// A regular expression, or `all-linear`.
    Pattern(String),
    /// Last parts of modules' names.
    Names(Vec<String>),
}

/// `layers_to_transform`.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Layers {
    /// One layer.
    One(u32),
    /// Several.
    Some(Vec<u32>),
}

/// What a LoRA may be started as without changing the base's own weights.
const PLAIN_STARTS: &[&str] = &["gaussian", "orthogonal", "eva"];
/// Keys that, when set to anything but nothing, change what the tensors mean.
const REFUSED: &[(&str, &str)] = &[
    ("use_dora", "DoRA"),
    ("lora_bias", "biases on its B matrices (lora_bias)"),
    ("fan_in_fan_out", "transposed weights (fan_in_fan_out)"),
    ("layer_replication", "replicated layers (layer_replication)"),
    ("trainable_token_indices", "trained token embeddings (trainable_token_indices)"),
    ("target_parameters", "adapted parameters (target_parameters)"),
    ("alora_invocation_tokens", "activation by tokens (aLoRA)"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal matrices (BD-LoRA)"),
    ("arrow_config", "routing between adapters (Arrow)"),
];

impl PeftConfig {
    /// Parses the file and refuses what cannot be served.
    ///
    /// # Errors
    ///
    /// `BadJson`, `BadNumber`, or `Unsupported`.
    pub fn parse(text: &[u8]) -> Result<PeftConfig, Fault> {
        let bad = |reason: String| Fault::BadJson { file: FILE, reason };
        let mut config: PeftConfig = serde_json::from_slice(text).map_err(|error| bad(error.to_string()))?;
        config.refuse()?;
        config.ranks = patterns("rank_pattern", config.rank_pattern.as_ref())?;
        config.alphas = patterns("alpha_pattern", config.alpha_pattern.as_ref())?;
        if config.r == 0 {
            return Err(Fault::BadNumber { what: "rank (r)", found: "0".into() });
        }
        check_alpha(config.lora_alpha)?;
        config.alphas.iter().try_for_each(|(_, alpha)| check_alpha(*alpha))?;
        Ok(config)
    }

    fn refuse(&self) -> Result<(), Fault> {
        let no = |what: String, hint| Err(Fault::Unsupported { what, hint });
        match self.peft_type.as_deref() {
            Some("LORA") => {}
            Some(other) => return no(format!("the method {other}"), "; LORA can"),
            None => return Err(Fault::BadJson { file: FILE, reason: "peft_type is missing".into() }),
        }
        if let Some(bias) = self.bias.as_deref().filter(|bias| *bias != "none") {
            return no(format!("trained biases (bias = {bias:?})"), "; train with bias = \"none\"");
        }
        for (key, what) in REFUSED {
            if self.rest.get(*key).is_some_and(is_set) {
                return no((*what).into(), "; merge it with PEFT and serve the merged model");
            }
        }
        if let Some(Value::String(start)) = self.rest.get("init_lora_weights")
            && !PLAIN_STARTS.contains(&start.as_str())
        {
            let what = format!("a base of its own (init_lora_weights = {start:?})");
            return no(what, "; save it with path_initial_model_for_weight_conversion");
        }
        Ok(())
    }

    /// Rank and alpha of the module, whose name has no prefix of PEFT's: `model.layers.0.self_attn.q_proj`.
    pub fn rank_and_alpha(&self, module: &str) -> (u64, f64) {
        let find = |patterns: &[(Regex, f64)]| {
            patterns.iter().find(|(pattern, _)| pattern.is_match(module)).map(|(_, number)| *number)
        };
        let rank = find(&self.ranks).map_or(self.r, |rank| rank as u64);
        (rank, find(&self.alphas).unwrap_or(self.lora_alpha))
    }

    /// What the product of B and A is multiplied with.
    pub fn scale(&self, rank: u64, alpha: f64) -> f64 {
        let divisor = if self.use_rslora { (rank as f64).sqrt() } else { rank as f64 };
        alpha / divisor
    }
}

fn check_alpha(alpha: f64) -> Result<(), Fault> {
    let good = alpha.is_finite() && alpha > 0.0 && (alpha as f32).is_finite();
    let fault = || Fault::BadNumber { what: "alpha (lora_alpha)", found: alpha.to_string() };
    good.then_some(()).ok_or_else(fault)
}

/// PEFT matches a pattern against the end of a name, at a dot.
fn patterns(key: &'static str, map: Option<&Map<String, Value>>) -> Result<Vec<(Regex, f64)>, Fault> {
    let bad = |reason: String| Fault::BadJson { file: FILE, reason };
    let parse = |(pattern, number): (&String, &Value)| {
        let anchored = format!(r"^(?:.*\.)?(?:{pattern})$");
        let regex = RegexBuilder::new(&anchored).size_limit(1 << 20).build();
        let regex = regex.map_err(|error| bad(format!("{key} {pattern:?}: {error}")))?;
        let number = number.as_f64().filter(|number| *number > 0.0);
        let number = number.ok_or_else(|| bad(format!("{key} {pattern:?}: not a positive number")))?;
        if key == "rank_pattern" && (number.fract() != 0.0 || number > 1e6) {
            return Err(bad(format!("{key} {pattern:?}: {number} is no rank")));
        }
        Ok((regex, number))
    };
    map.into_iter().flatten().map(parse).collect()
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(values) => !values.is_empty(),
        Value::Object(values) => !values.is_empty(),
        _ => true,
    }
}
