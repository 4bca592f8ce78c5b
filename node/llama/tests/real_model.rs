//! The engine on the default model, where it is at hand.
//!
//! The model is looked for in `QUERN_TEST_MODEL`, then in the user's cache
//! folder, where `quern pull` puts it.

use std::path::PathBuf;

use quern_engine::{AdapterId, Engine as _, Output, Row, suite};
use quern_llama::{LlamaConfig, LlamaEngine};

const FILE: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

fn real_model() -> Option<PathBuf> {
    let from_variable = std::env::var_os("QUERN_TEST_MODEL").map(PathBuf::from);
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let path = from_variable.or_else(|| cache.map(|cache| cache.join("quern/models").join(FILE)))?;
    if path.exists() {
        return Some(path);
    }
    eprintln!("SKIPPED: no model at {}; set QUERN_TEST_MODEL or run `quern pull`", path.display());
    None
}

fn load(path: &std::path::Path, config: &LlamaConfig) -> LlamaEngine {
    LlamaEngine::load(path, config, &mut |_| true).expect("the model loads")
}

fn small() -> LlamaConfig {
    LlamaConfig {
        kv_capacity: 256,
        max_sequence_len: 128,
        max_sequences: 8,
        max_rows: 64,
        micro_batch_rows: 32,
        max_outputs: 16,
        // One thread: two would wait for each other on a busy machine.
        threads: 1,
        threads_prefill: 1,
        ..LlamaConfig::default()
    }
}

/// Weights of 4 bits are multiplied with activations rounded to 8 bits, in
/// kernels that differ with the number of rows: logits differ by some percent.
#[test]
fn passes_the_suite() {
    let Some(path) = real_model() else { return };
    suite::check_all(&mut || Box::new(load(&path, &small())), 0.06);
}

#[test]
fn describes_itself() {
    let Some(path) = real_model() else { return };
    let engine = load(&path, &LlamaConfig::default());
    let info = engine.model_info();
    assert_eq!(info.architecture, "qwen2");
    assert_eq!(info.num_layers, 24);
    assert_eq!(info.hidden_size, 896);
    assert_eq!(info.trained_context, 32_768);
    assert!(info.devices.iter().any(|device| !device.is_gpu), "{:?}", info.devices);
    assert!(info.kv_bytes.is_some_and(|bytes| bytes >= 16_384 * 12 * 1024), "{:?}", info.kv_bytes);
    assert!(info.compute_bytes.is_some() && info.output_bytes.is_some());
    assert_eq!(engine.capabilities().max_sequence_len, 16_384);
}

/// Greedy decoding of a prompt with one obvious continuation: `def add(a, b):\n    return` → ` a + b`.
#[test]
fn continues_code() {
    let Some(path) = real_model() else { return };
    let mut engine = load(&path, &small());
    let vocab_size = engine.capabilities().vocab_size;
    // The tokens of the prompt in Qwen2's vocabulary.
    let mut tokens = vec![750, 912, 2877, 11, 293, 982, 262, 470];
    let mut pos = 0;
    for _ in 0..3 {
        let last = tokens.len() - 1;
        let rows: Vec<Row> = (pos..tokens.len())
            .map(|idx| Row {
                seq: 0,
                pos: idx as u32,
                token: tokens[idx],
                adapter: AdapterId::BASE,
                output: if idx == last { Output::Logits } else { Output::None },
            })
            .collect();
        pos = tokens.len();
        let logits = engine.step(&rows).unwrap().logits;
        assert_eq!(logits.len(), vocab_size);
        let best = (0..vocab_size).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap();
        tokens.push(best as u32);
    }
    assert_eq!(tokens[8..], [264, 488, 293], "` a`, ` +`, ` b`");
}
