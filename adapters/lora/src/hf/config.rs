//! `config.json` of Qwen2, 2.5 and 3, and the keys that it becomes.

use quern_gguf::{TensorInfo, Value};
use serde::Deserialize;

/// The parts of the configuration that a GGUF file needs.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    model_type: String,
    hidden_size: u32,
    intermediate_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    num_key_value_heads: Option<u32>,
    head_dim: Option<u32>,
    max_position_embeddings: u32,
    rms_norm_eps: f32,
    pub vocab_size: u32,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    #[serde(default, rename = "tie_word_embeddings")]
    pub tied: bool,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Option<Ids>,
    #[serde(default)]
    use_sliding_window: bool,
}

/// How positions are turned; newer files keep all of it here.
#[derive(Debug, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
    factor: Option<f32>,
    original_max_position_embeddings: Option<u32>,
}

/// One id or several.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Ids {
    One(u32),
    Several(Vec<u32>),
}

impl Config {
    pub(super) fn parse(text: &[u8]) -> Result<Config, String> {
        let config: Config = serde_json::from_slice(text).map_err(|error| format!("config.json: {error}"))?;
        if !["qwen2", "qwen3"].contains(&config.model_type.as_str()) {
            return Err(format!(
                "config.json: the model type {:?} is not known; qwen2 and qwen3 are",
                config.model_type
            ));
        }
        let counts = [config.hidden_size, config.intermediate_size, config.num_hidden_layers];
        if counts.contains(&0) || config.num_attention_heads == 0 || config.kv_heads() == 0 {
            return Err("config.json: a dimension is 0".into());
        }
        let rope = config.rope().and_then(|rope| rope.rope_type.as_deref());
        if let Some(other) = rope.filter(|kind| !["default", "yarn"].contains(kind)) {
            return Err(format!("config.json: the rope type {other:?} is not known; default and yarn are"));
        }
        if config.use_sliding_window {
            return Err("config.json: sliding windows (use_sliding_window) are not known".into());
        }
        Ok(config)
    }

    fn rope(&self) -> Option<&Rope> {
        self.rope_parameters.as_ref().or(self.rope_scaling.as_ref())
    }

    fn kv_heads(&self) -> u32 {
        self.num_key_value_heads.unwrap_or(self.num_attention_heads)
    }

    fn head(&self) -> u32 {
        self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads)
    }

    /// Holds the tensors against the dimensions.
    pub(super) fn check(&self, tensors: &[TensorInfo]) -> Result<(), String> {
        let (hidden, ffn) = (u64::from(self.hidden_size), u64::from(self.intermediate_size));
        let head = u64::from(self.head());
        let (query, kv) = (head * u64::from(self.num_attention_heads), head * u64::from(self.kv_heads()));
        let tokens = u64::from(self.vocab_size);
        let mut due: Vec<(String, Vec<u64>)> = vec![
            ("token_embd.weight".into(), vec![hidden, tokens]),
            ("output_norm.weight".into(), vec![hidden]),
        ];
        if !self.tied {
            due.push(("output.weight".into(), vec![hidden, tokens]));
        }
        for layer_idx in 0..self.num_hidden_layers {
            let mut push =
                |name: &str, shape: &[u64]| due.push((format!("blk.{layer_idx}.{name}"), shape.to_vec()));
            push("attn_norm.weight", &[hidden]);
            push("ffn_norm.weight", &[hidden]);
            push("attn_q.weight", &[hidden, query]);
            push("attn_k.weight", &[hidden, kv]);
            push("attn_v.weight", &[hidden, kv]);
            push("attn_output.weight", &[query, hidden]);
            push("ffn_gate.weight", &[hidden, ffn]);
            push("ffn_up.weight", &[hidden, ffn]);
            push("ffn_down.weight", &[ffn, hidden]);
            match self.model_type.as_str() {
                "qwen3" => {
                    push("attn_q_norm.weight", &[head]);
                    push("attn_k_norm.weight", &[head]);
                }
                _ => {
                    push("attn_q.bias", &[query]);
                    push("attn_k.bias", &[kv]);
                    push("attn_v.bias", &[kv]);
                }
            }
        }
        for (name, shape) in &due {
            match tensors.iter().find(|tensor| tensor.name == *name) {
                None => return Err(format!("the tensor for {name} is missing")),
                Some(tensor) if tensor.shape != *shape => {
                    let (found, kind) = (&tensor.shape, "innermost dimension first");
                    return Err(format!(
                        "{name} has the shape {found:?}, config.json asks for {shape:?} ({kind})"
                    ));
                }
                Some(_) => {}
            }
        }
        match tensors.iter().find(|tensor| !due.iter().any(|(name, _)| *name == tensor.name)) {
            None => Ok(()),
            Some(tensor) => Err(format!("{} has no place in a model of this configuration", tensor.name)),
        }
    }

    /// The keys of a GGUF file, but for the tokenizer's and the file type.
    pub(super) fn entries(&self, name: &str) -> Vec<(String, Value)> {
        let arch = self.model_type.as_str();
        let rope = self.rope();
        let theta = self.rope_theta.or(rope.and_then(|rope| rope.rope_theta)).unwrap_or(10_000.0);
        let mut entries = vec![
            ("general.architecture".to_owned(), Value::from(arch)),
            ("general.type".to_owned(), "model".into()),
            ("general.name".to_owned(), name.into()),
        ];
        let mut push = |key: &str, value: Value| entries.push((format!("{arch}.{key}"), value));
        push("block_count", self.num_hidden_layers.into());
        push("context_length", self.max_position_embeddings.into());
        push("embedding_length", self.hidden_size.into());
        push("feed_forward_length", self.intermediate_size.into());
        push("attention.head_count", self.num_attention_heads.into());
        push("attention.head_count_kv", self.kv_heads().into());
        // Qwen3's heads need not be a share of the hidden size.
        if self.head_dim.is_some() {
            push("attention.key_length", self.head().into());
            push("attention.value_length", self.head().into());
        }
        push("rope.freq_base", theta.into());
        push("attention.layer_norm_rms_epsilon", self.rms_norm_eps.into());
        if let Some(Rope { rope_type: Some(kind), factor: Some(factor), .. }) = rope
            && kind == "yarn"
        {
            push("rope.scaling.type", "yarn".into());
            push("rope.scaling.factor", (*factor).into());
            let original = rope.and_then(|rope| rope.original_max_position_embeddings);
            push(
                "rope.scaling.original_context_length",
                original.unwrap_or(self.max_position_embeddings).into(),
            );
        }
        entries
    }
}
