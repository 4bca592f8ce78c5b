//! The operations of a step, timed one at a time, held against the model's file.

use std::path::Path;

use quern_engine::{AdapterId, Engine as _, Output, Row};
use quern_gguf::Gguf;
use quern_gguf::tiny::{Arch, TinySpec, write};
use quern_llama::{FlashAttention, LlamaConfig, LlamaEngine, Operation};

const NUM_TOKENS: u32 = 9;

fn engine(path: &Path, flash_attention: FlashAttention) -> LlamaEngine {
    let config = LlamaConfig {
        kv_capacity: 256,
        max_sequence_len: 64,
        max_sequences: 4,
        max_rows: 32,
        micro_batch_rows: 16,
        max_outputs: 16,
        threads: 1,
        threads_prefill: 1,
        gpu_layers: Some(0),
        flash_attention,
        ..LlamaConfig::default()
    };
    LlamaEngine::load(path, &config, &mut |_| true).expect("the model loads")
}

/// A prompt whose last token has an output.
fn rows() -> Vec<Row> {
    let output = |pos| if pos + 1 == NUM_TOKENS { Output::Logits } else { Output::None };
    let row =
        |pos: u32| Row { seq: 0, pos, token: 3 + 7 * pos, adapter: AdapterId::BASE, output: output(pos) };
    (0..NUM_TOKENS).map(row).collect()
}

fn tiny(arch: Arch) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    write(&path, &TinySpec::new(arch, 7)).expect("a tiny model can be written");
    (folder, path)
}

fn products(operations: &[Operation]) -> Vec<(Option<u32>, &str)> {
    let mut all: Vec<_> =
        operations.iter().filter_map(|operation| Some((operation.layer(), operation.part()?))).collect();
    all.sort_unstable();
    all
}

#[test]
fn every_matrix_of_every_layer_is_met_once() {
    for arch in [Arch::Qwen2, Arch::Qwen3] {
        let (_folder, path) = tiny(arch);
        let mut engine = engine(&path, FlashAttention::On);
        let untimed = engine.step(&rows()).expect("it computes").logits.to_vec();
        engine.truncate(0, 0).expect("it can be dropped");
        assert!(engine.take_operations().is_empty(), "nobody asked");
        engine.time_operations();
        let timed = engine.step(&rows()).expect("it computes").logits.to_vec();
        assert!(untimed.iter().zip(&timed).all(|(a, b)| (a - b).abs() < 1e-4), "timing changes nothing");

        let operations = engine.take_operations();
        let parts = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"];
        let layers = (0..2).flat_map(|layer| parts.map(|part| (Some(layer), part)));
        let expected: Vec<_> = [(None, "head")].into_iter().chain(layers).collect();
        assert_eq!(products(&operations), expected, "{arch:?}");
        for op in ["FLASH_ATTN_EXT", "ROPE", "RMS_NORM", "SWIGLU", "GET_ROWS", "SET_ROWS"] {
            assert!(operations.iter().any(|operation| operation.op == op), "no {op}");
        }
        assert!(operations.is_sorted_by(|a, b| a.ended <= b.began && a.began <= a.ended), "one at a time");

        engine.step(&[Row { pos: NUM_TOKENS, ..rows()[0] }]).expect("it computes");
        assert!(engine.take_operations().is_empty(), "timing has ended");
    }
}

#[test]
fn products_know_their_work_and_their_weights() {
    let (_folder, path) = tiny(Arch::Qwen2);
    let gguf = Gguf::open(&path).expect("it is sound");
    let mut engine = engine(&path, FlashAttention::On);
    engine.time_operations();
    engine.step(&rows()).expect("it computes");
    let operations = engine.take_operations();
    let products: Vec<_> = operations.iter().filter(|operation| operation.op == "MUL_MAT").collect();
    assert_eq!(products.len(), 15);
    for product in products {
        let weight = product.weight.as_ref().expect("fused attention has no products of its own");
        let tensor = gguf.require_tensor(&weight.name).expect("the file has it");
        assert_eq!((weight.kind.as_str(), weight.size_bytes), ("f32", tensor.size_bytes), "{}", weight.name);
        assert_eq!(weight.shape[..2], tensor.shape[..], "{}", weight.name);
        assert_eq!(product.shape[0], weight.shape[1], "{}", weight.name);
        // The last layer computes on behind its attention for the row with an output alone.
        let num_rows = product.shape[1];
        assert!([1, u64::from(NUM_TOKENS)].contains(&num_rows), "{num_rows}");
        assert_eq!(product.flop, Some(2 * tensor.num_elements() * num_rows), "{}", weight.name);
        assert!(product.memory.contains("CPU"), "{}", product.memory);
    }
    let bias = operations.iter().find(|operation| operation.op == "ADD" && operation.weight.is_some());
    let bias = bias.and_then(|bias| bias.weight.as_ref()).expect("queries have a bias");
    assert!(bias.name.starts_with("blk.0.attn_") && bias.name.ends_with(".bias"), "{}", bias.name);
}

#[test]
fn attention_that_is_not_fused_shows_its_products() {
    let (_folder, path) = tiny(Arch::Qwen2);
    let mut engine = engine(&path, FlashAttention::Off);
    engine.time_operations();
    engine.step(&rows()).expect("it computes");
    let operations = engine.take_operations();
    let products = products(&operations);
    for part in ["kq", "kqv"] {
        for layer in 0..2 {
            assert!(products.contains(&(Some(layer), part)), "{part} of layer {layer} in {products:?}");
        }
    }
    assert!(operations.iter().any(|operation| operation.op == "SOFT_MAX"));
}
