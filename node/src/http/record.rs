//! Metrics of the front end. Labels take few values, whatever clients send.

use std::time::Instant;

use metrics::{counter, gauge, histogram};

/// The public paths, for labels; anything else is `other`.
const ENDPOINTS: [(&str, &str); 9] = [
    ("/v1/chat/completions", "chat_completions"),
    ("/v1/completions", "completions"),
    ("/v1/embeddings", "embeddings"),
    ("/v1/classify", "classify"),
    ("/classify", "classify"),
    ("/v1/models", "models"),
    ("/tokenize", "tokenize"),
    ("/detokenize", "detokenize"),
    ("/health", "health"),
];

/// The label of a path.
pub(super) fn endpoint(path: &str) -> &'static str {
    if path.starts_with("/v1/models/") {
        return "models";
    }
    ENDPOINTS.iter().find(|(known, _)| *known == path).map_or("other", |(_, label)| label)
}

/// Counts an answer by its status.
pub(super) fn answered(endpoint: &'static str, status: u16) {
    counter!("quern_http_requests_total", "endpoint" => endpoint, "status" => status.to_string())
        .increment(1);
}

/// Counts a request that got no answer of its kind.
pub(super) fn refused(reason: &'static str) {
    counter!("quern_requests_refused_total", "reason" => reason).increment(1);
}

/// Measures a request from its arrival to its drop: the answer's last byte, or
/// the moment at which nobody wants it any more.
#[derive(Debug)]
pub(super) struct Timer {
    endpoint: &'static str,
    since: Instant,
}

impl Timer {
    pub(super) fn start(endpoint: &'static str, since: Instant) -> Timer {
        Timer { endpoint, since }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        histogram!("quern_request_duration_seconds", "endpoint" => self.endpoint)
            .record(self.since.elapsed().as_secs_f64());
    }
}

/// Counts one open connection.
pub(super) struct Connection(());

impl Connection {
    pub(super) fn open() -> Connection {
        gauge!("quern_http_connections").increment(1.0);
        Connection(())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        gauge!("quern_http_connections").decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::endpoint;

    #[test]
    fn labels_are_few() {
        assert_eq!(endpoint("/v1/chat/completions"), "chat_completions");
        assert_eq!(endpoint("/v1/models/some-model"), "models");
        assert_eq!(endpoint("/anything/else"), "other");
    }
}
