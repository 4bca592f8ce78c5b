//! A node with places for policies, and what is loaded into them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use quern::policies::{Place, Policies};
use quern_extensions::{Cache, EngineSettings, Settings};
use serde_json::{Value, json};

use crate::guests::{Guest, lenient};
use crate::support::{Options, Reply, Server, start};

/// A policy of `extensions/policies` that was built for WebAssembly; says loudly
/// where there is none.
pub fn built(name: &str) -> Option<PathBuf> {
    let beside = || {
        // target/release/deps/THIS
        let exe = std::env::current_exe().unwrap();
        exe.ancestors().nth(3).unwrap().join("guests")
    };
    let folder = std::env::var_os("GUESTS_DIR").map_or_else(beside, PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    if !path.exists() {
        eprintln!("SKIPPED: {} is not there; `make guests` builds it", path.display());
        return None;
    }
    Some(path)
}

/// A place that forgives everything, so that what a policy does shows; with the
/// operator's settings for it.
pub fn place(file: Option<&Path>, config: &[(&str, &str)]) -> Place {
    let config = config.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    place_with(Settings { config: config.collect(), ..patient() }, file)
}

pub fn place_with(settings: Settings, file: Option<&Path>) -> Place {
    Place { settings, file: file.map(Path::to_owned), watch: false }
}

/// Deadlines that a good guest keeps on any machine.
fn patient() -> Settings {
    let mut settings = lenient("main");
    let long = Duration::from_secs(2);
    settings.deadlines.scheduler = long;
    settings.deadlines.admission = long;
    settings.deadlines.batcher = long;
    settings.deadlines.feedback = long;
    settings
}

/// Policies that leave nothing on the disk.
pub fn policies(places: &[Place]) -> Policies {
    Policies::start_on(&EngineSettings { cache: Cache::Off, ..EngineSettings::default() }, places).unwrap()
}

pub async fn serve(place: Place) -> Server {
    start(Options { policies: Some(policies(&[place])), ..Options::default() }).await
}

/// Hands a guest to the operators' endpoint.
pub async fn load(server: &Server, guest: &Guest) -> Reply {
    load_bytes(server, guest.module()).await
}

pub async fn load_bytes(server: &Server, wasm: Vec<u8>) -> Reply {
    let url = server.admin_url("/v1/policies/main/load");
    let request = server.client.post(url).header("content-type", "application/wasm").body(wasm);
    Reply::of(request.send().await.unwrap()).await
}

pub async fn unload(server: &Server) {
    let url = server.admin_url("/v1/policies/main");
    Reply::of(server.client.delete(url).send().await.unwrap()).await.ok();
}

/// What operators see of the place.
pub async fn status(server: &Server) -> Value {
    server.get(server.admin_url("/v1/policies/main")).await.ok()
}

/// How often the serving version's hook came to this verdict.
pub fn verdicts(status: &Value, hook: &str, verdict: &str) -> u64 {
    let calls = status["serving"]["calls"].as_array().unwrap();
    let hook = calls.iter().find(|calls| calls["hook"] == hook).unwrap();
    hook["verdicts"].get(verdict).unwrap_or(&json!(0)).as_u64().unwrap()
}
