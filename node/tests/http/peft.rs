//! PEFT folders for the tiny base of tests, made on the spot, sound or broken in one way.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

/// The tiny base: its layers, the width of its residual stream, and of its values.
const LAYERS: usize = 2;
const HIDDEN: usize = 256;
const VALUES: usize = 128;

/// A folder in the making.
pub struct Peft {
    pub config: Value,
    pub labels: Option<Value>,
    /// The residual stream's width that the tensors are for.
    pub hidden: usize,
    /// Rows of a head; 0 is none.
    pub head_rows: usize,
    rank: usize,
    seed: u32,
}

impl Peft {
    /// An adapter for queries and values whose numbers follow from the seed.
    pub fn new(seed: u32) -> Peft {
        let config = json!({
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "Qwen/Qwen2-Tiny",
            "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none",
        });
        Peft { config, labels: None, hidden: HIDDEN, head_rows: 0, rank: 4, seed }
    }

    /// The same with a head of two labels.
    pub fn classifier(seed: u32) -> Peft {
        let mut folder = Peft { head_rows: 2, ..Peft::new(seed) };
        folder.config["task_type"] = "SEQ_CLS".into();
        folder.labels = Some(json!({"id2label": {"0": "no", "1": "yes"}}));
        folder
    }

    /// Writes all files and gives the folder back.
    pub fn write(&self, folder: &Path) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("adapter_config.json"), self.config.to_string()).unwrap();
        // Whole files only, as whoever replaces one in a watched folder does it.
        fs::write(folder.join("partial"), self.weights()).unwrap();
        fs::rename(folder.join("partial"), weights_of(folder)).unwrap();
        if let Some(labels) = &self.labels {
            fs::write(folder.join("labels.json"), labels.to_string()).unwrap();
        }
        folder.to_owned()
    }

    /// A safetensors file.
    fn weights(&self) -> Vec<u8> {
        let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
        let mut add = |name: String, shape: [usize; 2]| {
            let start = data.len();
            let numbers = numbers(self.seed.wrapping_add(start as u32), shape[0] * shape[1]);
            data.extend(numbers.flat_map(f32::to_le_bytes));
            let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [start, data.len()]});
            header.insert(name, entry);
        };
        for layer in 0..LAYERS {
            for (target, rows) in [("q_proj", self.hidden), ("v_proj", VALUES)] {
                let module = format!("base_model.model.model.layers.{layer}.self_attn.{target}");
                add(format!("{module}.lora_A.weight"), [self.rank, self.hidden]);
                add(format!("{module}.lora_B.weight"), [rows, self.rank]);
            }
        }
        if self.head_rows > 0 {
            add("base_model.model.score.weight".to_owned(), [self.head_rows, self.hidden]);
        }
        let header = Value::Object(header).to_string();
        let len = (header.len() as u64).to_le_bytes();
        [&len[..], header.as_bytes(), &data].concat()
    }
}

/// The file that holds a folder's numbers.
pub fn weights_of(folder: &Path) -> PathBuf {
    folder.join("adapter_model.safetensors")
}

fn numbers(seed: u32, count: usize) -> impl Iterator<Item = f32> {
    let mut state = seed | 1;
    (0..count).map(move |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / 16_777_216.0 - 0.5
    })
}
