//! Any bytes at all give a safetensors header or a typed error: no panic, no memory beyond a small multiple
//! of the input.
//!
//! Run it in `adapters/lora` with `cargo +nightly fuzz run safetensors`; a good first input is the
//! `adapter_model.safetensors` of any adapter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quern_adapters::Layout;

fuzz_target!(|bytes: &[u8]| {
    let size_bytes = bytes.len() as u64;
    match Layout::parse(bytes, size_bytes) {
        Ok(layout) => {
            for entry in layout.entries {
                assert!(entry.start + entry.size_bytes <= size_bytes);
            }
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
});
