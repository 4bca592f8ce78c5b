//! The fake engine is an engine: it passes what every engine must pass.

use quern_engine::draw::drawn;
use quern_engine::fake::{Drawer, FakeConfig, FakeEngine};
use quern_engine::{Capabilities, Engine, suite};

const EXACT: Drawer =
    |logits, draw, position, mask| drawn(logits, draw, position, mask, 0.0).map(|within| *within.start());

fn small(mixes_outputs: bool, drawer: Option<Drawer>) -> Box<dyn Engine> {
    let capabilities = Capabilities {
        kv_capacity: 256,
        max_sequences: 8,
        max_sequence_len: 128,
        max_rows: 64,
        max_outputs: 16,
        mixes_outputs,
        ..FakeConfig::default().capabilities
    };
    Box::new(FakeEngine::new(FakeConfig { capabilities, drawer, ..FakeConfig::default() }))
}

#[test]
fn it_passes_the_suite() {
    for mixes_outputs in [false, true] {
        for drawer in [None, Some(EXACT)] {
            suite::check_all(&mut || small(mixes_outputs, drawer), 0.0);
        }
    }
}
