//! Any bytes at all give a header or a typed error: no panic, no memory beyond a small multiple of the input.
//!
//! Run it in `adapters/gguf` with `cargo +nightly fuzz run read`; a good first input is a tiny model:
//! `cargo run --release -p quern-gguf --example make_tiny -- adapters/gguf/fuzz/corpus/read/tiny.gguf`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quern_gguf::Header;

fuzz_target!(|bytes: &[u8]| {
    let size_bytes = bytes.len() as u64;
    match Header::parse(bytes, size_bytes) {
        Ok(header) => {
            for tensor in &header.tensors {
                assert!(header.data_start + tensor.offset + tensor.size_bytes <= size_bytes);
            }
        }
        Err(problem) => assert!(!problem.to_string().is_empty()),
    }
});
