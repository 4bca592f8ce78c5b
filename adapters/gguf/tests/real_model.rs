//! The reader against the default model's file, where that is at hand.

use std::env;
use std::path::PathBuf;

use quern_gguf::{TensorType, check};

/// The default model's path, or `None` with a loud note.
fn default_model() -> Option<PathBuf> {
    const NAME: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";
    let cache = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache")));
    let path = match env::var_os("QUERN_TEST_MODEL") {
        Some(path) => Some(PathBuf::from(path)),
        None => cache.map(|cache| cache.join("quern/models").join(NAME)),
    };
    let path = path.filter(|path| path.is_file());
    if path.is_none() {
        eprintln!("SKIPPED: the default model is neither at QUERN_TEST_MODEL nor in the cache folder");
    }
    path
}

#[test]
fn the_default_model_is_read_whole() {
    let Some(path) = default_model() else { return };
    let gguf = check(&path).unwrap();
    assert_eq!(gguf.version(), 3);
    assert_eq!(gguf.alignment(), 32);
    assert_eq!(gguf.architecture().unwrap(), "qwen2");
    assert_eq!(gguf.u32("qwen2.block_count").unwrap(), 24);
    assert_eq!(gguf.u64("qwen2.embedding_length").unwrap(), 896);
    assert_eq!(gguf.f32("qwen2.rope.freq_base").unwrap(), 1_000_000.0);
    assert!(!gguf.bool("tokenizer.ggml.add_bos_token").unwrap());
    assert_eq!(gguf.metadata().len(), 26);

    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens.len(), 151_936);
    assert_eq!(tokens[151_645], "<|im_end|>");
    assert_eq!(gguf.i32s("tokenizer.ggml.token_type").unwrap().len(), 151_936);
    assert_eq!(gguf.byte_strings("tokenizer.ggml.merges").unwrap().len(), 151_387);

    assert_eq!(gguf.tensors().len(), 291);
    let value = gguf.tensor("blk.0.attn_v.weight").unwrap();
    assert_eq!((value.kind, value.shape.as_slice()), (TensorType::Q8_0, &[896, 128][..]));
    let norm = gguf.read_tensor(gguf.tensor("output_norm.weight").unwrap()).unwrap();
    let norm: Vec<f32> = norm.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(norm.len(), 896);
    assert!(norm.iter().all(|weight| weight.is_finite() && weight.abs() < 100.0));
}
