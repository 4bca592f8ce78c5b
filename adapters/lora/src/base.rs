//! Whether a base can serve an adapter.

use std::collections::BTreeMap;

use quern_gguf::TensorInfo;
use thiserror::Error;

use crate::adapter::Adapter;
use crate::names::layer_of;

/// One reason why a base cannot serve an adapter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Mismatch {
    /// The adapter was made for another architecture.
    #[error("the adapter is for {adapter}, the base is {base}")]
    Architecture {
        /// The adapter's.
        adapter: String,
        /// The base's.
        base: String,
    },
    /// The architecture is one that adapters are not served on.
    #[error("the base is {base}; adapters are served on qwen2 and qwen3")]
    UnknownArchitecture {
        /// The base's.
        base: String,
    },
    /// The base lacks tensors that the adapter changes.
    #[error("the base has no {tensor}{}", more(*num_more))]
    NoTensor {
        /// The first of them.
        tensor: String,
        /// How many more there are.
        num_more: usize,
    },
    /// The base's tensors have another shape.
    #[error(
        "{target} maps {} numbers to {} in the adapter, {} to {} in the base",
        adapter.0, adapter.1, base.0, base.1
    )]
    Shape {
        /// What PEFT calls the module.
        target: &'static str,
        /// Input and output of the adapter's module.
        adapter: (u64, u64),
        /// Input and output of the base's.
        base: (u64, u64),
    },
    /// The adapter was trained on every layer of a base with another number of them.
    #[error("the adapter was trained on all of {adapter} layers, the base has {base}")]
    Layers {
        /// How many layers the adapter has.
        adapter: u32,
        /// How many the base has.
        base: u32,
    },
    /// The head takes a hidden state of another length.
    #[error("the head takes {head} numbers, the base's hidden state has {base}")]
    Head {
        /// The length of the head's rows.
        head: u64,
        /// The base's width.
        base: u64,
    },
}

fn more(num_more: usize) -> String {
    if num_more == 0 {
        String::new()
    } else {
        format!(" and {num_more} more tensors that the adapter changes")
    }
}

/// All reasons why a base of this architecture and with these tensors, in GGUF's names and shapes, cannot
/// serve the adapter; none when it can.
pub fn check_base(adapter: &Adapter, architecture: &str, tensors: &[TensorInfo]) -> Vec<Mismatch> {
    let mut found = Vec::new();
    let base = architecture.to_owned();
    if !["qwen2", "qwen3"].contains(&architecture) {
        found.push(Mismatch::UnknownArchitecture { base });
    } else if let Some(other) = adapter.architecture.as_ref().filter(|name| *name != architecture) {
        found.push(Mismatch::Architecture { adapter: other.clone(), base });
    }

    let by_name: BTreeMap<&str, &TensorInfo> =
        tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let mut missing: Vec<&str> = Vec::new();
    for module in &adapter.modules {
        let Some(tensor) = by_name.get(module.tensor.as_str()) else {
            missing.push(&module.tensor);
            continue;
        };
        let rows = tensor.shape[1..].iter().product();
        let (ours, base) = ((module.input, module.output), (tensor.shape[0], rows));
        let mismatch = Mismatch::Shape { target: module.target, adapter: ours, base };
        if ours != base && !found.contains(&mismatch) {
            found.push(mismatch);
        }
    }
    if let Some(first) = missing.first() {
        found.push(Mismatch::NoTensor { tensor: (*first).to_owned(), num_more: missing.len() - 1 });
    }
    let layers = |last: Option<u32>| last.map_or(0, |last| last + 1);
    let ours = layers(adapter.modules.iter().filter_map(|module| module.layer_idx).max());
    let theirs = layers(tensors.iter().filter_map(|tensor| layer_of(&tensor.name)).max());
    if adapter.on_every_layer && ours != theirs {
        found.push(Mismatch::Layers { adapter: ours, base: theirs });
    }
    let width = by_name.get("token_embd.weight").map(|tensor| tensor.shape[0]);
    if let (Some(head), Some(width)) = (&adapter.head, width)
        && head.hidden != width
    {
        found.push(Mismatch::Head { head: head.hidden, base: width });
    }
    found
}
