//! `/v1/classify`: by a head, and by how likely labels are as answers.

use std::sync::Arc;

use quern::http::Settings;
use quern::serving::{Configured, LabelTask, Wording};
use quern_adapters::Head;
use quern_engine::AdapterId;
use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_scheduler::SchedulerConfig;
use quern_text::Special;
use serde_json::{Value, json};

use crate::golden;
use crate::support::{MODEL, Options, Server, TEXT, chat, soon, start};

const PATH: &str = "/v1/classify";

const LABELS: [&str; 5] = ["credit_limit", "credit_limit_change", "transfer", "pay", "pin_change"];

fn owned(labels: &[&str]) -> Vec<String> {
    labels.iter().map(|&label| label.to_owned()).collect()
}

/// A head for the fake engine's hidden states.
fn head() -> Arc<Head> {
    let hidden = FakeConfig::default().capabilities.hidden_size;
    let weight = (0..LABELS.len() * hidden).map(|idx| ((idx * 37 % 23) as f32 - 11.0) / 40.0).collect();
    let bias = Some(vec![0.1, 0.0, -0.1, 0.2, 0.0]);
    Arc::new(Head { weight, bias, labels: owned(&LABELS), hidden: hidden as u64 })
}

fn by_head() -> Configured {
    Configured { name: "intents".to_owned(), ..Configured::default() }
}

fn messages() -> Wording {
    let message = |role: &str, content: &str| (role.to_owned(), content.to_owned());
    Wording::Messages(vec![message("system", "Name the intent."), message("user", "{text}")])
}

fn by_labels(wording: Wording, end_token: Option<bool>) -> Configured {
    let labels = owned(&LABELS);
    let task =
        LabelTask::new(&TEXT.tokenizer, Some(&TEXT.template), wording, labels, end_token, 0.0).unwrap();
    Configured { task: Some(Arc::new(task)), ..by_head() }
}

async fn serving(classifiers: Vec<Configured>) -> Server {
    let classifiers = classifiers.into_iter().map(Arc::new).collect();
    start(Options { classifiers, head: Some(head()), ..Options::default() }).await
}

fn ask(input: Value, more: Value) -> Value {
    let mut body = json!({"model": "intents", "input": input});
    more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
    body
}

fn plain(text: &str) -> Vec<u32> {
    TEXT.tokenizer.encode_prompt(text, Special::AsText).unwrap()
}

fn probs(object: &Value) -> Vec<f64> {
    object["probs"].as_array().unwrap().iter().map(|prob| prob.as_f64().unwrap()).collect()
}

fn softmax(scores: &[f64]) -> Vec<f64> {
    let weights: Vec<f64> = scores.iter().map(|score| score.exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.into_iter().map(|weight| weight / total).collect()
}

fn assert_close(found: &[f64], wanted: &[f64]) {
    assert_eq!(found.len(), wanted.len());
    for (one, other) in found.iter().zip(wanted) {
        assert!((one - other).abs() < 1e-4, "{found:?} is not {wanted:?}");
    }
}

/// What the head says of a text, computed here.
fn expected_by_head(server: &Server, text: &str) -> Vec<f64> {
    let hidden = FakeEngine::hidden_after(&server.engine, AdapterId::BASE, &plain(text));
    let head = head();
    let rows = head.weight.chunks_exact(hidden.len()).zip(head.bias.as_ref().unwrap());
    let dot = |row: &[f32]| row.iter().zip(&hidden).map(|(w, h)| f64::from(w * h)).sum::<f64>();
    softmax(&rows.map(|(row, bias)| dot(row) + f64::from(*bias)).collect::<Vec<f64>>())
}

/// What the model says of labels behind a prompt, one after the other.
fn expected_by_labels(server: &Server, prompt: &[u32], labels: &[Vec<u32>]) -> Vec<f64> {
    let score = |label: &Vec<u32>| {
        let (mut tokens, mut sum) = (prompt.to_vec(), 0.0);
        for &token in label {
            let logits = FakeEngine::logits_after(&server.engine, AdapterId::BASE, &tokens);
            let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
            sum += f64::from(logits[token as usize]) - total.ln();
            tokens.push(token);
        }
        sum
    };
    softmax(&labels.iter().map(score).collect::<Vec<f64>>())
}

#[tokio::test]
async fn a_head_classifies_one_text_and_many() {
    let server = serving(vec![by_head()]).await;
    let many = ["move my money", "what is left", "move my money"];
    let body = server.post(PATH, &ask(json!(many), json!({}))).await.ok();
    for (text, object) in many.iter().zip(body["data"].as_array().unwrap()) {
        let wanted = expected_by_head(&server, text);
        assert_close(&probs(object), &wanted);
        let best = (0..wanted.len()).max_by(|&a, &b| wanted[a].total_cmp(&wanted[b])).unwrap();
        assert_eq!(object["label"], LABELS[best]);
    }
    golden::check("classify", &body);
    let one = server.post("/classify", &ask(json!("move my money"), json!({}))).await.ok();
    assert_eq!(one["data"][0], body["data"][0]);
    assert_eq!(one["usage"]["prompt_tokens"], plain("move my money").len());
    // Tokens are taken as they are.
    let tokens = server.post(PATH, &ask(json!(plain("what is left")), json!({}))).await.ok();
    assert_eq!(tokens["data"][0]["probs"], body["data"][1]["probs"]);
}

#[tokio::test]
async fn names_of_control_tokens_stay_text() {
    let server = serving(vec![by_head()]).await;
    let text = "ignore this <|im_end|>";
    let body = server.post(PATH, &ask(json!(text), json!({}))).await.ok();
    assert_close(&probs(&body["data"][0]), &expected_by_head(&server, text));
    assert!(body["usage"]["prompt_tokens"].as_u64().unwrap() > 6);
}

#[tokio::test]
async fn labels_are_scored_as_answers() {
    let server = serving(vec![by_labels(messages(), None)]).await;
    let body = server.post(PATH, &ask(json!(["move my money", "raise it"]), json!({}))).await.ok();
    let end = TEXT.tokenizer.eos().unwrap();
    // One label is the beginning of another, so each ends with the token that ends answers.
    let label = |label: &&str| [TEXT.tokenizer.encode(label, Special::AsText).unwrap(), vec![end]].concat();
    let labels: Vec<Vec<u32>> = LABELS.iter().map(label).collect();
    for (text, object) in ["move my money", "raise it"].iter().zip(body["data"].as_array().unwrap()) {
        let mut messages = chat(text, json!({}));
        messages["messages"] =
            json!([{"role": "system", "content": "Name the intent."}, {"role": "user", "content": text}]);
        let prompt = server.tokens(messages).await;
        assert_close(&probs(object), &expected_by_labels(&server, &prompt, &labels));
        assert_eq!(object["num_classes"], LABELS.len());
    }
}

#[tokio::test]
async fn template_and_label_are_joined_as_the_model_would_see_them() {
    // The template ends inside of a word that every label goes on with.
    let wording = Wording::Plain("Sort this: {text}\nIntent: ".to_owned());
    let server = serving(vec![by_labels(wording, Some(false))]).await;
    let text = "raise <|im_end|> it";
    let body = server.post(PATH, &ask(json!(text), json!({}))).await.ok();
    let whole = |label: &&str| {
        let joined = format!("Sort this: {text}\nIntent: {label}");
        TEXT.tokenizer.encode_prompt(&joined, Special::AsText).unwrap()
    };
    let all: Vec<Vec<u32>> = LABELS.iter().map(whole).collect();
    let shared = (0..).find(|&idx| all.iter().any(|one| one.get(idx) != all[0].get(idx))).unwrap();
    let labels: Vec<Vec<u32>> = all.iter().map(|tokens| tokens[shared..].to_vec()).collect();
    let wanted = expected_by_labels(&server, &all[0][..shared], &labels);
    assert_close(&probs(&body["data"][0]), &wanted);
}

#[tokio::test]
async fn labels_of_a_text_without_end_token() {
    let server = serving(vec![by_labels(messages(), Some(false)), by_head_named("heads")]).await;
    let with_end = serving(vec![by_labels(messages(), Some(true))]).await;
    let ask = ask(json!("move my money"), json!({}));
    let (one, other) = (server.post(PATH, &ask).await.ok(), with_end.post(PATH, &ask).await.ok());
    assert_ne!(one["data"][0]["probs"], other["data"][0]["probs"]);
    let head = server.post(PATH, &json!({"model": "heads", "input": "move my money"})).await.ok();
    assert_close(&probs(&head["data"][0]), &expected_by_head(&server, "move my money"));
}

fn by_head_named(name: &str) -> Configured {
    Configured { name: name.to_owned(), ..by_head() }
}

#[tokio::test]
async fn top_labels_and_abstaining() {
    let classifier = Configured { abstain_below: 0.999, temperature: Some(2.0), ..by_head() };
    let server = serving(vec![classifier]).await;
    let body = server.post(PATH, &ask(json!("move my money"), json!({"top_k": 2}))).await.ok();
    let object = &body["data"][0];
    assert_eq!(object["label"], Value::Null);
    let top = object["top"].as_array().unwrap();
    assert_eq!(top.len(), 2);
    let best = probs(object).into_iter().fold(0.0, f64::max);
    assert_eq!(top[0]["prob"].as_f64(), Some(best));
    assert!(top[1]["prob"].as_f64() <= top[0]["prob"].as_f64());
    let sure = ask(json!("move my money"), json!({"abstain_below": 0.0, "top_k": 99}));
    let sure = server.post(PATH, &sure).await.ok();
    assert_eq!(sure["data"][0]["label"], top[0]["label"]);
    assert_eq!(sure["data"][0]["top"].as_array().unwrap().len(), LABELS.len());
    // Twice the temperature, half of the difference between two logarithms.
    let hot = probs(object);
    let cold = expected_by_head(&server, "move my money");
    assert!(((hot[0] / hot[1]).ln() * 2.0 - (cold[0] / cold[1]).ln()).abs() < 1e-3);
}

#[tokio::test]
async fn what_cannot_be_classified_is_named_and_the_node_serves_on() {
    let server =
        serving(vec![by_head(), Configured { name: "scored".into(), ..by_labels(messages(), None) }]).await;
    let long = "word ".repeat(4000);
    let cases: [(Value, Option<&str>, Option<&str>, &str); 12] = [
        (ask(json!(""), json!({})), Some("input"), Some("empty_text"), "input[0]"),
        (ask(json!(["one", ""]), json!({})), Some("input"), Some("empty_text"), "input[1]"),
        (ask(json!([]), json!({})), Some("input"), None, "empty"),
        (json!({"model": "intents"}), Some("input"), None, "input"),
        (ask(json!(vec!["a"; 10_000]), json!({})), Some("input"), Some("too_many_texts"), "1024 may be"),
        (ask(json!(["one", long]), json!({})), Some("input"), Some("context_length_exceeded"), "input[1]"),
        (
            json!({"model": "scored", "input": [long]}),
            Some("input"),
            Some("context_length_exceeded"),
            "input[0]",
        ),
        (json!({"model": "scored", "input": [[1, 2]]}), Some("input"), None, "no tokens"),
        (ask(json!([[999_999]]), json!({})), Some("input"), None, "999999"),
        (ask(json!("one"), json!({"top_k": 0})), Some("top_k"), None, "top_k"),
        (ask(json!("one"), json!({"abstain_below": 2})), Some("abstain_below"), None, "0 to 1"),
        (
            ask(json!("one"), json!({"activation": false})),
            Some("activation"),
            Some("unsupported_parameter"),
            "activation",
        ),
    ];
    for (body, param, code, part) in cases {
        let reply = server.post(PATH, &body).await;
        let message = reply.error(400, param, code);
        assert!(message.contains(part), "{part} is not in {message}");
    }
    // The model's own head serves under the model's name.
    server.post(PATH, &json!({"model": MODEL, "input": "one"})).await.ok();
    let unknown = server.post(PATH, &json!({"model": "other", "input": "one"})).await;
    unknown.error(404, Some("model"), Some("model_not_found"));
    server.post(PATH, &ask(json!("one"), json!({}))).await.ok();
}

#[tokio::test]
async fn many_texts_share_the_queue_and_leave_room_for_others() {
    let scheduler = SchedulerConfig { max_queued: 40, check_invariants: true, ..SchedulerConfig::default() };
    let settings = Settings::default();
    let classifiers = vec![Arc::new(by_head())];
    let server =
        start(Options { scheduler, settings, classifiers, head: Some(head()), ..Options::default() }).await;
    server.gate.close();
    let texts: Vec<String> = (0..500).map(|idx| format!("text {idx}")).collect();
    let body = ask(json!(texts), json!({}));
    let (many, other) = soon(async {
        let many = server.post(PATH, &body);
        let other = async {
            server.held_back().await;
            assert!(server.load().queued < 40, "{:?}", server.load());
            server.gate.open();
            server.post(PATH, &ask(json!("text 7"), json!({}))).await.ok()
        };
        tokio::join!(many, other)
    })
    .await;
    let many = many.ok();
    assert_eq!(many["data"].as_array().unwrap().len(), 500);
    for idx in [0, 31, 32, 499] {
        assert_eq!(many["data"][idx]["index"], idx);
        assert_close(&probs(&many["data"][idx]), &expected_by_head(&server, &texts[idx]));
    }
    assert_eq!(other["data"][0]["probs"], many["data"][7]["probs"]);
}

#[tokio::test]
async fn a_failed_step_fails_its_texts_and_nothing_else() {
    let classifiers = vec![Arc::new(by_head())];
    let failing =
        start(Options { fail_at_step: Some(0), classifiers, head: Some(head()), ..Options::default() }).await;
    let reply = failing.post(PATH, &ask(json!(["one", "two"]), json!({}))).await;
    reply.error(500, None, Some("engine_failed"));
    failing.post(PATH, &ask(json!("one"), json!({}))).await.ok();
}

#[tokio::test]
async fn a_classifier_that_does_not_fit_is_told_and_the_node_serves_on() {
    let other = Configured { name: "other".into(), labels: owned(&["pay", "transfer"]), ..by_head() };
    let gone = Configured { name: "gone".into(), adapter: Some("banking".into()), ..by_head() };
    let server = serving(vec![by_head(), other, gone]).await;
    for (name, part) in
        [("other", "there are 2 labels, and the head has 5"), ("gone", "`banking` is not loaded")]
    {
        let reply = server.post(PATH, &json!({"model": name, "input": "one"})).await;
        let message = reply.error(500, None, Some("classifier_unfit"));
        assert!(message.contains(part), "{part} is not in {message}");
    }
    server.post(PATH, &ask(json!("one"), json!({}))).await.ok();
    let list = server.get(server.url("/v1/models")).await.ok();
    assert_eq!(list["data"][1]["id"], "intents");

    let no_head = crate::support::server().await;
    let reply = no_head.post(PATH, &json!({"model": MODEL, "input": "one"})).await;
    reply.error(400, Some("model"), Some("not_a_classifier"));
}
