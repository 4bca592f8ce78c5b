//! The engine on our own kernels, as a node serves it.

use serde_json::{Value, json};

use crate::node::{Node, command, tiny_model, told};
use crate::peft::Peft;

async fn post(node: &Node, path: &str, body: &Value) -> Value {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.post(format!("{}{path}", node.public)).json(body).send().await.unwrap();
    assert_eq!(answer.status(), 200, "{body}");
    answer.json().await.unwrap()
}

#[tokio::test]
async fn our_kernels_serve_texts_adapters_and_embeddings() {
    let dir = tempfile::tempdir().unwrap();
    let adapter = format!("one={}", Peft::new(1).write(&dir.path().join("one")).display());
    let classifier = format!("two={}", Peft::classifier(2).write(&dir.path().join("two")).display());
    let mut args = vec!["--adapter", &adapter, "--adapter", &classifier];
    let keys = ["kv_capacity=512", "max_sequences=4", "max_rows=64", "max_outputs=8"];
    let keys = keys.map(|key| format!("engine.wgsl.{key}"));
    args.extend(keys.iter().flat_map(|key| ["--set", key]));
    let node = Node::start("wgsl", &args);
    let ask =
        |name: &str| json!({"model": name, "prompt": "fn main() {", "max_tokens": 12, "temperature": 0});
    let say = |body: &Value| body["choices"][0]["text"].as_str().unwrap().to_owned();
    let (base, adapted) = (ask("tiny"), ask("one"));
    let base_alone = say(&post(&node, "/v1/completions", &base).await);
    let adapted_alone = say(&post(&node, "/v1/completions", &adapted).await);
    assert_ne!(base_alone, adapted_alone);
    // In one batch each says what it says alone.
    let together =
        tokio::join!(post(&node, "/v1/completions", &adapted), post(&node, "/v1/completions", &base));
    assert_eq!((say(&together.0), say(&together.1)), (adapted_alone, base_alone));
    let embedded = post(&node, "/v1/embeddings", &json!({"model": "tiny", "input": "fn main() {"})).await;
    let vector = embedded["data"][0]["embedding"].as_array().unwrap();
    let squares: f64 = vector.iter().map(|value| value.as_f64().unwrap().powi(2)).sum();
    assert!((squares - 1.0).abs() < 1e-3, "an embedding is of length 1: {squares}");
    let classified = post(&node, "/v1/classify", &json!({"model": "two", "input": "fn main() {"})).await;
    assert!(["no", "yes"].contains(&classified["data"][0]["label"].as_str().unwrap()), "{classified}");
    node.signal("TERM");
    let (code, log) = node.end();
    assert_eq!(code, 0, "{log}");
}

#[test]
fn a_machine_without_a_driver_is_told_so() {
    let (_dir, model) = tiny_model();
    let mut command = command(&["serve", "--model", model.to_str().unwrap(), "--engine", "wgsl"]);
    command.args(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
    // Where the Vulkan loader looks for drivers.
    let none = "no-such-driver.json";
    let output = command.env("VK_ICD_FILENAMES", none).env("VK_DRIVER_FILES", none).output().unwrap();
    let (code, out, err) = told(&output);
    assert_eq!(code, 1, "{out}{err}");
    assert!(err.contains("a Vulkan driver is missing"), "{out}{err}");
}
