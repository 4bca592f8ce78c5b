//! A folder of Hugging Face's becomes the GGUF model that it describes; importance matrices are read.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Folder, numbers, safetensors_bytes};
use quern_adapters::{
    Adapter, FileType, Importance, Measured, Merge, Part, Plain, Types, Unchanged, open_source, rewrite,
};
use quern_gguf::{Array, Gguf, GgufWriter, TensorType, Value};
use safetensors::Dtype;
use serde_json::json;

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// A model of two layers that the tiny adapters fit.
struct Model {
    config: serde_json::Value,
    tensors: Tensors,
    tokenizer: serde_json::Value,
}

impl Model {
    fn new(model_type: &str, tied: bool) -> Model {
        let config = json!({
            "model_type": model_type, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 12,
            "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
            "tie_word_embeddings": tied, "bos_token_id": 8, "eos_token_id": [9, 8], "torch_dtype": "bfloat16",
        });
        let mut model = Model { config, tensors: Tensors::new(), tokenizer: tokenizer() };
        model.add("model.embed_tokens.weight", &[12, 64]);
        model.add("model.norm.weight", &[64]);
        if !tied {
            model.add("lm_head.weight", &[12, 64]);
        }
        for layer_idx in 0..2 {
            let mut add =
                |name: &str, shape: &[usize]| model.add(&format!("model.layers.{layer_idx}.{name}"), shape);
            add("input_layernorm.weight", &[64]);
            add("post_attention_layernorm.weight", &[64]);
            add("self_attn.q_proj.weight", &[64, 64]);
            add("self_attn.k_proj.weight", &[32, 64]);
            add("self_attn.v_proj.weight", &[32, 64]);
            add("self_attn.o_proj.weight", &[64, 64]);
            add("mlp.gate_proj.weight", &[96, 64]);
            add("mlp.up_proj.weight", &[96, 64]);
            add("mlp.down_proj.weight", &[64, 96]);
            if model_type == "qwen3" {
                add("self_attn.q_norm.weight", &[16]);
                add("self_attn.k_norm.weight", &[16]);
            } else {
                add("self_attn.q_proj.bias", &[64]);
                add("self_attn.k_proj.bias", &[32]);
                add("self_attn.v_proj.bias", &[32]);
            }
        }
        model
    }

    fn add(&mut self, name: &str, shape: &[usize]) {
        let seed = name.bytes().fold(5u32, |sum, byte| sum.wrapping_mul(33).wrapping_add(byte.into()));
        self.tensors.insert(name.into(), (shape.to_vec(), numbers(seed, shape.iter().product())));
    }

    /// Writes the folder in as many files as asked for.
    fn write(&self, folder: &Path, num_files: usize) -> PathBuf {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("config.json"), self.config.to_string()).unwrap();
        fs::write(folder.join("tokenizer.json"), self.tokenizer.to_string()).unwrap();
        let settings = json!({
            "eos_token": {"content": "<|im_end|>"}, "pad_token": "<|endoftext|>", "bos_token": null,
            "chat_template": "{{ messages }}",
        });
        fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();
        let mut parts = vec![Tensors::new(); num_files];
        for (idx, (name, tensor)) in self.tensors.iter().enumerate() {
            parts[idx % num_files].insert(name.clone(), tensor.clone());
        }
        let mut map = serde_json::Map::new();
        for (idx, part) in parts.iter().enumerate() {
            let file = match num_files {
                1 => "model.safetensors".to_owned(),
                _ => format!("model-{:05}-of-{num_files:05}.safetensors", idx + 1),
            };
            fs::write(folder.join(&file), safetensors_bytes(part, Dtype::BF16)).unwrap();
            map.extend(part.keys().map(|name| (name.clone(), file.clone().into())));
        }
        if num_files > 1 {
            let index = json!({"metadata": {}, "weight_map": map});
            fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
        }
        folder.to_owned()
    }
}

fn tokenizer() -> serde_json::Value {
    json!({
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4, "Ġ": 5, "Ġa": 6, "d": 7},
            "merges": ["a b", ["ab", "c"], "Ġ a"]},
        "added_tokens": [{"id": 8, "content": "<|endoftext|>", "special": true},
            {"id": 9, "content": "<|im_end|>", "special": true}, {"id": 10, "content": "<tool_call>", "special": false}],
    })
}

fn store(folder: &Path, file_type: FileType, out: &Path) -> Gguf {
    let source = open_source(folder).unwrap();
    rewrite(source.as_ref(), &mut Unchanged, Types::Of(file_type, None), &Plain, out, &mut |_| {}).unwrap();
    quern_gguf::check(out).unwrap()
}

fn values(gguf: &Gguf, name: &str) -> Vec<f32> {
    let tensor = gguf.require_tensor(name).unwrap();
    let mut out = vec![0.0; tensor.num_elements() as usize];
    quern_adapters::Codec::decode(&Plain, tensor.kind, &gguf.read_tensor(tensor).unwrap(), &mut out).unwrap();
    out
}

#[test]
fn folders_of_qwen2_and_qwen3_become_models() {
    let dir = tempfile::tempdir().unwrap();
    for (model_type, tied, num_files) in [("qwen2", true, 1), ("qwen3", false, 3)] {
        let model = Model::new(model_type, tied);
        let folder = model.write(&dir.path().join(model_type), num_files);
        let gguf = store(&folder, FileType::Bf16, &dir.path().join("out.gguf"));
        assert_eq!(gguf.architecture().unwrap(), model_type);
        assert_eq!(gguf.tensors().len(), model.tensors.len());
        assert_eq!(gguf.tensors()[0].name, "token_embd.weight");
        let number = |key: &str| gguf.u32(&format!("{model_type}.{key}")).unwrap();
        assert_eq!(
            (number("block_count"), number("context_length"), number("attention.head_count_kv")),
            (2, 512, 2)
        );
        assert_eq!(gguf.f32(&format!("{model_type}.rope.freq_base")).unwrap(), 1e6);
        assert_eq!(gguf.u32("general.file_type").unwrap(), 32);

        let half =
            |values: &[f32]| values.iter().map(|v| half::bf16::from_f32(*v).to_f32()).collect::<Vec<_>>();
        let of = |name: &str| half(&model.tensors[name].1);
        assert_eq!(values(&gguf, "blk.1.ffn_down.weight"), of("model.layers.1.mlp.down_proj.weight"));
        assert_eq!(values(&gguf, "blk.0.attn_k.weight"), of("model.layers.0.self_attn.k_proj.weight"));
        assert_eq!(values(&gguf, "output_norm.weight"), of("model.norm.weight"));
        assert_eq!(gguf.tensor("output_norm.weight").unwrap().kind, TensorType::F32);
        assert_eq!(gguf.tensor("blk.0.ffn_up.weight").unwrap().shape, [64, 96]);
        assert_eq!(gguf.tensor("output.weight").is_some(), !tied);

        let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
        assert_eq!((tokens.len(), tokens[4], tokens[9], tokens[11]), (12, "abc", "<|im_end|>", "[PAD11]"));
        assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap()[7..], [1, 3, 3, 4, 5]);
        assert_eq!(gguf.strings("tokenizer.ggml.merges").unwrap(), ["a b", "ab c", "Ġ a"]);
        let id = |key: &str| gguf.u32(&format!("tokenizer.ggml.{key}_token_id")).unwrap();
        assert_eq!((id("eos"), id("padding"), id("bos")), (9, 8, 8));
        assert_eq!(gguf.str("tokenizer.chat_template").unwrap(), "{{ messages }}");
    }
}

#[test]
fn a_folder_takes_an_adapter() {
    let dir = tempfile::tempdir().unwrap();
    let folder = Model::new("qwen2", true).write(&dir.path().join("model"), 1);
    let adapter = Adapter::open(&Folder::sound().write(&dir.path().join("a"))).unwrap();
    let source = open_source(&folder).unwrap();
    let mut change = Merge::new(source.as_ref(), vec![Part { adapter, weight: 1.0 }], true).unwrap();
    let out = dir.path().join("merged.gguf");
    rewrite(source.as_ref(), &mut change, Types::Of(FileType::F32, None), &Plain, &out, &mut |_| {}).unwrap();
    let (merged, plain) =
        (Gguf::open(&out).unwrap(), store(&folder, FileType::F32, &dir.path().join("plain.gguf")));
    assert_ne!(values(&merged, "blk.1.attn_q.weight"), values(&plain, "blk.1.attn_q.weight"));
    assert_eq!(values(&merged, "blk.1.attn_k.weight"), values(&plain, "blk.1.attn_k.weight"));
}

#[test]
fn broken_folders_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let told = |break_it: &dyn Fn(&mut Model)| {
        let mut model = Model::new("qwen2", true);
        break_it(&mut model);
        let folder = model.write(&dir.path().join("m"), 1);
        open_source(&folder).map(|_| ()).expect_err("the folder is broken").to_string()
    };
    type Break = Box<dyn Fn(&mut Model)>;
    let cases: Vec<(Break, &str)> = vec![
        (Box::new(|m| m.config["model_type"] = "llama".into()), "\"llama\" is not known"),
        (Box::new(|m| m.config["hidden_size"] = 0.into()), "a dimension is 0"),
        (Box::new(|m| m.config["vocab_size"] = 13.into()), "config.json asks for [64, 13]"),
        (Box::new(|m| m.config["vocab_size"] = 4_000_000_000u32.into()), "config.json asks for"),
        (Box::new(|m| m.config["num_hidden_layers"] = 3.into()), "blk.2.attn_norm.weight is missing"),
        (Box::new(|m| m.config["num_hidden_layers"] = 1.into()), "has no place in a model"),
        (Box::new(|m| m.config["tie_word_embeddings"] = false.into()), "output.weight is missing"),
        (
            Box::new(|m| m.config["rope_scaling"] = json!({"type": "linear", "factor": 2.0})),
            "\"linear\" is not known",
        ),
        (Box::new(|m| m.config["use_sliding_window"] = true.into()), "sliding windows"),
        (Box::new(|m| m.add("model.layers.0.mlp.experts.0.up_proj.weight", &[2, 2])), "is not known"),
        (Box::new(|m| drop(m.tensors.remove("model.norm.weight"))), "output_norm.weight is missing"),
        (Box::new(|m| m.tokenizer["model"]["vocab"]["z"] = 99.into()), "token 99 is beyond"),
        (Box::new(|m| m.tokenizer["model"]["type"] = "WordPiece".into()), "no byte-pair encoding"),
        (Box::new(|m| m.tokenizer = json!({"x": 1})), "tokenizer.json"),
    ];
    for (break_it, words) in cases {
        let told = told(&*break_it);
        assert!(told.contains(words), "{words:?} is not in {told:?}");
    }
    let folder = Model::new("qwen2", true).write(&dir.path().join("n"), 1);
    let index = json!({"weight_map": {"model.norm.weight": "../m/model.safetensors"}});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    assert!(open_source(&folder).map(|_| ()).unwrap_err().to_string().contains("no file of the folder"));
    fs::remove_file(folder.join("config.json")).unwrap();
    assert!(open_source(&folder).map(|_| ()).unwrap_err().to_string().contains("no config.json"));
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn importance_matrices_of_both_formats_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let (new, old) = (dir.path().join("new.gguf"), dir.path().join("old.dat"));
    let mut writer = GgufWriter::new();
    writer.set("general.type", "imatrix").unwrap();
    writer.set("imatrix.datasets", Value::Array(Array::Strings(["wiki"].iter().collect()))).unwrap();
    writer.tensor("blk.0.attn_q.weight.in_sum2", &[3, 1], TensorType::F32).unwrap();
    writer.tensor("blk.0.attn_q.weight.counts", &[1, 1], TensorType::F32).unwrap();
    let mut stream = writer.create(&new).unwrap();
    stream.write("blk.0.attn_q.weight.in_sum2", |out| out.write_all(&floats(&[2.0, 4.0, 6.0]))).unwrap();
    stream.write("blk.0.attn_q.weight.counts", |out| out.write_all(&floats(&[4.0]))).unwrap();
    stream.finish().unwrap();

    let name = b"blk.0.attn_q.weight";
    let number = |number: usize| (number as i32).to_le_bytes().to_vec();
    let plain =
        [number(1), number(name.len()), name.to_vec(), number(4), number(3), floats(&[2.0, 4.0, 6.0])]
            .concat();
    fs::write(&old, &plain).unwrap();
    for path in [&new, &old] {
        let importance = Importance::read(path).unwrap();
        assert_eq!(importance.of("blk.0.attn_q.weight"), Some(&[0.5, 1.0, 1.5][..]));
        assert_eq!((importance.len(), importance.of("output.weight")), (1, None));
    }
    let told = |bytes: &[u8]| {
        fs::write(&old, bytes).unwrap();
        Importance::read(&old).unwrap_err().to_string()
    };
    for size in 0..plain.len() {
        assert!(told(&plain[..size]).contains("no importance matrix"), "{size}");
    }
    assert!(told(&number(0)).contains("empty"));
    let nan = [&plain[..plain.len() - 4], &f32::NAN.to_le_bytes()].concat();
    assert!(told(&nan).contains("no number or negative"));
}

#[test]
fn what_was_measured_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.gguf");
    let measured = Measured {
        inputs: vec![
            ("blk.0.attn_q.weight".into(), vec![2.0, 4.0, 6.0], 4),
            ("blk.0.ffn_down.weight".into(), vec![1.0], 1),
        ],
        dataset: "calibration.txt".into(),
        num_chunks: 2,
        chunk_len: 512,
    };
    measured.write(&path).unwrap();
    let importance = Importance::read(&path).unwrap();
    assert_eq!(importance, measured.importance());
    assert_eq!(importance.of("blk.0.attn_q.weight"), Some(&[0.5, 1.0, 1.5][..]));
    // The keys that llama.cpp's quantiser asks for.
    let gguf = quern_gguf::Gguf::open(&path).unwrap();
    assert_eq!(gguf.str("general.type").unwrap(), "imatrix");
    assert_eq!(gguf.strings("imatrix.datasets").unwrap(), ["calibration.txt"]);
    assert_eq!((gguf.u32("imatrix.chunk_count").unwrap(), gguf.u32("imatrix.chunk_size").unwrap()), (2, 512));
    let never = Measured { inputs: vec![("a.weight".into(), vec![0.0], 0)], ..Measured::default() };
    assert!(never.importance().is_empty());
}
