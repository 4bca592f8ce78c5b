//! What a converted adapter says and computes is what the PEFT folder said.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, product};
use quern_adapters::{Adapter, FileType, Format, Task, architecture_of, check_base, convert, open_source};
use quern_gguf::{Gguf, TensorType};
use safetensors::Dtype;
use serde_json::json;

/// Converts, reads back, and compares what each module adds to its base, by llama.cpp's rule for scales.
fn check(folder: &Folder, file_type: FileType, tolerance: f64) -> (Adapter, Adapter, Gguf) {
    let dir = tempfile::tempdir().unwrap();
    let peft = Adapter::open(&folder.write(&dir.path().join("mine"))).unwrap();
    let out = dir.path().join("mine.gguf");
    let done = convert(&peft, "qwen2", file_type, &out).unwrap();
    assert_eq!(done.num_modules, peft.modules.len());
    assert_eq!(done.size_bytes, fs::metadata(&out).unwrap().len());

    let (back, gguf) = (Adapter::open(&out).unwrap(), Gguf::open(&out).unwrap());
    assert_eq!((back.format, back.task), (Format::Gguf, peft.task));
    assert_eq!(back.head, peft.head);
    assert_eq!(back.base_name, peft.base_name);
    let alpha = f64::from(gguf.f32("adapter.lora.alpha").unwrap());
    for module in &peft.modules {
        let same = back.module(&module.tensor).unwrap();
        assert_eq!((same.rank, same.input, same.output), (module.rank, module.input, module.output));
        let rank = module.rank as usize;
        let wanted = product(&peft.a(module).unwrap(), &peft.b(module).unwrap(), rank, module.scale);
        let scale = alpha / module.rank as f64;
        let found = product(&back.a(same).unwrap(), &back.b(same).unwrap(), rank, scale);
        let largest = wanted.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        let worst = wanted.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= tolerance * largest, "{}: {worst} of {largest}", module.tensor);
    }
    (peft, back, gguf)
}

#[test]
fn a_plain_adapter_is_laid_out_as_llama_cpp_wants_it() {
    let (_, back, gguf) = check(&Folder::sound(), FileType::F32, 0.0);
    assert_eq!(back.task, Task::CausalLm);
    for (key, value) in [
        ("general.architecture", "qwen2"),
        ("general.type", "adapter"),
        ("adapter.type", "lora"),
        ("general.name", "mine"),
    ] {
        assert_eq!(gguf.str(key).unwrap(), value);
    }
    assert_eq!(gguf.f32("adapter.lora.alpha").unwrap(), 8.0);
    let tensor = |name: &str| gguf.require_tensor(name).unwrap();
    assert_eq!(tensor("blk.0.attn_v.weight.lora_a").shape, [64, 4]);
    assert_eq!(tensor("blk.0.attn_v.weight.lora_b").shape, [4, 32]);
    assert_eq!(tensor("blk.1.attn_q.weight.lora_b").kind, TensorType::F32);
    assert_eq!(gguf.tensors().len(), 8);
}

#[test]
fn rslora_and_patterns_become_factors() {
    let mut folder = Folder::sound();
    folder.config["use_rslora"] = true.into();
    let (peft, _, gguf) = check(&folder, FileType::F32, 0.0);
    // 8 / sqrt(4) is what 16 / 4 is.
    assert_eq!(peft.modules[0].scale, 4.0);
    assert_eq!(gguf.f32("adapter.lora.alpha").unwrap(), 16.0);

    // The first pattern that matches holds, and a layer's own rank has its own divisor.
    let mut folder = Folder::sound();
    folder.pair("model.layers.1.self_attn.q_proj", 3, 64, 64);
    folder.config["rank_pattern"] = json!({"layers.1.self_attn.q_proj": 3});
    folder.config["alpha_pattern"] = json!({r"layers\.0\..*q_proj": 5, "q_proj": 24});
    let (peft, _, _) = check(&folder, FileType::F32, 1e-6);
    let scale = |tensor: &str| peft.module(tensor).unwrap().scale;
    assert_eq!(scale("blk.0.attn_q.weight"), 5.0 / 4.0);
    assert_eq!(scale("blk.1.attn_q.weight"), 24.0 / 3.0);
    assert_eq!(scale("blk.0.attn_v.weight"), 2.0);
}

#[test]
fn heads_and_labels_are_kept() {
    let mut folder = Folder::classifier();
    folder.add("base_model.model.score.bias", vec![3]);
    folder.dtype = Dtype::BF16;
    let (_, back, _) = check(&folder, FileType::Bf16, 0.0);
    let head = back.head.unwrap();
    assert_eq!(head.labels, ["no", "yes", "perhaps"]);
    assert_eq!((head.hidden, head.weight.len(), head.bias.unwrap().len()), (64, 192, 3));
    // transformers' own names where nobody gave any.
    folder.labels = None;
    let (_, back, _) = check(&folder, FileType::F16, 0.002);
    assert_eq!(back.head.unwrap().labels, ["LABEL_0", "LABEL_1", "LABEL_2"]);
}

#[test]
fn what_fails_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::sound();
    folder.tensors.get_mut(&Folder::query("A")).unwrap().1[0] = 1e9;
    let peft = Adapter::open(&folder.write(&dir.path().join("a"))).unwrap();
    let out = dir.path().join("out.gguf");
    fs::write(&out, "what was there").unwrap();
    let told = convert(&peft, "qwen2", FileType::F16, &out).unwrap_err().to_string();
    assert!(told.contains("too large for F16"), "{told}");
    assert_eq!(fs::read(&out).unwrap(), b"what was there");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    assert!(
        convert(&peft, "qwen2", FileType::Q4_K_M, &out).unwrap_err().to_string().contains("F32, F16 or BF16")
    );
}

#[test]
fn the_architecture_comes_from_whoever_knows() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = Folder::sound();
    let open = |folder: &Folder| Adapter::open(&folder.write(&dir.path().join("a"))).unwrap();
    assert_eq!(architecture_of(&open(&folder), None).unwrap(), "qwen2");
    folder.config["base_model_name_or_path"] = "Qwen/Qwen3-0.6B".into();
    assert_eq!(architecture_of(&open(&folder), None).unwrap(), "qwen3");
    let base = Gguf::open(&common::base(dir.path())).unwrap();
    assert_eq!(architecture_of(&open(&folder), Some(&base)).unwrap(), "qwen2");
    folder.config["base_model_name_or_path"] = "/models/mine".into();
    assert!(architecture_of(&open(&folder), None).unwrap_err().to_string().contains("--base"));
}

/// The adapters that were trained with PEFT on the default model, if they are on this machine.
fn real(name: &str) -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/adapters");
    let folder = std::env::var_os("QUERN_TEST_ADAPTERS").map_or_else(beside, PathBuf::from).join(name);
    if !folder.is_dir() {
        eprintln!("SKIPPED: {name} is not on this machine; name its folder with QUERN_TEST_ADAPTERS");
        return None;
    }
    Some(folder)
}

#[test]
fn adapters_trained_with_peft_are_read_and_converted() {
    for (name, num_labels, num_modules, rank) in [
        ("banking-classifier", Some(23), 96, 16),
        ("home-classifier", Some(16), 96, 16),
        ("travel-generator", None, 48, 8),
    ] {
        let Some(path) = real(name) else { continue };
        let peft = Adapter::open(&path).unwrap();
        peft.check_values().unwrap();
        assert_eq!(peft.modules.len(), num_modules);
        assert!(peft.modules.iter().all(|module| (module.rank, module.scale) == (rank, 2.0)));
        assert_eq!(peft.head.as_ref().map(|head| head.labels.len()), num_labels);
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out.gguf");
        let arch = architecture_of(&peft, None).unwrap();
        convert(&peft, &arch, FileType::F32, &out).unwrap();
        let back = Adapter::open(&out).unwrap();
        assert_eq!(back.head, peft.head);
        for (ours, theirs) in back.modules.iter().zip(&peft.modules) {
            assert_eq!(back.a(ours).unwrap(), peft.a(theirs).unwrap());
            assert_eq!(back.b(ours).unwrap(), peft.b(theirs).unwrap());
        }
        if let Some(model) = std::env::var_os("QUERN_TEST_MODEL") {
            let base = open_source(Path::new(&model)).unwrap();
            assert_eq!(check_base(&back, "qwen2", base.tensors()), []);
        }
    }
}
