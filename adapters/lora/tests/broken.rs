//! Each way in which an adapter can be broken, and the words that the user then reads.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::Folder;
use quern_adapters::{Adapter, check_base, open_source};
use safetensors::Dtype;
use serde_json::json;

/// Opens a folder and reads every number; the error as text.
fn fault(folder: &Folder) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = folder.write(&dir.path().join("adapter"));
    let opened = Adapter::open(&path).and_then(|adapter| adapter.check_values().map(|()| adapter));
    opened.expect_err("the adapter is broken").to_string()
}

#[track_caller]
fn check(break_it: impl FnOnce(&mut Folder), words: &str) {
    let mut folder = Folder::sound();
    break_it(&mut folder);
    let told = fault(&folder);
    assert!(told.contains(words), "{words:?} is not in {told:?}");
}

#[test]
fn the_sound_one_is_sound() {
    let dir = tempfile::tempdir().unwrap();
    for (name, folder) in [("plain", Folder::sound()), ("classifier", Folder::classifier())] {
        let adapter = Adapter::open(&folder.write(&dir.path().join(name))).unwrap();
        adapter.check_values().unwrap();
        assert_eq!(adapter.modules.len(), 4);
        let base = open_source(&common::base(dir.path())).unwrap();
        assert_eq!(check_base(&adapter, "qwen2", base.tensors()), []);
    }
}

#[test]
fn configurations_that_cannot_be_served_say_why() {
    let set = |key: &'static str, value: serde_json::Value| move |f: &mut Folder| f.config[key] = value;
    check(set("use_dora", true.into()), "DoRA");
    check(set("bias", "lora_only".into()), "trained biases");
    check(set("lora_bias", true.into()), "lora_bias");
    check(set("fan_in_fan_out", true.into()), "fan_in_fan_out");
    check(set("peft_type", "IA3".into()), "IA3");
    check(set("task_type", "TOKEN_CLS".into()), "TOKEN_CLS");
    check(set("init_lora_weights", "pissa".into()), "pissa");
    check(set("modules_to_save", json!(["embed_tokens"])), "embed_tokens");
    check(set("r", 0.into()), "rank (r) is 0");
    check(set("lora_alpha", (-1).into()), "alpha (lora_alpha) is -1");
    check(set("rank_pattern", json!({"q_proj": "x"})), "rank_pattern");
    check(set("alpha_pattern", json!({"(": 1})), "alpha_pattern");
    check(set("r", "four".into()), "adapter_config.json");
    check(set("layer_replication", json!([[0, 2]])), "replicated layers");
}

#[test]
fn configuration_and_tensors_must_agree() {
    check(|f| f.config["r"] = 8.into(), "blk.0.attn_q.weight has rank 4, adapter_config.json says 8");
    check(|f| f.config["rank_pattern"] = json!({"v_proj": 2}), "blk.0.attn_v.weight has rank 4");
    check(|f| f.config["target_modules"] = json!(["q_proj"]), "belongs to no target");
    check(|f| f.config["target_modules"] = json!(["q_proj", "v_proj", "k_proj"]), "no tensor belongs to it");
    check(|f| f.config["layers_to_transform"] = json!([0, 1, 2]), "layer 2 has no tensors");
    check(
        |f| drop(f.tensors.remove(&Folder::query("B"))),
        "blk.1.attn_q.weight has its A matrix but not its B",
    );
    check(
        |f| {
            f.tensors.remove(&Folder::query("A"));
            f.tensors.remove(&Folder::query("B"));
        },
        "\"q_proj\", but layer 1 has no tensors",
    );
    check(|f| f.tensors.clear(), "no LoRA tensors");
    check(|f| f.add(&Folder::query("B"), vec![64, 3]), "not [rows, rank]");
    check(|f| f.add(&Folder::query("A"), vec![4, 8, 8]), "not a matrix");
    check(|f| f.add(&Folder::query("A"), vec![0, 64]), "empty");
    check(|f| f.pair("model.layers.0.mlp.router", 4, 64, 8), "not a known target");
    check(|f| f.add("base_model.model.model.embed_tokens.lora_embedding_A", vec![4, 9]), "embeddings");
    check(
        |f| f.add("base_model.model.model.embed_tokens.weight", vec![9, 64]),
        "a whole copy of model.embed_tokens",
    );
    let magnitude = Folder::query("A").replace("lora_A.weight", "lora_magnitude_vector");
    check(|f| f.add(&magnitude, vec![64]), "DoRA");
    check(|f| f.dtype = Dtype::F64, "F64");
}

#[test]
fn numbers_must_be_numbers() {
    for (number, words) in [(f32::NAN, "a NaN at element 5"), (f32::NEG_INFINITY, "an infinity at element 5")]
    {
        check(|f| f.tensors.get_mut(&Folder::query("B")).unwrap().1[5] = number, words);
    }
}

#[test]
fn heads_and_labels_must_agree() {
    let check = |break_it: &dyn Fn(&mut Folder), words: &str| {
        let mut folder = Folder::classifier();
        break_it(&mut folder);
        let told = fault(&folder);
        assert!(told.contains(words), "{words:?} is not in {told:?}");
    };
    check(&|f| drop(f.tensors.remove("base_model.model.score.weight")), "no score tensor");
    check(
        &|f| f.labels = Some(json!({"id2label": {"0": "no", "1": "yes"}})),
        "names 2 labels, the head has 3",
    );
    check(&|f| f.labels = Some(json!({"id2label": {"0": "no", "1": "no", "2": "x"}})), "occurs twice");
    check(&|f| f.labels = Some(json!({"id2label": {"0": "no", "1": "yes", "7": "x"}})), "no number below 3");
    check(&|f| f.labels = Some(json!({"labels": []})), "id2label");
    check(&|f| f.add("base_model.model.score.bias", vec![2]), "bias");
    check(
        &|f| f.tensors.get_mut("base_model.model.score.weight").unwrap().1[0] = f32::NAN,
        "score.weight\" holds a NaN",
    );
}

#[test]
fn folders_and_files_that_are_none() {
    let dir = tempfile::tempdir().unwrap();
    let told = |path: &std::path::Path| Adapter::open(path).unwrap_err().to_string();
    let path = Folder::sound().write(&dir.path().join("a"));
    fs::remove_file(path.join("adapter_model.safetensors")).unwrap();
    assert!(told(&path).contains("no adapter_model.safetensors"));
    fs::write(path.join("adapter_model.bin"), "x").unwrap();
    assert!(told(&path).contains("safe_serialization"));
    fs::remove_file(path.join("adapter_config.json")).unwrap();
    assert!(told(&path).contains("no adapter_config.json"));
    assert!(told(&dir.path().join("nowhere")).contains("No such file"));
    let model = common::base(dir.path());
    assert!(told(&model).contains("no LoRA adapter: general.type is \"model\""));
    fs::write(dir.path().join("x.gguf"), "PK\x03\x04").unwrap();
    assert!(told(&dir.path().join("x.gguf")).contains("not a GGUF file"));
}

#[test]
fn unsound_safetensors_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = Folder::sound().write(&dir.path().join("a"));
    let file = path.join("adapter_model.safetensors");
    let sound = fs::read(&file).unwrap();
    let told = |bytes: &[u8]| {
        fs::write(&file, bytes).unwrap();
        Adapter::open(&path).unwrap_err().to_string()
    };
    let header = |json: &str, data: usize| {
        [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &vec![0; data]].concat()
    };
    assert!(told(&sound[..sound.len() - 1]).contains("its tensors need"));
    assert!(told(&[&sound[..], &[0]].concat()).contains("its tensors need"));
    assert!(told(&sound[..40]).contains("its header needs"));
    assert!(told(b"abc").contains("its header needs 8"));
    assert!(told(&u64::MAX.to_le_bytes()).contains("the limit is"));
    assert!(told(&header("{", 0)).contains("unsound"));
    let overlapping = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
        "b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    assert!(told(&header(overlapping, 12)).contains("invalid offset"));
    let out_of_range = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
    assert!(told(&header(out_of_range, 4)).contains("its tensors need"));
    let wrong_size = r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#;
    assert!(told(&header(wrong_size, 8)).contains("unsound"));
    let huge = r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#;
    assert!(told(&header(huge, 8)).contains("unsound"));
}

#[test]
fn other_bases_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let base = open_source(&common::base(dir.path())).unwrap();
    let told = |folder: &Folder, arch: &str| {
        let adapter = Adapter::open(&folder.write(&dir.path().join("a"))).unwrap();
        check_base(&adapter, arch, base.tensors())
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join("; ")
    };
    assert!(told(&Folder::sound(), "llama").contains("served on qwen2 and qwen3"));

    let mut wide = Folder::classifier();
    for layer_idx in 0..2 {
        wide.pair(&format!("model.layers.{layer_idx}.self_attn.q_proj"), 4, 128, 128);
    }
    wide.add("base_model.model.score.weight", vec![3, 128]);
    let reasons = told(&wide, "qwen2");
    assert!(
        reasons.contains("q_proj maps 128 numbers to 128 in the adapter, 64 to 64 in the base"),
        "{reasons}"
    );
    assert!(reasons.contains("the head takes 128 numbers"), "{reasons}");
    assert_eq!(reasons.matches("q_proj").count(), 1, "{reasons}");

    let mut deep = Folder::sound();
    deep.pair("model.layers.2.self_attn.q_proj", 4, 64, 64);
    deep.pair("model.layers.2.self_attn.v_proj", 4, 64, 32);
    let reasons = told(&deep, "qwen2");
    assert!(reasons.contains("the base has no blk.2.attn_q.weight and 1 more tensors"), "{reasons}");
    assert!(reasons.contains("all of 3 layers, the base has 2"), "{reasons}");

    let mut head = Folder::sound();
    head.config["target_modules"] = json!(["q_proj", "v_proj", "lm_head"]);
    head.pair("lm_head", 4, 64, 77);
    let reasons = told(&head, "qwen2");
    assert!(reasons.contains("lm_head maps 64 numbers to 77"), "{reasons}");
}

#[test]
fn a_file_that_is_cut_or_replaced_while_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = Folder::sound().write(&dir.path().join("a"));
    let file = path.join("adapter_model.safetensors");
    let adapter = Adapter::open(&path).unwrap();
    let before = adapter.a(&adapter.modules[0]).unwrap();
    // Replaced under its name: the open file stays what it was.
    let bytes = fs::read(&file).unwrap();
    fs::write(dir.path().join("other"), vec![0; bytes.len()]).unwrap();
    fs::rename(dir.path().join("other"), &file).unwrap();
    assert_eq!(adapter.a(&adapter.modules[0]).unwrap(), before);

    fs::write(&file, &bytes).unwrap();
    let adapter = Adapter::open(&path).unwrap();
    fs::OpenOptions::new().write(true).open(&file).unwrap().set_len(200).unwrap();
    let told = adapter.check_values().unwrap_err().to_string();
    assert!(told.contains("fill whole buffer"), "{told}");
    // Written over in place: the numbers are checked when they are read.
    fs::write(&file, &bytes).unwrap();
    let adapter = Adapter::open(&path).unwrap();
    let end = bytes.len() as u64 - 4;
    fs::OpenOptions::new().write(true).open(&file).unwrap().write_at(&f32::NAN.to_le_bytes(), end).unwrap();
    assert!(adapter.check_values().unwrap_err().to_string().contains("a NaN"));
}
