//! `quern pull`, killed again and again.

use std::process::Stdio;
use std::sync::mpsc;

use crate::hub::{Fault, Hub, noise};
use crate::node::{command, told};

/// A name of the catalogue without a pinned digest, so that a local hub can serve it.
const MODEL: &str = "qwen3-0.6b-q8_0";

#[test]
fn a_pull_that_is_killed_goes_on_where_it_was() {
    const SIZE: usize = 2_000_000;
    const STEP: usize = 300_000;
    let bytes = noise(SIZE);
    let hub = Hub::serve(&bytes, true);
    let cache = tempfile::tempdir().unwrap();
    let pull = || {
        let mut pull = command(&["pull", MODEL]);
        pull.env("HF_ENDPOINT", hub.endpoint()).env("QUERN_CACHE_DIR", cache.path());
        pull
    };
    for _ in 0..5 {
        // The hub sends some more bytes, says so, and holds its breath; then we strike.
        let (told, sent) = mpsc::channel();
        hub.fail_with([Fault::HoldAfter(STEP, told)]);
        let mut child = pull().stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        sent.recv().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!cache.path().join(format!("models/{MODEL}.gguf")).exists());
    }
    let output = pull().output().unwrap();
    let (code, out, err) = told(&output);
    assert_eq!(code, 0, "{err}");
    assert_eq!(std::fs::read(out.trim()).unwrap(), bytes);

    // Each try began at the end of what the one before had written, which is at
    // most what had been sent to it.
    let starts = hub.starts();
    assert_eq!(starts.len(), 6);
    for (idx, pair) in starts.windows(2).enumerate() {
        assert!(pair[0] <= pair[1] && pair[1] <= (idx + 1) * STEP, "{starts:?}");
    }

    // Now it is here, and the hub is not asked again.
    let asked = hub.seen().len();
    assert_eq!(told_code(pull().output().unwrap()), 0);
    assert_eq!(hub.seen().len(), asked);
}

#[test]
fn a_model_that_cannot_be_had_is_said_with_the_reason() {
    let cache = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let output = command(&["pull", MODEL])
        .env("HF_ENDPOINT", format!("http://{free}"))
        .env("QUERN_CACHE_DIR", cache.path())
        .output()
        .unwrap();
    let (code, _, err) = told(&output);
    assert_eq!(code, 1);
    assert!(err.contains("qwen3-0.6b-q8_0 could not be fetched: the hub's Qwen/Qwen3-0.6B-GGUF: "), "{err}");
}

fn told_code(output: std::process::Output) -> i32 {
    told(&output).0
}
