//! No damage to a file does worse than a typed error.
#![allow(clippy::unwrap_used, reason = "a test may panic, helpers included")]

mod common;

use std::fs;

use common::Folder;
use proptest::collection::vec;
use proptest::prelude::*;
use quern_adapters::{Adapter, Layout, PeftConfig};

fn damage(bytes: &mut Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) {
    for (place, byte, edit) in edits {
        let idx = place.index(bytes.len());
        match edit {
            0 => bytes[idx] = *byte,
            1 => bytes.insert(idx, *byte),
            _ => {
                bytes.remove(idx);
            }
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    vec((any::<prop::sample::Index>(), any::<u8>(), 0..3u8), 1..6)
}

/// What holds of every header that is accepted.
fn parse(bytes: &[u8]) {
    let size_bytes = bytes.len() as u64;
    match Layout::parse(bytes, size_bytes) {
        Ok(layout) => {
            for entry in layout.entries {
                assert!(entry.start + entry.size_bytes <= size_bytes);
                let elements: u64 = entry.shape.iter().product();
                assert!(entry.kind.is_none_or(|kind| elements * kind.block_bytes() == entry.size_bytes));
            }
        }
        Err(fault) => assert!(!fault.to_string().is_empty()),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_safetensors_give_a_header_or_an_error(edits in edits()) {
        let mut bytes = Folder::sound().bytes();
        // Most edits should hit the header, not the data.
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let mut head = bytes[..8 + header].to_vec();
        damage(&mut head, &edits);
        bytes.splice(..8 + header, head);
        parse(&bytes);
    }

    #[test]
    fn random_headers_are_refused(tail in vec(any::<u8>(), 0..200), length in any::<u64>()) {
        parse(&[&length.to_le_bytes()[..], &tail].concat());
        parse(&[&(tail.len() as u64).to_le_bytes()[..], &tail].concat());
    }

    #[test]
    fn damaged_configurations_give_an_error_or_a_configuration(edits in edits()) {
        let mut text = Folder::sound().config.to_string().into_bytes();
        damage(&mut text, &edits);
        if let Ok(config) = PeftConfig::parse(&text) {
            prop_assert!(config.r > 0 && config.lora_alpha > 0.0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_folders_give_an_adapter_or_an_error(edits in edits(), in_config in any::<bool>()) {
        let dir = tempfile::tempdir().unwrap();
        let path = Folder::classifier().write(&dir.path().join("a"));
        let file = path.join(if in_config { "adapter_config.json" } else { "adapter_model.safetensors" });
        let mut bytes = fs::read(&file).unwrap();
        damage(&mut bytes, &edits);
        fs::write(&file, bytes).unwrap();
        match Adapter::open(&path).and_then(|adapter| adapter.check_values().map(|()| adapter)) {
            Ok(adapter) => prop_assert!(adapter.modules.iter().all(|module| module.scale > 0.0)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
