//! `quern policy record` and a node that is killed while it records.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::node::{Node, command, quern, told};

fn start(folder: &Path, more: &[&str]) -> Node {
    let folder = format!("recording.folder={}", folder.display());
    Node::start("fake", &[&["--set", &folder, "--set", "engine.fake.step_time=2ms"], more].concat())
}

async fn ask(node: &Node) {
    let body = json!({ "model": "tiny", "prompt": "a", "max_tokens": 60, "guided_regex": "[a-z]{60}" });
    let asked = reqwest::Client::new().post(format!("{}/v1/completions", node.public)).json(&body).send();
    assert_eq!(asked.await.unwrap().status(), 200);
}

fn replayed(file: &Path) -> Value {
    let output = quern(&["policy", "replay", file.to_str().unwrap(), "--policy", "builtin", "--json"]);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn only_file(folder: &Path) -> PathBuf {
    let files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files[0].clone()
}

#[tokio::test]
async fn a_node_that_is_killed_leaves_a_recording() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), &["--set", "recording.from_start=true"]);
    ask(&node).await;
    ask(&node).await;
    let before: Value =
        reqwest::get(format!("{}/v1/recording", node.admin)).await.unwrap().json().await.unwrap();
    assert_eq!(before["running"], true);
    node.signal("KILL");
    drop(node);
    let compared = replayed(&only_file(folder.path()));
    let steps = compared["steps"].as_u64().unwrap();
    assert!(steps + 1 >= before["steps"].as_u64().unwrap() && steps >= 20, "{before}\n{compared}");
    assert_eq!(compared["different"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_are_recorded_by_command() {
    let folder = tempfile::tempdir().unwrap();
    let node = start(folder.path(), &[]);
    let out = folder.path().join("fetched");
    let args = ["policy", "record", "--admin", &node.admin, "--steps", "40", "--out", out.to_str().unwrap()];
    let mut recorder = command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    while recorder.try_wait().unwrap().is_none() {
        ask(&node).await;
    }
    assert!(recorder.wait().unwrap().success());
    let compared = replayed(&out);
    assert_eq!((&compared["steps"], &compared["rest"]), (&json!(40), &Value::Null));
    assert_eq!(compared["different"], 0);
}

#[test]
fn what_cannot_be_recorded_is_said() {
    let (code, _, error) = told(&quern(&["policy", "record", "--admin", "http://127.0.0.1:9"]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("127.0.0.1:9"), "{error}");
    let node = Node::start("fake", &[]);
    let (code, _, error) = told(&quern(&["policy", "record", "--admin", &node.admin]));
    assert_eq!(code, 1, "{error}");
    assert!(error.contains("recording.folder is not set"), "{error}");
    let (code, _, error) = told(&quern(&["serve", "--set", "recording.from_start=true"]));
    assert_eq!(code, 64, "{error}");
    assert!(error.contains("recording.from_start"), "{error}");
}
