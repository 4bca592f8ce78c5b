//! GGUF LoRAs of strangers: what is wrong with them is said, and damage does no worse than a typed error.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::fs;
use std::path::Path;

use common::Folder;
use proptest::collection::vec;
use proptest::prelude::*;
use quern_adapters::{Adapter, FileType, Task, convert};
use quern_gguf::{Array, GgufWriter, TensorType, Value};

/// Metadata and tensors of a LoRA in the making; all numbers are 1.
struct Lora {
    entries: Vec<(&'static str, Value)>,
    tensors: Vec<(&'static str, Vec<u64>, TensorType)>,
}

impl Lora {
    fn sound() -> Lora {
        Lora {
            entries: vec![
                ("general.architecture", "qwen2".into()),
                ("general.type", "adapter".into()),
                ("adapter.type", "lora".into()),
                ("adapter.lora.alpha", 8f32.into()),
            ],
            tensors: vec![
                ("blk.0.attn_q.weight.lora_a", vec![64, 4], TensorType::F32),
                ("blk.0.attn_q.weight.lora_b", vec![4, 64], TensorType::F32),
            ],
        }
    }

    fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.entries.retain(|(name, _)| *name != key);
        self.entries.push((key, value.into()));
    }

    fn write(&self, path: &Path) {
        let mut writer = GgufWriter::new();
        for (key, value) in &self.entries {
            writer.set(key, value.clone()).unwrap();
        }
        for (name, shape, kind) in &self.tensors {
            writer.tensor(name, shape, *kind).unwrap();
        }
        let mut stream = writer.create(path).unwrap();
        for (name, shape, kind) in &self.tensors {
            let size_bytes = kind.size_bytes(shape).unwrap() as usize;
            let ones: Vec<u8> = 1f32.to_le_bytes().into_iter().cycle().take(size_bytes).collect();
            stream.write(name, |out| out.write_all(&ones)).unwrap();
        }
        stream.finish().unwrap();
    }
}

fn open(change: impl FnOnce(&mut Lora)) -> Result<Adapter, String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.gguf");
    let mut lora = Lora::sound();
    change(&mut lora);
    lora.write(&path);
    Adapter::open(&path).map_err(|error| error.to_string())
}

#[track_caller]
fn check(change: impl FnOnce(&mut Lora), words: &str) {
    let told = open(change).expect_err("the adapter is broken");
    assert!(told.contains(words), "{words:?} is not in {told:?}");
}

#[test]
fn files_of_llama_cpp_s_converter_are_read() {
    let adapter = open(|_| {}).unwrap();
    assert_eq!((adapter.task, adapter.modules.len(), adapter.modules[0].scale), (Task::CausalLm, 1, 2.0));
    assert_eq!(adapter.architecture.as_deref(), Some("qwen2"));
    // Without an alpha the scale is 1.
    let adapter = open(|lora| drop(lora.entries.pop())).unwrap();
    assert_eq!(adapter.modules[0].scale, 1.0);
}

#[test]
fn what_is_wrong_is_said() {
    check(|l| l.set("general.type", "model"), "general.type is \"model\", not \"adapter\"");
    check(|l| l.set("adapter.type", "ia3"), "adapter.type is \"ia3\"");
    check(|l| l.set("adapter.lora.alpha", f32::NAN), "alpha (adapter.lora.alpha) is NaN");
    check(|l| l.set("adapter.lora.alpha", "8"), "adapter.lora.alpha");
    check(|l| l.tensors.truncate(1), "has its A matrix but not its B");
    check(|l| l.tensors[1].1 = vec![3, 64], "not [rows, rank]");
    check(|l| l.tensors[0].1 = vec![64, 4, 2], "not a matrix");
    check(|l| l.tensors[0].0 = "blk.0.attn_q.weight", "not a known target");
    check(|l| l.tensors[0].0 = "blk.0.ffn_gate_inp.weight.lora_a", "not a known target");
    check(|l| l.tensors[0].0 = "blk.0.attn_norm.weight", "trained norms");
    check(|l| l.tensors[0].2 = TensorType::I32, "stored as I32");
    check(|l| l.tensors.clear(), "no LoRA tensors");
    check(|l| l.set("adapter.alora.invocation_tokens", vec![1, 2]), "aLoRA");
    check(|l| l.set("quern.adapter.task", "SEQ_CLS"), "no score tensor");
    let weights = |count: usize| Value::Array(Array::F32(vec![1.0; count]));
    let labels = |labels: &[&str]| Value::Array(Array::Strings(labels.iter().collect()));
    check(|l| l.set("quern.classifier.weight", weights(6)), "quern.classifier.labels");
    check(
        |l| {
            l.set("quern.classifier.weight", weights(7));
            l.set("quern.classifier.labels", labels(&["a", "b"]));
        },
        "7 weights cannot be shared by 2 labels",
    );
    check(
        |l| {
            l.set("quern.classifier.weight", weights(8));
            l.set("quern.classifier.labels", labels(&["a", "a"]));
        },
        "occurs twice",
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_give_an_adapter_or_an_error(
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let peft = Adapter::open(&Folder::classifier().write(&dir.path().join("a"))).unwrap();
        let path = dir.path().join("a.gguf");
        convert(&peft, "qwen2", FileType::F16, &path).unwrap();
        let mut bytes = fs::read(&path).unwrap();
        // The header, and a little of the data.
        let reach = bytes.len().min(3000);
        for (place, byte) in edits {
            bytes[place.index(reach)] = byte;
        }
        fs::write(&path, bytes).unwrap();
        match Adapter::open(&path).and_then(|adapter| adapter.check_values().map(|()| adapter)) {
            Ok(adapter) => prop_assert!(adapter.modules.iter().all(|module| module.scale.is_finite())),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
