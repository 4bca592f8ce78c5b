//! Guessing ahead changes no answer: the same requests to nodes that differ in
//! where their guesses come from, on llama.cpp and a tiny random model.

use serde_json::{Value, json};

use crate::node::{Node, tiny_model};

/// Prompts that repeat themselves, so that there is something to look up.
fn requests() -> Vec<Value> {
    let prompt =
        |text: &str| json!({ "model": "tiny", "prompt": text.repeat(6), "max_tokens": 48, "temperature": 0 });
    let mut requests: Vec<Value> =
        ["one two three ", "fn main() { } ", "a", "the cat sat on the mat. "].map(prompt).into();
    let mut drawn = prompt("x y z ");
    // A seed draws the same numbers for the same tokens, guessed or not.
    (drawn["temperature"], drawn["seed"]) = (json!(0.8), json!(11));
    requests.push(drawn);
    requests
}

/// What a node answers, and how many tokens it guessed and kept.
async fn answers(more: &[&str]) -> (Vec<String>, [u64; 2]) {
    let engine =
        ["--kv-capacity", "1024", "--max-sequences", "4", "--threads", "1", "--threads-prefill", "1"];
    // Several rows are added up in another order than one; 16-bit keys and values make enough of that to
    // turn a draw.
    let exact = ["--kv-type", "f32"];
    let node = Node::start("llama", &[engine.as_slice(), &exact, more].concat());
    let client = reqwest::Client::new();
    let mut texts = Vec::new();
    for request in requests() {
        let answer =
            client.post(format!("{}/v1/completions", node.public)).json(&request).send().await.unwrap();
        let answer: Value = answer.json().await.unwrap();
        texts.push(answer["choices"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned());
    }
    let metrics = reqwest::get(format!("{}/metrics", node.admin)).await.unwrap().text().await.unwrap();
    let count = |name: &str| {
        let lines = metrics.lines().filter_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        lines.sum::<f64>() as u64
    };
    let counts = ["quern_speculation_drafted_tokens_total", "quern_speculation_accepted_tokens_total"];
    (texts, counts.map(count))
}

#[tokio::test]
async fn answers_are_the_same_with_and_without_guesses() {
    let (plain, [guessed, _]) = answers(&[]).await;
    assert_eq!(guessed, 0);
    assert!(plain.iter().any(|text| text.len() > 20), "{plain:?}");

    let (looked_up, [guessed, kept]) = answers(&["--speculation", "lookup"]).await;
    assert_eq!(plain, looked_up);
    assert!(guessed > 0 && kept > 0, "{kept} of {guessed} guesses kept");

    // The model itself is the best guesser: what it says with one row it says with several.
    let (_dir, draft) = tiny_model();
    let (drafted, [guessed, kept]) =
        answers(&["--speculation", "draft", "--draft-model", draft.to_str().unwrap()]).await;
    assert_eq!(plain, drafted);
    assert!(guessed > 0 && kept * 2 > guessed, "{kept} of {guessed} guesses kept");
}
