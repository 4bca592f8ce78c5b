//! Small PEFT folders and bases, made on the spot.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use quern_gguf::tiny::{Arch, TinySpec};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use serde_json::{Value, json};

/// A folder in the making: its configuration and its tensors in f32.
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
    pub labels: Option<Value>,
    pub dtype: Dtype,
}

/// The width of the tiny base.
pub const HIDDEN: usize = 64;

impl Folder {
    /// An adapter of rank 4 for the queries and values of the tiny base's two layers.
    pub fn sound() -> Folder {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Qwen/Qwen2.5-Tiny",
            "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none",
            "use_rslora": false, "use_dora": false, "rank_pattern": {}, "alpha_pattern": {},
            "init_lora_weights": true, "modules_to_save": null,
        });
        let mut folder = Folder { config, tensors: BTreeMap::new(), labels: None, dtype: Dtype::F32 };
        for layer_idx in 0..2 {
            folder.pair(&format!("model.layers.{layer_idx}.self_attn.q_proj"), 4, HIDDEN, HIDDEN);
            folder.pair(&format!("model.layers.{layer_idx}.self_attn.v_proj"), 4, HIDDEN, HIDDEN / 2);
        }
        folder
    }

    /// The same with a head of three labels.
    pub fn classifier() -> Folder {
        let mut folder = Folder::sound();
        folder.config["task_type"] = "SEQ_CLS".into();
        folder.config["modules_to_save"] = json!(["classifier", "score"]);
        folder.add("base_model.model.score.weight", vec![3, HIDDEN]);
        folder.labels = Some(json!({"id2label": {"0": "no", "1": "yes", "2": "perhaps"}}));
        folder
    }

    /// Adds both matrices of a module.
    pub fn pair(&mut self, module: &str, rank: usize, input: usize, output: usize) {
        self.add(&format!("base_model.model.{module}.lora_A.weight"), vec![rank, input]);
        self.add(&format!("base_model.model.{module}.lora_B.weight"), vec![output, rank]);
    }

    /// Adds a tensor of numbers that differ from each other and from other tensors'.
    pub fn add(&mut self, name: &str, shape: Vec<usize>) {
        let seed = name.bytes().fold(7u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
        let values = numbers(seed, shape.iter().product());
        self.tensors.insert(name.into(), (shape, values));
    }

    /// The name of a tensor of layer 1's query, `A` or `B`.
    pub fn query(which: &str) -> String {
        format!("base_model.model.model.layers.1.self_attn.q_proj.lora_{which}.weight")
    }

    /// Writes the folder.
    pub fn write(&self, folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        fs::write(folder.join("adapter_model.safetensors"), self.bytes()).unwrap();
        if let Some(labels) = &self.labels {
            fs::write(folder.join("labels.json"), labels.to_string()).unwrap();
        }
        folder.to_owned()
    }

    /// The safetensors file.
    pub fn bytes(&self) -> Vec<u8> {
        safetensors_bytes(&self.tensors, self.dtype)
    }
}

/// A safetensors file of tensors in f32, stored as the type.
pub fn safetensors_bytes(tensors: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, dtype: Dtype) -> Vec<u8> {
    let data: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, (shape, values))| {
            let bytes = match dtype {
                Dtype::BF16 => values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
                Dtype::F64 => values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect(),
                _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            };
            (name.clone(), shape.clone(), bytes)
        })
        .collect();
    let views = data
        .iter()
        .map(|(name, shape, bytes)| (name.as_str(), TensorView::new(dtype, shape.clone(), bytes).unwrap()));
    serialize(views, None).unwrap()
}

/// Numbers between -0.5 and 0.5 that follow from a seed.
pub fn numbers(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    };
    (0..count).map(|_| next()).collect()
}

/// A tiny base of two layers whose heads are 16 wide.
pub fn base(folder: &Path) -> PathBuf {
    let path = folder.join("base.gguf");
    let (layers, hidden, heads, kv_heads, ffn) = (2, HIDDEN as u32, 4, 2, 96);
    let spec = TinySpec { layers, hidden, heads, kv_heads, ffn, ..TinySpec::new(Arch::Qwen2, 3) };
    quern_gguf::tiny::write(&path, &spec).unwrap();
    path
}

/// `scale * B * A` in f64: `[output, input]`, row-major.
pub fn product(a: &[f32], b: &[f32], rank: usize, scale: f64) -> Vec<f64> {
    let (input, output) = (a.len() / rank, b.len() / rank);
    let cell = |row: usize, column: usize| {
        let terms = (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * input + column]));
        scale * terms.sum::<f64>()
    };
    (0..output).flat_map(|row| (0..input).map(move |column| (row, column))).map(|(r, c)| cell(r, c)).collect()
}
