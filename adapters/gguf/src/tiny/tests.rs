//! Tiny models are sound files, the same on every machine, and as they were wished for.

use sha2::{Digest, Sha256};

use super::*;
use crate::check;

fn made(spec: &TinySpec) -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    write(&path, spec).unwrap();
    (folder, path)
}

fn sha256(spec: &TinySpec) -> String {
    let (_folder, path) = made(spec);
    let digest = Sha256::digest(std::fs::read(path).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_same_wish_gives_the_same_bytes_everywhere() {
    let wish = |arch, kind, tied| TinySpec { kind, tied, ..TinySpec::new(arch, 1) };
    let golden = [
        (
            wish(Arch::Qwen2, TensorType::F32, false),
            "0902ff02bdab0e59d9110b8eb8dc7763655b81fd78eaa5a98e5f997a63b6e51d",
        ),
        (
            wish(Arch::Qwen3, TensorType::F32, false),
            "64135fcc1d04987729ab2e971e211b35ffac9cd4e471a85aad3170c0f38151d6",
        ),
        (
            wish(Arch::Qwen2, TensorType::Q8_0, true),
            "9c435a7a426d19d55866c5a53a9247c2847f35928c01e70d6ff79d44491623fc",
        ),
        (
            wish(Arch::Qwen3, TensorType::F16, true),
            "1bdfa9d8977da37f1408872304a30035dffede6cc0fa164f30919ee60272f371",
        ),
        (
            wish(Arch::Qwen3, TensorType::BF16, false),
            "0cc584b74b4951e971d2229fc7f55441290ac628a616def6dcbe793bbb560592",
        ),
    ];
    let found: Vec<String> = golden.iter().map(|(spec, _)| sha256(spec)).collect();
    let expected: Vec<&str> = golden.iter().map(|(_, sha)| *sha).collect();
    assert_eq!(found, expected);
}

#[test]
fn seeds_differ() {
    assert_ne!(sha256(&TinySpec::new(Arch::Qwen2, 1)), sha256(&TinySpec::new(Arch::Qwen2, 2)));
}

#[test]
fn the_file_says_what_was_wished_for() {
    let spec = TinySpec { layers: 3, context: 777, ..TinySpec::new(Arch::Qwen3, 9) };
    let (_folder, path) = made(&spec);
    let gguf = check(&path).unwrap();
    assert_eq!(gguf.architecture().unwrap(), "qwen3");
    assert_eq!(gguf.u32("qwen3.block_count").unwrap(), 3);
    assert_eq!(gguf.u32("qwen3.context_length").unwrap(), 777);
    assert_eq!(gguf.u32("qwen3.attention.key_length").unwrap(), 64);
    assert!(gguf.tensor("blk.2.attn_q_norm.weight").is_some());
    assert!(gguf.tensor("blk.2.attn_q.bias").is_none());
    let tokens = gguf.strings("tokenizer.ggml.tokens").unwrap();
    assert_eq!(tokens[gguf.u32("tokenizer.ggml.eos_token_id").unwrap() as usize], "<|im_end|>");
    assert_eq!(gguf.tensor("output.weight").unwrap().shape, [256, tokens.len() as u64]);
}

#[test]
fn tied_models_have_no_output_matrix() {
    let (_folder, path) = made(&TinySpec { tied: true, ..TinySpec::new(Arch::Qwen2, 1) });
    let gguf = check(&path).unwrap();
    assert!(gguf.tensor("output.weight").is_none());
    assert!(gguf.tensor("blk.1.attn_q.bias").is_some());
}

#[test]
fn impossible_wishes_are_refused() {
    let base = TinySpec::new(Arch::Qwen2, 1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("never.gguf");
    for spec in [
        TinySpec { layers: 0, ..base.clone() },
        TinySpec { heads: 3, ..base.clone() },
        TinySpec { kv_heads: 3, ..base.clone() },
        TinySpec { kind: TensorType::Q4_K, ..base.clone() },
        TinySpec { ffn: 100, kind: TensorType::Q8_0, ..base },
    ] {
        let problem = write(&path, &spec).unwrap_err().problem;
        assert!(matches!(problem, Problem::BadSpec { .. } | Problem::BadShape { .. }), "{problem}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left behind");
}
