//! Clients that mean no good, or are merely slow: each is cut off, and what it
//! held is free again.

use std::time::Duration;

use quern::http::Settings;
use quern_scheduler::SchedulerConfig;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::support::{Options, Reply, Server, chat, long_chat, soon, start, until};

const CHAT: &str = "/v1/chat/completions";
const SHORT: Duration = Duration::from_millis(50);

async fn impatient(step_time: Duration) -> Server {
    let settings = Settings {
        header_timeout: SHORT,
        body_timeout: SHORT,
        idle_timeout: SHORT,
        write_timeout: SHORT,
        ..Settings::default()
    };
    start(Options { settings, step_time, ..Options::default() }).await
}

/// Sends some bytes, then reads until the server closes.
async fn send_and_wait(server: &Server, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.public).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    let _ = soon(stream.read_to_end(&mut answer)).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn those_who_send_too_little_are_cut_off() {
    let server = impatient(Duration::ZERO).await;
    assert_eq!(send_and_wait(&server, b"").await, "");
    assert_eq!(send_and_wait(&server, b"PRI * HTTP").await, "");
    let half_a_head = send_and_wait(&server, b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n").await;
    assert!(half_a_head.is_empty() || half_a_head.starts_with("HTTP/1.1 408"), "{half_a_head}");
    let half_a_body =
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{\"model\"";
    let answer = send_and_wait(&server, half_a_body).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("request_timeout"), "{answer}");
    assert!(server.node.is_idle());
}

#[tokio::test]
async fn an_idle_http2_connection_is_closed() {
    let server = impatient(Duration::ZERO).await;
    // The preface and an empty SETTINGS frame: a connection that asks for nothing.
    let opening = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat();
    send_and_wait(&server, &opening).await;
}

#[tokio::test]
async fn a_slow_body_holds_no_place_in_the_queue() {
    let scheduler = SchedulerConfig { max_queued: 1, ..SchedulerConfig::default() };
    let server = start(Options { scheduler, ..Options::default() }).await;
    let mut slow = Vec::new();
    for _ in 0..8 {
        let mut stream = TcpStream::connect(server.public).await.unwrap();
        let head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{";
        stream.write_all(head).await.unwrap();
        slow.push(stream);
    }
    server.post(CHAT, &chat("a", json!({"max_tokens": 1}))).await.ok();
}

#[tokio::test]
async fn large_heads_are_refused() {
    let settings = Settings { max_header_bytes: 8192, ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;
    let head = format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nX-Long: {}\r\n\r\n", "x".repeat(100_000));
    let answer = send_and_wait(&server, head.as_bytes()).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut_off_and_its_sequences_freed() {
    // Steps so slow that the buffers on the way are full long before the answer's end.
    let server = impatient(Duration::from_millis(10)).await;
    let ask =
        long_chat(1900, json!({"n": 8, "logprobs": true, "top_logprobs": 20, "stream": true})).to_string();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stream = socket.connect(server.public).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{ask}", ask.len());
    stream.write_all(head.as_bytes()).await.unwrap();

    until(|| server.load().running > 0).await;
    until(|| server.node.is_idle()).await;
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(!answer.contains("[DONE]"));
}

#[tokio::test]
async fn hanging_up_frees_the_sequence() {
    // So slow that it would not end by itself while the test waits.
    let server = start(Options { step_time: Duration::from_millis(50), ..Options::default() }).await;
    let ask = |stream: bool| long_chat(2000, json!({"n": 4, "stream": stream}));
    // In the middle of a stream.
    let mut response = server.client.post(server.url(CHAT)).json(&ask(true)).send().await.unwrap();
    soon(response.chunk()).await.unwrap().expect("a first event");
    until(|| server.load().running == 4).await;
    drop(response);
    until(|| server.node.is_idle()).await;

    // While it waits for a whole answer.
    let whole = tokio::spawn(server.client.post(server.url(CHAT)).json(&ask(false)).send());
    until(|| server.load().running == 4).await;
    whole.abort();
    let _ = whole.await;
    until(|| server.node.is_idle()).await;
}

#[tokio::test]
async fn ten_times_what_the_queue_holds_is_refused_at_once() {
    let scheduler = SchedulerConfig { max_queued: 6, max_running: 2, ..SchedulerConfig::default() };
    let server = start(Options { scheduler, ..Options::default() }).await;
    server.gate.close();
    let mut asked = Vec::new();
    for _ in 0..60 {
        let request = server.client.post(server.url(CHAT)).json(&chat("a", json!({"max_tokens": 2})));
        asked.push(tokio::spawn(async { Reply::of(request.send().await.unwrap()).await }));
    }
    // With the engine standing still, whoever has an answer by now was refused.
    until(|| asked.iter().filter(|reply| reply.is_finished()).count() >= 50).await;
    server.gate.open();
    let (mut served, mut refused) = (0, 0);
    for reply in asked {
        let reply = soon(reply).await.unwrap();
        if reply.status == 200 {
            served += 1;
            continue;
        }
        refused += 1;
        reply.error(429, None, Some("queue_full"));
        assert!(reply.header("retry-after").unwrap().parse::<u64>().unwrap() >= 1);
    }
    assert!(served >= 6 && refused >= 50, "{served} served, {refused} refused");
    until(|| server.node.is_idle()).await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait() {
    let settings = Settings { max_connections: 1, ..Settings::default() };
    let server = start(Options { settings, ..Options::default() }).await;
    let mut first = TcpStream::connect(server.public).await.unwrap();
    let ask = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n";
    first.write_all(ask).await.unwrap();
    let mut answer = [0; 12];
    soon(first.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");

    let mut second = TcpStream::connect(server.public).await.unwrap();
    second.write_all(ask).await.unwrap();
    drop(first);
    soon(second.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 200");
}
