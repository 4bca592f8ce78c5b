#!/usr/bin/env bash
# How far an engine agrees with llama.cpp on the CPU about what comes next: both are fed the first 200 tokens
# of 24 texts of this repository, in prose, Rust, WGSL, WIT, Python, shell, TOML, JSON, CSV and others.
#
# Usage: bench/agreement.sh MODEL.gguf [key=value]…; node/examples/agreement.rs has the keys.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1
shift
texts=(
    README.md ARCHITECTURE.md bench/results/METHODOLOGY.md bench/policies/README.md adapters/train/README.md
    node/src/main.rs node/scheduler/src/step_loop.rs node/text/src/gbnf.rs adapters/gguf/src/header.rs
    shaders/wgsl/attention.wgsl shaders/wgsl/sample_draw.wgsl extensions/wit/policy.wit
    adapters/train/train.py adapters/train/judge.py bench/compare.sh examples/curl.sh Makefile
    examples/client.mjs examples/quern.toml bench/workloads/ramp.toml node/models/catalog.toml
    node/tests/golden/chat_logprobs.json bench/workloads/intents.csv bench/workloads/harbour-log.txt
)
cargo build --quiet --release --workspace --example agreement
"${CARGO_TARGET_DIR:-target}/release/examples/agreement" "$model" "$@" "${texts[@]}"
