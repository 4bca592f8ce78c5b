//! What experiments ask nodes, and the figures of single answers. The only place here that knows the load's client.

use std::cell::RefCell;
use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::client::{Client, Server};
use crate::reply::Reply;
use crate::request::{AnswerShape, Question};

/// Longest silence before a request counts as stalled.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest time for a whole request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(600);

/// What is wanted of a prompt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// To go on with it.
    #[default]
    Text,
    /// To answer it as what a user says.
    Chat,
    /// Its label.
    Label,
}

/// One request.
#[derive(Debug, Clone, Default)]
pub struct Ask {
    /// The prompt.
    pub prompt: String,
    /// Said before a user's words.
    pub system: Option<String>,
    /// What is wanted of it.
    pub kind: Kind,
    /// Tokens of the answer at most.
    pub max_tokens: u32,
    /// What is asked instead of the server's own model.
    pub model: Option<String>,
    /// Whether the answer has all of `max_tokens`, wherever it would have ended.
    pub ignore_eos: bool,
}

impl Ask {
    /// A text to go on with.
    pub fn text(prompt: String, max_tokens: u32) -> Self {
        Self { prompt, max_tokens, ..Self::default() }
    }

    /// What a user says.
    pub fn chat(prompt: String, max_tokens: u32) -> Self {
        Self { prompt, max_tokens, kind: Kind::Chat, ..Self::default() }
    }

    /// A text to classify.
    pub fn label(prompt: String) -> Self {
        Self { prompt, kind: Kind::Label, ..Self::default() }
    }

    /// For another model than the server's first: an adapter.
    #[must_use]
    pub fn of(self, model: &str) -> Self {
        Self { model: Some(model.to_owned()), ..self }
    }

    /// For an answer that only `max_tokens` ends.
    #[must_use]
    pub fn never_ending(self) -> Self {
        Self { ignore_eos: true, ..self }
    }

    fn question(&self, server: &Server) -> Question {
        let (path, shape) = match self.kind {
            Kind::Text => ("/v1/completions", AnswerShape::Stream),
            Kind::Chat => ("/v1/chat/completions", AnswerShape::Stream),
            Kind::Label => ("/v1/classify", AnswerShape::Labels),
        };
        Question { path, body: self.body(server).into(), shape }
    }

    fn body(&self, server: &Server) -> String {
        let mut body = Map::new();
        body.insert("model".to_owned(), json!(self.model.as_ref().unwrap_or(&server.model)));
        match self.kind {
            Kind::Label => {
                body.insert("input".to_owned(), json!([self.prompt]));
                return Value::Object(body).to_string();
            }
            Kind::Text => {
                body.insert("prompt".to_owned(), json!(self.prompt));
            }
            Kind::Chat => {
                let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
                let user = json!({"role": "user", "content": self.prompt});
                body.insert("messages".to_owned(), system.chain([user]).collect());
            }
        }
        body.insert("max_tokens".to_owned(), json!(self.max_tokens));
        body.insert("temperature".to_owned(), json!(0.0));
        if self.ignore_eos {
            body.insert("ignore_eos".to_owned(), json!(true));
        }
        body.insert("stream".to_owned(), json!(true));
        body.insert("stream_options".to_owned(), json!({"include_usage": true}));
        Value::Object(body).to_string()
    }
}

/// Sends one request, whose latency counts from `intended`.
///
/// # Errors
/// Says how it failed.
pub async fn send(client: &Client, server: &Server, ask: &Ask, intended: Instant) -> anyhow::Result<Reply> {
    let reply = client.ask(server, &ask.question(server), intended, |_| {}).await;
    match &reply.failure {
        None => Ok(reply),
        Some((kind, message)) => anyhow::bail!("a request failed: {kind}: {message}"),
    }
}

/// Sends requests at once and waits for all.
///
/// # Errors
/// Says how the first failed, if one did.
pub async fn send_all(client: &Client, server: &Server, asks: &[Ask]) -> anyhow::Result<Vec<Reply>> {
    let now = Instant::now();
    join_all(asks.iter().map(|ask| send(client, server, ask, now))).await.into_iter().collect()
}

/// So many clients, each of which sends the next request when its last one has ended.
///
/// # Errors
/// Says how the first failed, if one did.
pub async fn closed_loop(
    client: &Client,
    server: &Server,
    asks: &[Ask],
    num_clients: usize,
) -> anyhow::Result<Vec<Reply>> {
    let next = RefCell::new(asks.iter());
    let one_client = || async {
        let mut replies = Vec::new();
        loop {
            let Some(ask) = next.borrow_mut().next() else { return anyhow::Ok(replies) };
            replies.push(send(client, server, ask, Instant::now()).await?);
        }
    };
    let each = try_join_all((0..num_clients).map(|_| one_client())).await?;
    Ok(each.into_iter().flatten().collect())
}

/// Seconds from the first request's intended moment to the last one's end; none without requests.
pub fn wall_s<'a>(replies: impl IntoIterator<Item = &'a Reply>) -> Option<f64> {
    let ends = replies.into_iter().map(|reply| (reply.intended, reply.ended));
    let (begin, end) = ends.reduce(|(begin, end), (other, another)| (begin.min(other), end.max(another)))?;
    Some(end.duration_since(begin).as_secs_f64())
}

/// Prompt tokens per second until the first token of one request on an otherwise idle server.
pub fn prefill_rate(reply: &Reply) -> Option<f64> {
    let time = reply.time_to_first_token().unwrap_or_else(|| reply.ended.duration_since(reply.intended));
    rate(reply.prompt_tokens? as f64, time)
}

/// Tokens per second of all streams together while all of them streamed: from the last one's first delta to the
/// first one's last.
pub fn decode_rate(replies: &[Reply]) -> Option<f64> {
    let from = replies.iter().filter_map(|reply| reply.deltas.first()).max()?;
    let to = replies.iter().filter_map(|reply| reply.deltas.last()).min()?;
    let tokens: f64 = replies.iter().map(|reply| tokens_between(reply, *from, *to)).sum();
    rate(tokens, to.checked_duration_since(*from)?)
}

/// Tokens that came after `from` and until `to`. A delta may carry several: they are taken as equal.
fn tokens_between(reply: &Reply, from: Instant, to: Instant) -> f64 {
    let inside = reply.deltas.iter().filter(|delta| **delta > from && **delta <= to).count();
    inside as f64 * reply.num_tokens() as f64 / reply.deltas.len().max(1) as f64
}

fn rate(count: f64, time: Duration) -> Option<f64> {
    (!time.is_zero() && count > 0.0).then(|| count / time.as_secs_f64())
}

/// The time to the first token in milliseconds.
pub fn ttft_ms(reply: &Reply) -> Option<f64> {
    reply.time_to_first_token().map(|time| time.as_secs_f64() * 1e3)
}

/// The time from the intended moment to the end in milliseconds.
pub fn total_ms(reply: &Reply) -> f64 {
    reply.ended.duration_since(reply.intended).as_secs_f64() * 1e3
}

/// The smallest value that so large a part of the values does not exceed; none if there are none.
pub fn quantile(values: &[f64], part: f64) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let rank = (part * values.len() as f64).ceil().max(1.0) as usize;
    values.get(rank.min(values.len()).checked_sub(1)?).copied()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An answer whose deltas came at these milliseconds, each a token.
    pub(crate) fn reply(begin: Instant, deltas_ms: &[u64], prompt_tokens: u64) -> Reply {
        let deltas: Vec<Instant> = deltas_ms.iter().map(|ms| begin + Duration::from_millis(*ms)).collect();
        Reply {
            sent: begin,
            ended: deltas.last().copied().unwrap_or(begin),
            completion_tokens: Some(deltas.len() as u64),
            deltas,
            prompt_tokens: Some(prompt_tokens),
            ..Reply::new(begin)
        }
    }

    #[test]
    fn rates_count_what_all_streams_did_together() {
        let begin = Instant::now();
        let early: Vec<u64> = (0..=20).map(|n| n * 100).collect();
        let late: Vec<u64> = (10..=40).map(|n| n * 100).collect();
        let replies = [reply(begin, &early, 50), reply(begin, &late, 50)];
        // From 1.0 s to 2.0 s both streamed, ten tokens each.
        assert!((decode_rate(&replies).unwrap() - 20.0).abs() < 1e-9);
        assert!((decode_rate(&replies[..1]).unwrap() - 10.0).abs() < 1e-9);
        assert_eq!(decode_rate(&[reply(begin, &[100], 5)]), None);
        assert_eq!(decode_rate(&[reply(begin, &[100, 200], 5), reply(begin, &[300, 400], 5)]), None);
        assert!((prefill_rate(&reply(begin, &[500, 600], 100)).unwrap() - 200.0).abs() < 1e-9);
    }

    #[test]
    fn a_run_lasts_from_the_first_intended_moment_never_ending_end() {
        let begin = Instant::now();
        let late = reply(begin + Duration::from_secs(2), &[100, 500], 1);
        assert_eq!(wall_s([&reply(begin, &[4000], 1), &late]), Some(4.0));
        assert_eq!(wall_s([&reply(begin, &[1000], 1), &late]), Some(2.5));
        assert_eq!(wall_s([]), None);
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values = [4.0, 1.0, 3.0, 2.0];
        assert_eq!(quantile(&values, 0.5), Some(2.0));
        assert_eq!(quantile(&values, 0.95), Some(4.0));
        assert_eq!(quantile(&values, 0.0), Some(1.0));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn requests_name_an_adapter_or_the_servers_model() {
        let server = Server { model: "base".to_owned(), ..Server::default() };
        let body = |ask: Ask| serde_json::from_str::<Value>(&ask.body(&server)).unwrap();
        assert_eq!(body(Ask::text("x".to_owned(), 4))["model"], "base");
        assert_eq!(body(Ask::text("x".to_owned(), 4)).get("ignore_eos"), None);
        assert_eq!(body(Ask::text("x".to_owned(), 4).never_ending())["ignore_eos"], true);
        let chat = Ask { system: Some("s".to_owned()), ..Ask::chat("x".to_owned(), 4).of("a") };
        let body = body(chat);
        assert_eq!((&body["model"], &body["messages"][1]["content"]), (&json!("a"), &json!("x")));
        let label = Ask::label("x".to_owned());
        assert_eq!(
            (label.question(&server).path, label.body(&server)),
            ("/v1/classify", r#"{"model":"base","input":["x"]}"#.to_owned())
        );
    }
}
