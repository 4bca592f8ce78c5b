//! Opens a GGUF LoRA, as llama.cpp's converter and our own write it.

use std::path::Path;

use quern_gguf::{Gguf, Problem, TensorType};

use crate::adapter::{Adapter, Format, Pairs, Stored, Task, Weights, matrix};
use crate::error::Fault;
use crate::head::Head;
use crate::names::Place;

/// Where the task stands; files of llama.cpp's converter do not have it.
pub(crate) const TASK: &str = "quern.adapter.task";
/// What the adapter was trained on.
pub(crate) const BASE: &str = "quern.adapter.base";
pub(crate) const ALPHA: &str = "adapter.lora.alpha";

pub(crate) fn open(path: &Path) -> Result<Adapter, Fault> {
    let gguf = Gguf::open(path)?;
    expect(&gguf, "general.type", "adapter")?;
    expect(&gguf, "adapter.type", "lora")?;
    let architecture = gguf.architecture()?.to_owned();
    let alpha = match gguf.get(ALPHA) {
        None => 0.0,
        Some(_) => f64::from(gguf.f32(ALPHA)?),
    };
    if !alpha.is_finite() || alpha < 0.0 {
        return Err(Fault::BadNumber { what: "alpha (adapter.lora.alpha)", found: alpha.to_string() });
    }
    if gguf.get("adapter.alora.invocation_tokens").is_some() {
        return Err(Fault::Unsupported { what: "activation by tokens (aLoRA)".into(), hint: "" });
    }
    let mut pairs = Pairs::default();
    for tensor in gguf.tensors() {
        let unknown = || Fault::UnknownTarget { tensor: tensor.name.clone() };
        let (base, is_a) = match (tensor.name.strip_suffix(".lora_a"), tensor.name.strip_suffix(".lora_b")) {
            (Some(base), _) => (base, true),
            (_, Some(base)) => (base, false),
            _ if tensor.name.ends_with("_norm.weight") => {
                return Err(Fault::Unsupported { what: "trained norms".into(), hint: "" });
            }
            _ => return Err(unknown()),
        };
        let place = Place::of_gguf(base).ok_or_else(unknown)?;
        if !matches!(tensor.kind, TensorType::F32 | TensorType::F16 | TensorType::BF16 | TensorType::Q8_0) {
            return Err(Fault::BadType { tensor: tensor.name.clone(), found: tensor.kind.to_string() });
        }
        let shape: Vec<u64> = tensor.shape.iter().rev().copied().collect();
        // llama.cpp drops trailing dimensions of 1, so that a row of rank 1 may stand as a vector.
        let shape = if shape.len() == 1 { vec![1, shape[0]] } else { shape };
        let (rows, cols) = matrix(base, if is_a { "A" } else { "B" }, &shape)?;
        let (name, kind, size_bytes) = (tensor.name.clone(), tensor.kind, tensor.size_bytes);
        pairs.add(place, is_a, Stored { name, kind, start: 0, size_bytes, rows, cols })?;
    }
    let scale = |rank: u64| if alpha == 0.0 { 1.0 } else { alpha / rank as f64 };
    let modules = pairs.modules(|_, rank| Ok((alpha, scale(rank))))?;
    let head = Head::from_metadata(gguf.metadata())?;
    let task = match (gguf.get(TASK).map(|_| gguf.str(TASK)).transpose()?, &head) {
        (Some("SEQ_CLS"), None) => return Err(Fault::NoHead),
        (_, Some(_)) => Task::SequenceClassification,
        (Some("FEATURE_EXTRACTION"), _) => Task::FeatureExtraction,
        _ => Task::CausalLm,
    };
    let base_name = gguf.get(BASE).and_then(|_| gguf.str(BASE).ok()).map(str::to_owned);
    let size_bytes = std::fs::metadata(path)?.len();
    Ok(Adapter {
        path: path.to_owned(),
        format: Format::Gguf,
        task,
        architecture: Some(architecture),
        base_name,
        rs_lora: false,
        on_every_layer: false,
        modules,
        head,
        size_bytes,
        weights: Weights::Gguf(gguf),
    })
}

fn expect(gguf: &Gguf, key: &'static str, expected: &'static str) -> Result<(), Fault> {
    let found = match gguf.str(key) {
        Ok(found) => found.to_owned(),
        Err(error) if matches!(error.problem, Problem::MissingKey { .. }) => String::new(),
        Err(error) => return Err(error.into()),
    };
    if found == expected { Ok(()) } else { Err(Fault::NotALora { key, found, expected }) }
}
