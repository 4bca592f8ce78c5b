//! Opens a PEFT folder: configuration, tensors and labels, held against each other.

use std::collections::BTreeSet;
use std::path::Path;

use crate::adapter::{Adapter, Format, Module, Pairs, Stored, Task, Weights, check_finite, matrix};
use crate::config::{Layers, PeftConfig, Targets};
use crate::error::Fault;
use crate::head::{Head, labels_in, read_text};
use crate::names::{PeftName, Place, peft_name};
use crate::safe_file::{Entry, SafeFile};

const WEIGHTS: &str = "adapter_model.safetensors";
const MAX_CONFIG_BYTES: u64 = 4 << 20;

pub(crate) fn open(folder: &Path) -> Result<Adapter, Fault> {
    let text = read_text(folder, "adapter_config.json", MAX_CONFIG_BYTES)?.ok_or(Fault::NoConfig)?;
    let config = PeftConfig::parse(&text)?;
    let task = task(&config)?;
    let path = folder.join(WEIGHTS);
    if !path.exists() {
        let pickle = folder.join("adapter_model.bin").exists();
        let hint = if pickle { ", only a pickle; save it with safe_serialization=True" } else { "" };
        return Err(Fault::NoWeights { hint });
    }
    let file = SafeFile::open(&path)?;
    let size_bytes = std::fs::metadata(&path)?.len();
    let sorted = sort(file.entries())?;
    let weights = Weights::Safe(file);

    // Patterns are matched against the module's own name, which the place gives back.
    let modules = sorted.pairs.modules(|place, found| {
        let (expected, alpha) = config.rank_and_alpha(&peft_module(place, &sorted.modules));
        match found == expected {
            true => Ok((alpha, config.scale(expected, alpha))),
            false => Err(Fault::WrongRank { module: place.gguf(), expected, found }),
        }
    })?;
    check_targets(&config, &sorted.modules, &modules)?;
    check_whole(&config, &sorted.whole)?;
    let head = match task {
        Task::SequenceClassification => {
            Some(head(folder, &weights, sorted.head.ok_or(Fault::NoHead)?, sorted.head_bias)?)
        }
        _ => None,
    };
    Ok(Adapter {
        path: folder.to_owned(),
        format: Format::Peft,
        task,
        architecture: None,
        base_name: config.base_model_name_or_path.clone(),
        rs_lora: config.use_rslora,
        on_every_layer: config.layers_to_transform.is_none()
            && matches!(config.target_modules, Some(Targets::Names(_))),
        modules,
        head,
        size_bytes,
        weights,
    })
}

fn task(config: &PeftConfig) -> Result<Task, Fault> {
    match config.task_type.as_deref() {
        Some("SEQ_CLS") => Ok(Task::SequenceClassification),
        Some("CAUSAL_LM") | None => Ok(Task::CausalLm),
        Some("FEATURE_EXTRACTION") => Ok(Task::FeatureExtraction),
        Some(other) => Err(Fault::Unsupported {
            what: format!("the task {other}"),
            hint: "; CAUSAL_LM, SEQ_CLS and FEATURE_EXTRACTION can",
        }),
    }
}

/// The tensors of a file by what they are.
#[derive(Default)]
struct Sorted {
    pairs: Pairs,
    /// The modules' names as PEFT has them.
    modules: BTreeSet<String>,
    head: Option<Entry>,
    head_bias: Option<Entry>,
    whole: Vec<String>,
}

fn sort(entries: &[Entry]) -> Result<Sorted, Fault> {
    let mut sorted = Sorted::default();
    for entry in entries {
        let tensor = entry.name.clone();
        let unsupported = |what: &str| Fault::Unsupported { what: what.into(), hint: "; merge it with PEFT" };
        let mut pair = |module: String, is_a: bool| {
            let place = Place::of_module(&module).ok_or(Fault::UnknownTarget { tensor: tensor.clone() })?;
            let stored = stored(entry, &place.gguf(), if is_a { "A" } else { "B" })?;
            sorted.modules.insert(module);
            sorted.pairs.add(place, is_a, stored)
        };
        match peft_name(&entry.name) {
            PeftName::A(module) => pair(module, true)?,
            PeftName::B(module) => pair(module, false)?,
            PeftName::Head => sorted.head = Some(entry.clone()),
            PeftName::HeadBias => sorted.head_bias = Some(entry.clone()),
            PeftName::Whole(module) => sorted.whole.push(module),
            PeftName::Magnitude => return Err(unsupported("DoRA")),
            PeftName::Bias => return Err(unsupported("trained biases")),
            PeftName::Embedding => return Err(unsupported("adapted embeddings")),
            PeftName::Unknown => return Err(Fault::UnknownTarget { tensor }),
        }
    }
    Ok(sorted)
}

fn stored(entry: &Entry, module: &str, which: &'static str) -> Result<Stored, Fault> {
    let (rows, cols) = matrix(module, which, &entry.shape)?;
    let bad_type = || Fault::BadType { tensor: entry.name.clone(), found: entry.kind_name.clone() };
    let kind = entry.kind.ok_or_else(bad_type)?;
    let (start, size_bytes) = (entry.start, entry.size_bytes);
    Ok(Stored { name: entry.name.clone(), kind, start, size_bytes, rows, cols })
}

/// The name under which the configuration knows a place.
fn peft_module(place: Place, modules: &BTreeSet<String>) -> String {
    let same = modules.iter().find(|module| Place::of_module(module) == Some(place));
    same.cloned().unwrap_or_default()
}

/// Every target has tensors in every layer, and every tensor has a target.
fn check_targets(config: &PeftConfig, names: &BTreeSet<String>, modules: &[Module]) -> Result<(), Fault> {
    let Some(Targets::Names(targets)) = &config.target_modules else { return Ok(()) };
    let belongs = |name: &str, target: &str| {
        name == target || name.strip_suffix(target).is_some_and(|rest| rest.ends_with('.'))
    };
    for name in names {
        if !targets.iter().any(|target| belongs(name, target)) {
            return Err(Fault::UnnamedTarget { tensor: name.clone() });
        }
    }
    let num_layers = modules.iter().filter_map(|module| module.layer_idx).max().map_or(0, |last| last + 1);
    let layers: Vec<u32> = match &config.layers_to_transform {
        None => (0..num_layers).collect(),
        Some(Layers::One(layer_idx)) => vec![*layer_idx],
        Some(Layers::Some(layers)) => layers.clone(),
    };
    for target in targets {
        let found: Vec<Place> = names
            .iter()
            .filter(|name| belongs(name, target))
            .filter_map(|name| Place::of_module(name))
            .collect();
        if found.is_empty() {
            return Err(Fault::EmptyTarget { target: target.clone() });
        }
        // A name with its layer in it, or the head's, stands for one module only.
        if target.contains("layers.") || found.iter().all(|place| place.layer_idx.is_none()) {
            continue;
        }
        let has = |layer_idx| found.iter().any(|place| place.layer_idx == Some(layer_idx));
        if let Some(layer_idx) = layers.iter().copied().find(|layer_idx| !has(*layer_idx)) {
            return Err(Fault::MissingTarget { target: target.clone(), layer_idx });
        }
    }
    Ok(())
}

fn check_whole(config: &PeftConfig, whole: &[String]) -> Result<(), Fault> {
    // A classification adapter lists its head here; that is read on its own.
    let listed = config
        .modules_to_save
        .iter()
        .flatten()
        .find(|name| !["score", "classifier"].contains(&name.as_str()));
    match whole.first().or(listed) {
        None => Ok(()),
        Some(module) => Err(Fault::Unsupported {
            what: format!("a whole copy of {module} (modules_to_save)"),
            hint: "; merge it with PEFT and serve the merged model",
        }),
    }
}

fn head(folder: &Path, weights: &Weights, weight: Entry, bias: Option<Entry>) -> Result<Head, Fault> {
    let stored = stored(&weight, "score", "weight")?;
    let values = weights.values(&stored)?;
    check_finite(&weight.name, &values)?;
    let num_rows = stored.rows as usize;
    let bias = match bias {
        None => None,
        Some(entry) => {
            let column = Entry { shape: vec![entry.shape.iter().product(), 1], ..entry };
            Some(weights.values(&self::stored(&column, "score", "bias")?)?)
        }
    };
    let (labels, file) = match labels_in(folder)? {
        Some(found) => found,
        // What transformers calls labels that nobody named.
        None => ((0..num_rows).map(|idx| format!("LABEL_{idx}")).collect(), "the head"),
    };
    if labels.len() != num_rows {
        return Err(Fault::WrongLabels { file, num_labels: labels.len(), num_rows });
    }
    Head::new(values, bias, labels, file)
}
