//! The fake engine is an engine: it passes what every engine must pass.

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{Capabilities, Engine, suite};

fn small(mixes_outputs: bool) -> Box<dyn Engine> {
    let capabilities = Capabilities {
        kv_capacity: 256,
        max_sequences: 8,
        max_sequence_len: 128,
        max_rows: 64,
        max_outputs: 16,
        mixes_outputs,
        ..FakeConfig::default().capabilities
    };
    Box::new(FakeEngine::new(FakeConfig { capabilities, ..FakeConfig::default() }))
}

#[test]
fn it_passes_the_suite() {
    for mixes_outputs in [false, true] {
        suite::check_all(&mut || small(mixes_outputs), 0.0);
    }
}
