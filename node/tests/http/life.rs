//! How listeners end, and the versions of HTTP that they speak.

use std::time::Duration;

use serde_json::json;
use tokio::net::TcpStream;

use crate::support::{Options, chat, long_chat, server, soon, start};

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_shutdown_waits_for_the_answers_inside() {
    let mut server = start(Options { step_time: Duration::from_millis(5), ..Options::default() }).await;
    let ask = long_chat(200, json!({"stream": true}));
    let mut running = server.client.post(server.url(CHAT)).json(&ask).send().await.unwrap();
    server.gate.close();
    server.shutdown.cancel();
    soon(async { while TcpStream::connect(server.public).await.is_ok() {} }).await;
    assert!(!server.serving.is_finished());

    server.gate.open();
    let mut text = String::new();
    while let Some(piece) = soon(running.chunk()).await.unwrap() {
        text.push_str(std::str::from_utf8(&piece).unwrap());
    }
    assert!(text.ends_with("data: [DONE]\n\n"));
    soon(&mut server.serving).await.unwrap();
}

#[tokio::test]
async fn dropping_a_listener_ends_its_connections() {
    // So slow that it would not end by itself while the test waits.
    let server = start(Options { step_time: Duration::from_millis(50), ..Options::default() }).await;
    let ask = long_chat(2000, json!({"stream": true}));
    let mut running = server.client.post(server.url(CHAT)).json(&ask).send().await.unwrap();
    server.serving.abort();
    let ended = soon(async {
        loop {
            match running.chunk().await {
                Ok(Some(_)) => {}
                ended => break ended,
            }
        }
    });
    let _ = ended.await;
    crate::support::until(|| server.node.is_idle()).await;
}

#[tokio::test]
async fn http2_is_spoken_to_those_who_know_it() {
    let server = server().await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let asks = (0..8).map(|idx| {
        let request =
            client.post(server.url(CHAT)).json(&chat(&format!("prompt {idx}"), json!({"max_tokens": 8})));
        tokio::spawn(request.send())
    });
    for ask in asks.collect::<Vec<_>>() {
        let response = ask.await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.version(), reqwest::Version::HTTP_2);
    }
}
