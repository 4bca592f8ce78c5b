//! Policies that take each other's place under load: whoever plans, the answers are the
//! same to the last token.

use quern_extensions::Settings;

use crate::load::{Load, node};
use crate::setting::{built, load_bytes, status, verdicts};

/// Swaps, of three policies by turns.
const SWAPS: usize = 24;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swapping_policies_changes_no_answer() {
    let names = ["edf", "tenant-fair", "fcfs"];
    let Some(files) = names.iter().map(|name| built(name)).collect::<Option<Vec<_>>>() else { return };
    let bytes: Vec<Vec<u8>> = files.iter().map(|file| std::fs::read(file).unwrap()).collect();
    let server = node(Settings::named("main"), None, false).await;
    let load = Load::begin(&server);
    let mut used = 0;
    for swap in 0..SWAPS {
        let reply = load_bytes(&server, bytes[swap % bytes.len()].clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        // Clients compare each answer with the one that there is without a policy.
        load.go_on(1).await;
        let status = status(&server).await;
        let serving = status["serving"]["name"].as_str().unwrap();
        assert_eq!(serving.strip_prefix("quern-policy-"), Some(names[swap % names.len()]));
        used += verdicts(&status, "scheduler", "used");
    }
    load.end().await;
    assert!(used > 0, "no policy ever planned");
}
