//! Steps of a live node, recorded on demand and replayed.

use std::fs::File;
use std::path::Path;

use clap::Parser;
use quern::policies::recordings::Recordings;
use quern_policy_tools::record::{Judged, Reader, Recording, Step};
use quern_policy_tools::{PolicyCommand, ReplayArgs, replay};
use serde_json::{Value, json};

use crate::setting::{built, place, policies};
use crate::support::{Options, Reply, Server, long_chat, start, until};

const CHAT: &str = "/v1/chat/completions";

/// The steps of a recording that was ended, once its file is whole.
pub fn settled(recording: &Recording) -> Vec<Step> {
    while !recording.counts.has_ended() {
        std::thread::yield_now();
    }
    Reader::new(File::open(&recording.path).unwrap()).unwrap().map(Result::unwrap).collect()
}

#[derive(Parser)]
struct Words {
    #[command(subcommand)]
    command: PolicyCommand,
}

fn replay_args(recording: &str, policy: &str) -> ReplayArgs {
    match Words::parse_from(["quern", "replay", recording, "--policy", policy]).command {
        PolicyCommand::Replay(args) => args,
        other => panic!("{other:?}"),
    }
}

async fn recording_node(folder: &Path, policy: Option<&Path>) -> Server {
    let recordings = Recordings::in_folder(folder, 1 << 20).unwrap();
    let policies = policies(&[place(policy, &[])]).recording(recordings);
    start(Options { policies: Some(policies), ..Options::default() }).await
}

async fn ask(server: &Server, method: reqwest::Method, body: Value) -> Reply {
    let url = server.admin_url("/v1/recording");
    Reply::of(server.client.request(method, url).json(&body).send().await.unwrap()).await
}

async fn state(server: &Server) -> Value {
    server.get(server.admin_url("/v1/recording")).await.ok()
}

/// A recording of some steps, made and ended over HTTP.
async fn recorded(server: &Server) -> String {
    assert_eq!(server.get(server.admin_url("/v1/recording")).await.status, 404);
    let begun = ask(server, reqwest::Method::POST, json!({"name": "live.rec"})).await.ok();
    assert_eq!(begun["running"], true);
    let asks = (0..6).map(|_| server.client.post(server.url(CHAT)).json(&long_chat(15, json!({}))).send());
    for asked in asks.map(tokio::spawn).collect::<Vec<_>>() {
        assert_eq!(asked.await.unwrap().unwrap().status(), 200);
    }
    let ended = ask(server, reqwest::Method::DELETE, json!({})).await.ok();
    let model = &server.node.models()[0];
    until(|| model.workers.is_idle()).await;
    while state(server).await["running"] == true {}
    let state = state(server).await;
    assert!(state["steps"].as_u64().unwrap() >= 15, "{state}");
    assert_eq!((&state["failed"], &state["full"]), (&json!(false), &json!(false)));
    ended["file"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_recording_is_begun_ended_fetched_and_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let server = recording_node(folder.path(), None).await;
    let file = recorded(&server).await;
    assert_eq!(Path::new(&file), folder.path().join("live.rec"));
    let fetched = server.client.get(server.admin_url("/v1/recording/file")).send().await.unwrap();
    assert_eq!(fetched.bytes().await.unwrap(), std::fs::read(&file).unwrap());
    // Nobody but the built-in policy planned, and it would plan the same again.
    let compared = replay(&replay_args(&file, "builtin")).unwrap();
    assert!(compared.steps >= 15 && compared.rest.is_none(), "{compared:?}");
    assert_eq!((compared.different, compared.none, compared.invalid), (0, 0, 0), "{compared:?}");

    // One file at a time, each under a new name.
    ask(&server, reqwest::Method::POST, json!({"name": "live.rec"})).await.refused(409);
    ask(&server, reqwest::Method::POST, json!({"name": "../live.rec"})).await.refused(400);
    ask(&server, reqwest::Method::POST, json!({"path": "/tmp/live.rec"})).await.refused(400);
    ask(&server, reqwest::Method::POST, json!({"steps": 0})).await.refused(400);
    ask(&server, reqwest::Method::DELETE, json!({})).await.refused(409);
    ask(&server, reqwest::Method::POST, json!({})).await.ok();
    ask(&server, reqwest::Method::POST, json!({})).await.refused(409);
}

#[tokio::test]
async fn a_policy_replays_what_it_planned() {
    let Some(file) = built("fcfs") else { return };
    let folder = tempfile::tempdir().unwrap();
    let server = recording_node(folder.path(), Some(&file)).await;
    let recording = recorded(&server).await;
    let compared = replay(&replay_args(&recording, file.to_str().unwrap())).unwrap();
    assert!(compared.steps >= 15 && compared.same > 0, "{compared:?}");
    assert_eq!((compared.different, compared.none, compared.invalid), (0, 0, 0), "{compared:?}");
    let steps: Vec<Step> =
        Reader::new(File::open(&recording).unwrap()).unwrap().map(Result::unwrap).collect();
    assert!(steps.iter().all(|step| step.judged == Judged::InForce));
}

#[tokio::test]
async fn a_recording_of_so_many_steps_ends_by_itself() {
    let folder = tempfile::tempdir().unwrap();
    let server = recording_node(folder.path(), None).await;
    ask(&server, reqwest::Method::POST, json!({"steps": 7})).await.ok();
    server.post(CHAT, &long_chat(20, json!({}))).await.ok();
    while state(&server).await["running"] == true {}
    assert_eq!(state(&server).await["steps"], 7);
}

#[tokio::test]
async fn without_a_folder_nothing_is_recorded() {
    let policies = Some(policies(&[place(None, &[])]));
    let server = start(Options { policies, ..Options::default() }).await;
    let reply = ask(&server, reqwest::Method::POST, json!({})).await;
    assert!(reply.refused(409).contains("recording.folder"));
}

impl Reply {
    /// Why operators are refused.
    fn refused(&self, status: u16) -> &str {
        assert_eq!(self.status, status, "{}", self.body);
        self.body["error"].as_str().unwrap()
    }
}
