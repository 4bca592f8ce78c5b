//! The engine on the default model, held against what llama.cpp computes on the CPU with the same file.
//!
//! `llama_top.txt` has llama.cpp's two likeliest next tokens after each token of a few texts of this
//! repository, with their logits: `token best logit second logit`, an empty line between texts.

use std::sync::Arc;

use quern_engine::{AdapterId, Engine as _, Output, Row};
use quern_wgsl::{WgslConfig, WgslEngine, WgslModel};

/// The two likeliest tokens after `token`, by llama.cpp.
struct Reference {
    token: u32,
    best: (u32, f32),
    second: (u32, f32),
}

fn texts() -> Vec<Vec<Reference>> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let number = |idx: usize| words[idx].parse().expect("a token");
        let logit = |idx: usize| words[idx].parse().expect("a logit");
        Reference { token: number(0), best: (number(1), logit(2)), second: (number(3), logit(4)) }
    };
    include_str!("llama_top.txt").split("\n\n").map(|text| text.lines().map(parse).collect()).collect()
}

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best as u32
}

#[test]
fn agrees_with_llama_cpp() {
    let Some(path) = std::env::var_os("QUERN_TEST_MODEL") else {
        eprintln!("skipped: QUERN_TEST_MODEL names no model");
        return;
    };
    let config = WgslConfig {
        kv_capacity: 256,
        max_sequences: 4,
        max_rows: 32,
        max_outputs: 32,
        adapter_slots: [0; 4],
        ..WgslConfig::default()
    };
    let model = WgslModel::load(path.as_ref(), &config, &mut |_| true).expect("the model loads");
    let mut engine = WgslEngine::on(&Arc::new(model)).expect("there is room");
    let vocab = engine.capabilities().vocab_size;
    let (mut num_tokens, mut num_misses, mut worst) = (0, 0, 0f32);
    for text in texts() {
        for (chunk_idx, chunk) in text.chunks(32).enumerate() {
            let row = |(idx, reference): (usize, &Reference)| Row {
                seq: 0,
                pos: (chunk_idx * 32 + idx) as u32,
                token: reference.token,
                adapter: AdapterId::BASE,
                output: Output::Logits,
            };
            let rows: Vec<Row> = chunk.iter().enumerate().map(row).collect();
            let output = engine.step(&rows).expect("the rows are computed");
            for (logits, reference) in output.logits.chunks(vocab).zip(chunk) {
                let (ours, best, second) = (largest(logits), reference.best, reference.second);
                num_tokens += 1;
                worst = worst.max((logits[best.0 as usize] - best.1).abs());
                if ours != best.0 {
                    num_misses += 1;
                    assert_eq!(ours, second.0, "a token that llama.cpp does not have among its first two");
                    assert!(best.1 - second.1 <= 0.25, "llama.cpp's lead over ours: {}", best.1 - second.1);
                }
            }
        }
        engine.truncate(0, 0).expect("a sequence can be dropped");
    }
    eprintln!("{num_misses} of {num_tokens} tokens differ, logits by {worst} at most");
    assert!(num_tokens >= 100 && num_misses * 20 <= num_tokens, "{num_misses} of {num_tokens} tokens differ");
    // llama.cpp rounds what goes into a matrix to 8 bits a value; here it stays f32.
    assert!(worst <= 1.0, "logits differ by {worst}");
}
