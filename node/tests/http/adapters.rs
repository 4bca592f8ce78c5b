//! Adapters as clients and operators meet them.

use std::fs;
use std::path::Path;

use futures_util::future::join_all;
use quern::adapters::{self, Registry};
use quern_scheduler::SchedulerConfig;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;

use crate::peft::{Peft, weights_of};
use crate::support::{MODEL, Options, Reply, Server, completion, long_chat, soon, start, until, user};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// A node for adapters, and a folder for their files.
async fn server() -> (Server, TempDir) {
    let scheduler = SchedulerConfig { check_invariants: true, max_adapters: 2, ..SchedulerConfig::default() };
    let settings = adapters::Settings { max_resident: 2, ..adapters::Settings::default() };
    let server = start(Options { scheduler, adapters: settings, ..Options::default() }).await;
    (server, tempfile::tempdir().unwrap())
}

fn registry(server: &Server) -> &Registry {
    server.node.models()[0].adapters.as_ref().unwrap()
}

async fn order(server: &Server, what: &str, body: Value) -> Reply {
    let request = server.client.post(server.admin_url(what)).json(&body);
    Reply::of(soon(request.send()).await.unwrap()).await
}

/// Loads an adapter with these numbers, and gives back its generation.
async fn load(server: &Server, dir: &Path, name: &str, seed: u32) -> u64 {
    let path = Peft::new(seed).write(&dir.join(format!("{name}-{seed}")));
    let body = json!({"lora_name": name, "lora_path": path, "load_inplace": true});
    order(server, "/v1/load_lora_adapter", body).await.ok()["generation"].as_u64().unwrap()
}

/// What a name's present generation says after a prompt.
async fn expected(server: &Server, name: &str, prompt: &str, num_new: usize) -> String {
    let id = registry(server).get(name).unwrap().version.id;
    let tokens = server.tokens(json!({"prompt": prompt, "model": name})).await;
    server.expected_with(id, &tokens, num_new)
}

/// A completion without temperature.
async fn ask(server: &Server, name: &str, prompt: &str) -> Value {
    let body = json!({"model": name, "prompt": prompt, "max_tokens": 8, "temperature": 0});
    server.post(COMPLETIONS, &body).await.ok()
}

fn text(body: &Value) -> &str {
    body["choices"][0]["text"].as_str().unwrap()
}

fn cached(body: &Value) -> u64 {
    body["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
}

#[tokio::test]
async fn a_request_names_an_adapter_like_a_model() {
    let (server, dir) = server().await;
    assert_eq!(load(&server, dir.path(), "a", 1).await, 1);
    load(&server, dir.path(), "org/b", 2).await;
    let list = server.get(server.url("/v1/models")).await.ok();
    let ids: Vec<&str> =
        list["data"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [MODEL, "a", "org/b"]);
    assert_eq!((&list["data"][1]["parent"], &list["data"][0]["parent"]), (&json!(MODEL), &Value::Null));
    assert!(list["data"][1]["root"].as_str().unwrap().ends_with("a-1"), "{list}");
    let one = server.get(server.url("/v1/models/org/b")).await.ok();
    assert_eq!(one, list["data"][2]);

    let mut texts = Vec::new();
    for name in ["a", "org/b"] {
        let body = ask(&server, name, "hello there").await;
        assert_eq!(body["model"], name);
        assert_eq!(text(&body), expected(&server, name, "hello there", 8).await);
        texts.push(text(&body).to_owned());
    }
    let base = ask(&server, MODEL, "hello there").await;
    assert!(!texts.contains(&text(&base).to_owned()), "the base says something else");
    let chat = json!({"model": "a", "messages": user("hi"), "max_tokens": 2, "stream": true});
    let chunks = server.chunks(CHAT, chat).await;
    assert!(chunks.iter().all(|chunk| chunk["model"] == "a"), "{chunks:?}");
    let embedding = |name: &str| json!({"model": name, "input": "hello"});
    let of_base = server.post("/v1/embeddings", &embedding(MODEL)).await.ok();
    let of_a = server.post("/v1/embeddings", &embedding("a")).await.ok();
    assert_eq!(of_a["model"], "a");
    assert_ne!(of_base["data"], of_a["data"]);
    server.post(CHAT, &json!({"model": "c", "messages": user("hi")})).await.error(
        404,
        Some("model"),
        Some("model_not_found"),
    );
}

/// Would see state that one adapter, generation or the base computed used by another:
/// the fake engine's words follow from each token and the adapter that computed it.
#[tokio::test]
async fn prefixes_are_shared_within_a_generation_and_never_beyond() {
    let (server, dir) = server().await;
    for name in ["a", "b"] {
        load(&server, dir.path(), name, 1).await;
    }
    let prompt = "the same long beginning of every prompt that there is";
    for name in [MODEL, "a", "b"] {
        let first = ask(&server, name, prompt).await;
        assert_eq!(cached(&first), 0, "{name} has computed nothing yet");
        let again = ask(&server, name, prompt).await;
        assert!(cached(&again) > 0, "{name} has computed this");
        assert_eq!(text(&first), text(&again));
        if name != MODEL {
            assert_eq!(text(&first), expected(&server, name, prompt, 8).await);
        }
    }
    // The same bytes, but not the same generation.
    assert_eq!(load(&server, dir.path(), "a", 1).await, 2);
    let anew = ask(&server, "a", prompt).await;
    assert_eq!((cached(&anew), text(&anew)), (0, &*expected(&server, "a", prompt, 8).await));
}

#[tokio::test]
async fn changes_say_which_generation_they_mean() {
    let (server, dir) = server().await;
    let path = Peft::new(1).write(&dir.path().join("a"));
    let body = |more: Value| {
        let mut body = json!({"lora_name": "a", "lora_path": path});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        body
    };
    let load = |more: Value| order(&server, "/v1/load_lora_adapter", body(more));
    load(json!({"expected_generation": 1})).await.error(409, None, Some("generation_mismatch"));
    assert_eq!(load(json!({"expected_generation": 0})).await.ok()["generation"], 1);
    load(json!({})).await.error(400, None, Some("already_loaded"));
    let in_place = |expected: u64| json!({"load_inplace": true, "expected_generation": expected});
    assert_eq!(load(in_place(1)).await.ok()["generation"], 2);
    let told = load(in_place(1)).await;
    assert!(told.error(409, None, Some("generation_mismatch")).contains("at generation 2, not 1"));
    let unload = |more: Value| {
        let mut body = json!({"lora_name": "a"});
        more.as_object().unwrap().iter().for_each(|(name, value)| body[name] = value.clone());
        order(&server, "/v1/unload_lora_adapter", body)
    };
    unload(json!({"expected_generation": 1})).await.error(409, None, Some("generation_mismatch"));
    assert_eq!(unload(json!({"expected_generation": 2})).await.ok()["status"], "unloaded");
    unload(json!({})).await.error(404, None, Some("not_loaded"));
    load(json!({"lora_nam": "b"})).await.error(400, None, Some("invalid_body"));
    let pinned = load(json!({"pin": true})).await.ok();
    assert_eq!(pinned["generation"], 1);
    let all = server.get(server.admin_url("/v1/lora_adapters")).await.ok();
    assert_eq!((&all["adapters"][0]["pinned"], &all["adapters"][0]["tier"]), (&json!(true), &json!("disk")));
    let other = json!({"lora_name": "b", "lora_path": path, "pin": true});
    order(&server, "/v1/load_lora_adapter", other).await.error(409, None, Some("too_many_pinned"));
    let base = json!({"lora_name": MODEL, "lora_path": path});
    order(&server, "/v1/load_lora_adapter", base).await.error(400, None, Some("name_of_base_model"));
    let spaced = json!({"lora_name": "a b", "lora_path": path});
    order(&server, "/v1/load_lora_adapter", spaced).await.error(400, None, Some("bad_name"));
}

/// What an adapter says in so many tokens, none of which ends the answer.
async fn whole(server: &Server, name: &str, num_tokens: u32) -> String {
    let mut body = long_chat(num_tokens, json!({"temperature": 0}));
    body["model"] = json!(name);
    let answer = server.post(CHAT, &body).await.ok();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

/// A request for so many tokens, begun and held back in its first step.
async fn begin(server: &Server, name: &str, num_tokens: u32) -> JoinHandle<Reply> {
    let mut body = long_chat(num_tokens, json!({"temperature": 0}));
    body["model"] = json!(name);
    server.gate.close();
    let request = server.client.post(server.url(CHAT)).json(&body);
    let begun = tokio::spawn(async move { Reply::of(request.send().await.unwrap()).await });
    server.held_back().await;
    begun
}

/// What came of it.
async fn finish(begun: JoinHandle<Reply>) -> String {
    let answer = soon(begun).await.unwrap().ok();
    answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn who_began_with_a_generation_ends_with_it() {
    let (server, dir) = server().await;
    load(&server, dir.path(), "a", 1).await;
    let said_by_first = whole(&server, "a", 400).await;
    let begun = begin(&server, "a", 400).await;
    assert_eq!(load(&server, dir.path(), "a", 2).await, 2);
    server.gate.open();
    let (first, second) = tokio::join!(finish(begun), whole(&server, "a", 400));
    assert_eq!(first, said_by_first);
    assert_eq!(second, whole(&server, "a", 400).await);
    assert_ne!(first, second);
    // Nobody has the first any more.
    until(|| registry(&server).in_work().num_resident == 1).await;
}

#[tokio::test]
async fn unloading_waits_for_those_who_use_it() {
    let (server, dir) = server().await;
    load(&server, dir.path(), "a", 1).await;
    let said_before = whole(&server, "a", 300).await;
    let begun = begin(&server, "a", 300).await;
    let unload = server.client.post(server.admin_url("/v1/unload_lora_adapter"));
    let unload = tokio::spawn(unload.json(&json!({"lora_name": "a"})).send());
    until(|| !registry(&server).has("a")).await;
    server.post(CHAT, &json!({"model": "a", "messages": user("hi")})).await.error(
        404,
        Some("model"),
        Some("model_not_found"),
    );
    assert!(!unload.is_finished());
    server.gate.open();
    assert_eq!(finish(begun).await, said_before);
    let told = Reply::of(soon(unload).await.unwrap().unwrap()).await.ok();
    assert_eq!(told, json!({"status": "unloaded", "lora_name": "a"}));
    until(|| registry(&server).in_work().num_resident == 0).await;
    assert_eq!(registry(&server).memory_bytes(), 0);
}

#[tokio::test]
async fn whatever_is_broken_has_its_own_error_and_the_node_serves_on() {
    let (server, dir) = server().await;
    let folder = |name: &str| dir.path().join(name);
    let no_config = Peft::new(1).write(&folder("no-config"));
    fs::remove_file(no_config.join("adapter_config.json")).unwrap();
    let mut rank = Peft::new(1);
    rank.config["r"] = json!(8);
    let mut target = Peft::new(1);
    target.config["target_modules"] = json!(["q_proj", "k_proj"]);
    let mut other_base = Peft::new(1);
    other_base.hidden = 320;
    let mut labels = Peft::classifier(1);
    labels.labels = Some(json!({"id2label": {"0": "no", "1": "yes", "2": "perhaps"}}));
    let cut = Peft::new(1).write(&folder("cut"));
    let bytes = fs::read(weights_of(&cut)).unwrap();
    fs::write(weights_of(&cut), &bytes[..bytes.len() - 100]).unwrap();
    let nan = Peft::new(1).write(&folder("nan"));
    let mut bytes = bytes;
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(weights_of(&nan), &bytes).unwrap();
    fs::write(folder("text.gguf"), b"no model at all").unwrap();
    let cases = [
        (folder("nowhere"), "no_such_path"),
        (no_config, "no_config"),
        (rank.write(&folder("rank")), "config_and_tensors_disagree"),
        (target.write(&folder("target")), "config_and_tensors_disagree"),
        (other_base.write(&folder("other-base")), "other_base_model"),
        (labels.write(&folder("labels")), "bad_labels"),
        (cut, "bad_weights"),
        (nan, "not_finite"),
        (folder("text.gguf"), "bad_weights"),
    ];
    for (path, code) in &cases {
        let reply =
            order(&server, "/v1/load_lora_adapter", json!({"lora_name": "a", "lora_path": path})).await;
        let told = reply.error(400, None, Some(code));
        assert!(told.contains(&*path.to_string_lossy()), "{told}");
    }
    assert!(!registry(&server).has("a"));
    // A reload that fails leaves what serves.
    load(&server, dir.path(), "a", 1).await;
    let body = json!({"lora_name": "a", "lora_path": cases[1].0, "load_inplace": true});
    order(&server, "/v1/load_lora_adapter", body).await.error(400, None, Some("no_config"));
    assert_eq!(text(&ask(&server, "a", "x y").await), expected(&server, "a", "x y", 8).await);
    let all = server.get(server.admin_url("/v1/lora_adapters")).await.ok();
    assert_eq!(all["adapters"][0]["generation"], 1);
    assert!(all["adapters"][0]["last_error"].as_str().unwrap().contains("adapter_config.json"), "{all}");
    server.post(COMPLETIONS, &completion(json!("a"), json!({"max_tokens": 1}))).await.ok();
}

#[tokio::test]
async fn files_that_go_or_change_while_an_adapter_is_served() {
    let (server, dir) = server().await;
    for name in ["gone", "cut", "changed", "used"] {
        load(&server, dir.path(), name, 1).await;
    }
    let folder = |name: &str| dir.path().join(format!("{name}-1"));
    let used = text(&ask(&server, "used", "x y").await).to_owned();
    for name in ["gone", "used"] {
        fs::remove_dir_all(folder(name)).unwrap();
    }
    fs::OpenOptions::new().write(true).open(weights_of(&folder("cut"))).unwrap().set_len(1000).unwrap();
    Peft::new(9).write(&folder("changed"));
    for (name, told) in [("gone", "No such file"), ("cut", "has changed"), ("changed", "has changed")] {
        let body = json!({"model": name, "prompt": "x y", "max_tokens": 8});
        let reply = server.post(COMPLETIONS, &body).await;
        let message = reply.error(503, Some("model"), Some("adapter_unavailable"));
        assert!(message.contains(name) && message.contains(told), "{message}");
    }
    // What was brought to memory before stays good.
    assert_eq!(text(&ask(&server, "used", "x y").await), used);
    let body = json!({"lora_name": "changed", "lora_path": folder("changed"), "load_inplace": true});
    assert_eq!(order(&server, "/v1/load_lora_adapter", body).await.ok()["generation"], 2);
    assert_eq!(text(&ask(&server, "changed", "x y").await), expected(&server, "changed", "x y", 8).await);
}

async fn says_its_own(server: &Server, name: &str) {
    assert_eq!(text(&ask(server, name, "x y").await), expected(server, name, "x y", 8).await);
}

/// Memory keeps no copies at all, and the engine is brought what leases hold.
#[tokio::test]
async fn adapters_take_turns_where_memory_keeps_none() {
    let scheduler = SchedulerConfig { check_invariants: true, max_adapters: 2, ..SchedulerConfig::default() };
    let settings =
        adapters::Settings { max_resident: 2, max_memory_bytes: 0, ..adapters::Settings::default() };
    let server = start(Options { scheduler, adapters: settings, ..Options::default() }).await;
    let dir = tempfile::tempdir().unwrap();
    let names = ["a", "b", "c", "d"];
    for (name, seed) in names.into_iter().zip(1..) {
        load(&server, dir.path(), name, seed).await;
    }
    for _ in 0..3 {
        let twice = [names, names].concat().into_iter();
        join_all(twice.map(|name| says_its_own(&server, name))).await;
    }
    assert_eq!(registry(&server).memory_bytes(), 0);
}

#[tokio::test]
async fn a_thousand_loads_at_once_are_all_served() {
    let (server, dir) = server().await;
    let path = Peft::new(1).write(&dir.path().join("one"));
    let loads = (0..1000).map(|number| {
        let order = adapters::Order {
            name: format!("copy-{number}"),
            path: path.clone(),
            in_place: false,
            expected_generation: None,
            pin: None,
            origin: adapters::Origin::Operator,
        };
        registry(&server).load(order)
    });
    let others = (0..20).map(|_| ask(&server, MODEL, "meanwhile"));
    let (loaded, others) = soon(async { tokio::join!(join_all(loads), join_all(others)) }).await;
    assert!(loaded.iter().all(Result::is_ok));
    assert_eq!(others.len(), 20);
    let list = server.get(server.url("/v1/models")).await.ok();
    assert_eq!(list["data"].as_array().unwrap().len(), 1001);
    let names: Vec<String> = (0..1000).step_by(83).map(|number| format!("copy-{number}")).collect();
    let asked = join_all(names.iter().map(|name| ask(&server, name, "x y"))).await;
    for (name, body) in names.iter().zip(&asked) {
        assert_eq!(text(body), expected(&server, name, "x y", 8).await);
    }
    until(|| registry(&server).in_work().num_resident == 2).await;
    let more = json!({"lora_name": "25 more", "lora_path": path});
    order(&server, "/v1/load_lora_adapter", more).await.error(400, None, Some("bad_name"));
    for number in 0..24 {
        let more = json!({"lora_name": format!("more-{number}"), "lora_path": path});
        order(&server, "/v1/load_lora_adapter", more).await.ok();
    }
    let last = json!({"lora_name": "last", "lora_path": path});
    order(&server, "/v1/load_lora_adapter", last).await.error(409, None, Some("too_many_adapters"));
}

#[tokio::test]
async fn an_adapter_with_a_head_says_so() {
    let (server, dir) = server().await;
    let path = Peft::classifier(3).write(&dir.path().join("c"));
    order(&server, "/v1/load_lora_adapter", json!({"lora_name": "c", "lora_path": path})).await.ok();
    let all = server.get(server.admin_url("/v1/lora_adapters")).await.ok();
    let one = &all["adapters"][0];
    assert_eq!(
        (&one["task"], &one["labels"], &one["rank"]),
        (&json!("sequence_classification"), &json!(2), &json!(4))
    );
    let served = quern::serving::Served::find(server.node.models(), "c").await.unwrap().unwrap();
    assert_eq!(served.head().unwrap().labels, ["no", "yes"]);
    assert_eq!((served.model_id(), served.adapter()), ("c", Some("c")));
    let base = quern::serving::Served::find(server.node.models(), MODEL).await.unwrap().unwrap();
    assert!(base.head().is_none() && base.adapter().is_none());
    drop(served);
    assert_eq!(registry(&server).get("c").unwrap().version.in_use(), 0);
}
