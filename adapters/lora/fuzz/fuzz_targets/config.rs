//! Any bytes at all give a configuration that can be served or a typed error.
//!
//! Run it in `adapters/lora` with `cargo +nightly fuzz run config`; a good first input is the
//! `adapter_config.json` of any adapter.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quern_adapters::PeftConfig;

fuzz_target!(|bytes: &[u8]| {
    match PeftConfig::parse(bytes) {
        Ok(config) => {
            let (rank, alpha) = config.rank_and_alpha("model.layers.0.self_attn.q_proj");
            assert!(rank > 0 && config.scale(rank, alpha) > 0.0);
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
});
