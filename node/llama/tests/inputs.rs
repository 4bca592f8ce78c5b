//! What goes into a model's matrices, held against sums by hand.

use std::path::Path;

use quern_engine::{AdapterId, Engine as _, Output, Row, TokenId};
use quern_gguf::Gguf;
use quern_gguf::tiny::{Arch, TinySpec, write};
use quern_llama::{LlamaConfig, LlamaEngine, MatrixInputs};

const HIDDEN: usize = 256;
const TOKENS: [TokenId; 9] = [3, 50, 7, 7, 120, 9, 200, 31, 64];

fn engine(path: &Path) -> LlamaEngine {
    let config = LlamaConfig {
        kv_capacity: 256,
        max_sequence_len: 64,
        max_sequences: 4,
        max_rows: 32,
        micro_batch_rows: 4,
        max_outputs: 32,
        threads: 1,
        threads_prefill: 1,
        gpu_layers: Some(0),
        ..LlamaConfig::default()
    };
    LlamaEngine::load(path, &config, &mut |_| true).expect("the model loads")
}

fn rows(output: Output) -> Vec<Row> {
    let row = |(pos, &token): (u32, &TokenId)| Row { seq: 0, pos, token, adapter: AdapterId::BASE, output };
    (0..).zip(&TOKENS).map(row).collect()
}

fn floats(gguf: &Gguf, tensor: &str) -> Vec<f32> {
    let bytes =
        gguf.read_tensor(gguf.require_tensor(tensor).expect("it has the tensor")).expect("it is whole");
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// The first norm of each token's embedding, squared and added up by column.
fn by_hand(path: &Path) -> Vec<f64> {
    let gguf = Gguf::open(path).expect("it is sound");
    let (embeddings, norm) = (floats(&gguf, "token_embd.weight"), floats(&gguf, "blk.0.attn_norm.weight"));
    let mut sums = vec![0.0; HIDDEN];
    for &token in &TOKENS {
        let row: Vec<f64> =
            embeddings[token as usize * HIDDEN..][..HIDDEN].iter().map(|&x| f64::from(x)).collect();
        let mean = row.iter().map(|x| x * x).sum::<f64>() / HIDDEN as f64;
        for ((sum, x), weight) in sums.iter_mut().zip(&row).zip(&norm) {
            *sum += (x * f64::from(*weight)).powi(2) / (mean + 1e-6);
        }
    }
    sums
}

#[test]
fn inputs_are_the_squares_of_what_goes_in() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    write(&path, &TinySpec::new(Arch::Qwen2, 7)).expect("a tiny model can be written");
    let mut engine = engine(&path);
    let unseen = engine.step(&rows(Output::Hidden)).expect("it computes").hidden.to_vec();
    assert!(engine.take_inputs().is_empty(), "nobody asked");
    engine.truncate(0, 0).expect("it can be dropped");

    engine.measure_inputs();
    let seen = engine.step(&rows(Output::Hidden)).expect("it computes").hidden.to_vec();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(close(&unseen, &seen), "measuring changes nothing");
    let inputs = engine.take_inputs();
    let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
    let parts = ["attn_k", "attn_output", "attn_q", "attn_v", "ffn_down", "ffn_gate", "ffn_up"];
    let expected: Vec<String> =
        (0..2).flat_map(|layer| parts.map(|part| format!("blk.{layer}.{part}.weight"))).collect();
    assert_eq!(names, expected, "each matrix of each layer, and no other");
    for input in &inputs {
        assert_eq!(input.num_rows, TOKENS.len() as u64, "{}", input.name);
    }
    let of = |name: &str| -> &MatrixInputs {
        inputs.iter().find(|input| input.name == name).expect("it was measured")
    };
    for name in ["blk.0.attn_q.weight", "blk.0.attn_k.weight", "blk.0.attn_v.weight"] {
        for (found, expected) in of(name).sums.iter().zip(by_hand(&path)) {
            assert!((found - expected).abs() <= 1e-4 * expected.max(1e-3), "{name}: {found} {expected}");
        }
    }
    assert_eq!(of("blk.1.ffn_gate.weight").sums, of("blk.1.ffn_up.weight").sums);
    assert_eq!(of("blk.1.ffn_down.weight").sums.len(), 512);

    engine.truncate(0, 0).expect("it can be dropped");
    engine.step(&rows(Output::Hidden)).expect("it computes");
    assert!(engine.take_inputs().is_empty(), "it has ended");
}

#[test]
fn the_output_matrix_counts_where_logits_are_wanted() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("tiny.gguf");
    write(&path, &TinySpec::new(Arch::Qwen3, 7)).expect("a tiny model can be written");
    let mut engine = engine(&path);
    engine.measure_inputs();
    let mut rows = rows(Output::None);
    rows.last_mut().expect("there are rows").output = Output::Logits;
    engine.step(&rows).expect("it computes");
    let inputs = engine.take_inputs();
    let rows_of = |name: &str| inputs.iter().find(|input| input.name == name).map(|input| input.num_rows);
    assert_eq!(rows_of("output.weight"), Some(1));
    assert_eq!(rows_of("blk.0.ffn_down.weight"), Some(TOKENS.len() as u64));
    assert_eq!(rows_of("blk.1.attn_q.weight"), Some(TOKENS.len() as u64));
    assert_eq!(
        rows_of("blk.1.ffn_down.weight"),
        Some(1),
        "the last layer ends with the rows that are wanted"
    );
}
