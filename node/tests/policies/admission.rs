//! The admission hook: accepted, changed, refused, and never in the way.

use std::time::Duration;

use quern::http::Settings;
use quern_extensions::Hook;
use serde_json::json;

use crate::guests::{ENDLESS, answer, guest};
use crate::setting::{built, load, place, place_with, policies, serve, status, unload, verdicts};
use crate::support::{Options, Reply, chat, long_chat, soon, start};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_token_bucket_refuses_whoever_had_enough() {
    let Some(file) = built("token-bucket") else { return };
    let settings = [("tokens-per-s", "10"), ("burst-tokens", "200"), ("tenant.shut.tokens-per-s", "0")];
    let server = serve(place(Some(&file), &settings)).await;
    let ask = |user: &str| long_chat(100, json!({"user": user}));
    server.post(CHAT, &ask("alice")).await.ok();
    let reply = server.post(CHAT, &ask("alice")).await;
    let message = reply.error(429, None, Some("quota_exceeded"));
    assert!(message.contains("your quota allows that in"), "{message}");
    // What is missing comes at 10 tokens a second, and some of it came meanwhile.
    let wait: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=20).contains(&wait), "{wait} s");
    // Before there is any stream, too.
    let mut streamed = ask("alice");
    streamed["stream"] = json!(true);
    server.post(CHAT, &streamed).await.error(429, None, Some("quota_exceeded"));

    // Others have buckets of their own.
    server.post(CHAT, &ask("bob")).await.ok();
    let never = server.post(CHAT, &ask("shut")).await;
    assert_eq!(never.error(429, None, Some("quota_exceeded")), "your quota allows no requests");
    assert_eq!(never.header("retry-after"), None, "there is no time after which to try again");
    assert_eq!(verdicts(&status(&server).await, "admission", "used"), 5);

    // Without the policy nobody is refused.
    unload(&server).await;
    server.post(CHAT, &ask("shut")).await.ok();
}

#[tokio::test]
async fn reasons_become_status_codes() {
    let server = serve(place(None, &[])).await;
    // ok, some, reject, the reason, some or no milliseconds, 5 bytes of message.
    for (reason, after, status, code, retry_after) in [
        (0, None, 429, "overloaded", None),
        (0, Some(90_000), 429, "overloaded", Some("90")),
        (1, Some(1), 429, "quota_exceeded", Some("1")),
        (2, None, 403, "forbidden", None),
        (3, Some(2_000), 403, "unservable", Some("2")),
    ] {
        let words = [0, 1, 1, reason, u32::from(after.is_some()), after.unwrap_or(0), 512, 5];
        load(&server, &guest().with(Hook::Admission, answer(&words))).await.ok();
        let reply = server.post(CHAT, &chat("a", json!({}))).await;
        assert_eq!(reply.error(status, None, Some(code)), "guest");
        assert_eq!(reply.header("retry-after"), retry_after, "{code}");
    }
    assert!(server.node.is_idle());
}

#[tokio::test]
async fn a_request_is_served_as_the_policy_changed_it() {
    let folder = tempfile::tempdir().unwrap();
    let recordings = quern::policies::recordings::Recordings::in_folder(folder.path(), 1 << 20).unwrap();
    let policies = policies(&[place(None, &[])]).recording(recordings.clone());
    let server = start(Options { policies: Some(policies), ..Options::default() }).await;
    // ok, some, accept, priority 7, three tokens, no adapter.
    load(&server, &guest().with(Hook::Admission, answer(&[0, 1, 0, 7, 3, 0]))).await.ok();
    recordings.start(Some("changed.rec"), None).unwrap();
    let body = server.post(CHAT, &long_chat(50, json!({"priority": 200}))).await.ok();
    assert_eq!(body["usage"]["completion_tokens"], 3);
    assert_eq!(body["choices"][0]["finish_reason"], "length");
    assert!(recordings.stop());

    // What the scheduler saw of it.
    let steps = crate::recording::settled(&recordings.status().unwrap());
    let priorities: Vec<u8> = steps.iter().flat_map(|step| step.snapshot.waiting.priority.clone()).collect();
    assert_eq!(priorities, [7]);
}

#[tokio::test]
async fn an_adapter_that_is_not_there_is_the_policys_fault() {
    let server = serve(place(None, &[])).await;
    load(&server, &guest().with(Hook::Admission, answer(&[0, 1, 0, 7, 3, 1, 512, 5]))).await.ok();
    let body = server.post(CHAT, &long_chat(12, json!({}))).await.ok();
    assert_eq!(body["usage"]["completion_tokens"], 12);
    let status = status(&server).await;
    assert_eq!((verdicts(&status, "admission", "invalid"), verdicts(&status, "admission", "used")), (1, 0));
    assert!(status["serving"]["faults"][0]["reason"].as_str().unwrap().contains("`guest`"), "{status}");
}

#[tokio::test]
async fn a_policy_may_choose_an_adapter() {
    let server = serve(place(None, &[])).await;
    let dir = tempfile::tempdir().unwrap();
    let order = quern::adapters::Order {
        name: "guest".to_owned(),
        path: crate::peft::Peft::new(1).write(dir.path()),
        in_place: false,
        expected_generation: None,
        pin: None,
        origin: quern::adapters::Origin::Operator,
    };
    let adapters = server.node.models()[0].adapters.clone().unwrap();
    adapters.load(order).await.unwrap();
    load(&server, &guest().with(Hook::Admission, answer(&[0, 1, 0, 7, 3, 1, 512, 5]))).await.ok();
    let body = server.post(CHAT, &long_chat(12, json!({}))).await.ok();
    assert_eq!((&body["model"], &body["usage"]["completion_tokens"]), (&json!("guest"), &json!(3)));
    let status = status(&server).await;
    assert_eq!((verdicts(&status, "admission", "invalid"), verdicts(&status, "admission", "used")), (0, 1));
}

#[tokio::test]
async fn policies_see_the_headers_that_the_operator_named_and_no_others() {
    let settings = Settings { policy_headers: vec!["x-team".to_owned()], ..Settings::default() };
    let policies = Some(policies(&[place(None, &[])]));
    let server = start(Options { settings, policies, ..Options::default() }).await;
    // Refuses whoever shows a header, and says its value; more than one is too many.
    let tell = "(if (i32.gt_u (i32.load (i32.add (local.get 0) (i32.const 60))) (i32.const 1)) (then unreachable))
        (i32.store (i32.const 2052) (i32.const 0))
        (if (i32.eqz (i32.load (i32.add (local.get 0) (i32.const 60)))) (then (return (i32.const 2048))))
        (i32.store (i32.const 2052) (i32.const 1))
        (i32.store (i32.const 2056) (i32.const 1))
        (i32.store (i32.const 2060) (i32.const 2))
        (i32.store (i32.const 2072) (i32.load (i32.add (i32.load (i32.add (local.get 0) (i32.const 56))) (i32.const 8))))
        (i32.store (i32.const 2076) (i32.load (i32.add (i32.load (i32.add (local.get 0) (i32.const 56))) (i32.const 12))))
        (i32.const 2048)";
    load(&server, &guest().with(Hook::Admission, tell)).await.ok();
    let ask = |team: Option<&str>| {
        let request = server.client.post(server.url(CHAT)).json(&chat("a", json!({"max_tokens": 2})));
        let request = request.header("x-secret", "no").header("authorization", "Bearer key");
        team.into_iter().fold(request, |request, team| request.header("X-Team", team)).send()
    };
    let shown = Reply::of(ask(Some("blue")).await.unwrap()).await;
    assert_eq!(shown.error(403, None, Some("forbidden")), "blue");
    Reply::of(ask(None).await.unwrap()).await.ok();
    let status = status(&server).await;
    assert_eq!((verdicts(&status, "admission", "used"), verdicts(&status, "admission", "none")), (1, 1));
}

#[tokio::test]
async fn a_policy_that_takes_its_time_holds_up_no_other_connection() {
    let mut slow = place(None, &[]);
    slow.settings.deadlines.admission = Duration::from_millis(500);
    // This test's runtime has a single thread.
    let server = serve(place_with(slow.settings, None)).await;
    load(&server, &guest().with(Hook::Admission, ENDLESS)).await.ok();
    let asked = tokio::spawn(server.client.post(server.url(CHAT)).json(&chat("a", json!({}))).send());
    // Until it is being asked about.
    soon(async {
        while server.get(server.url("/health")).await.status == 200 && !asked.is_finished() {
            let state = status(&server).await;
            if verdicts(&state, "admission", "late") > 0 {
                break;
            }
        }
    })
    .await;
    assert_eq!(asked.await.unwrap().unwrap().status(), 200, "and it is served without an answer");
    assert_eq!(verdicts(&status(&server).await, "admission", "late"), 1);
}

#[tokio::test]
async fn many_requests_at_once_each_get_their_word() {
    let server = serve(place(None, &[])).await;
    load(&server, &guest().with(Hook::Admission, answer(&[0, 1, 0, 7, 3, 0]))).await.ok();
    let asks = (0..100).map(|_| server.client.post(server.url(CHAT)).json(&long_chat(9, json!({}))).send());
    let asked: Vec<_> = asks.map(tokio::spawn).collect();
    for reply in asked {
        let body = Reply::of(soon(reply).await.unwrap().unwrap()).await.ok();
        assert_eq!(body["usage"]["completion_tokens"], 3);
    }
    assert_eq!(verdicts(&status(&server).await, "admission", "used"), 100);
}
