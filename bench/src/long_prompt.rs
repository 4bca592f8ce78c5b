//! The long-prompt load: clients stream without pause, and one long prompt arrives among them.
//!
//! What counts is the longest time that a stream stood still between the long prompt's arrival and its first
//! token, and the long prompt's own time to first token. A gap that began before the arrival or ended after the
//! first token counts whole if it overlaps the time between: the client sees it whole. A stream whose answer ended
//! in that time stood still between two answers, where no gap shows it: such a trial fails.

use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;

use futures_util::future::{Either, select, select_all};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};

use crate::drive::{Finished, Phase, failed};
use crate::prompts::PromptSet;
use crate::reply::Failure;
use crate::request::Question;

/// How the long prompts of a phase are sent.
#[derive(Clone, Copy)]
pub struct LongPrompts<'a> {
    /// The long prompts.
    pub prompts: &'a PromptSet,
    /// Tokens of a long prompt's answer.
    pub max_tokens: u32,
    /// Tokens that each stream must have sent first.
    pub settle_tokens: usize,
    /// Long prompts in this phase.
    pub trials: usize,
    /// Pause after each.
    pub rest: Duration,
}

/// When tokens of the streams arrived.
struct Streams {
    /// For each stream, for each of its requests, the arrivals of its tokens.
    arrivals: RefCell<Vec<Vec<Vec<Instant>>>>,
    /// Woken at each token.
    token: Notify,
}

impl Streams {
    fn new(num_streams: usize) -> Self {
        Self { arrivals: RefCell::new(vec![Vec::new(); num_streams]), token: Notify::new() }
    }

    fn begin_request(&self, stream_idx: usize) {
        self.arrivals.borrow_mut()[stream_idx].push(Vec::new());
    }

    fn take_token(&self, stream_idx: usize, at: Instant) {
        let mut arrivals = self.arrivals.borrow_mut();
        arrivals[stream_idx].last_mut().expect("a token belongs to a request").push(at);
        drop(arrivals);
        self.token.notify_waiters();
    }

    /// Waits until every stream's arrivals satisfy a condition. There is no `await` between test and
    /// registration, so that no token is missed.
    async fn wait_until(&self, is_reached: impl Fn(&[Vec<Instant>]) -> bool) {
        loop {
            let token = self.token.notified();
            if self.arrivals.borrow().iter().all(|requests| is_reached(requests)) {
                return;
            }
            token.await;
        }
    }

    /// Gaps between tokens of one request that overlap the time `from..to`.
    fn gaps_within(&self, from: Instant, to: Instant) -> Vec<Duration> {
        gaps_within(&self.arrivals.borrow(), from, to)
    }

    /// Whether a stream was between two answers in the time `from..to`.
    fn any_ended_within(&self, from: Instant, to: Instant) -> bool {
        any_ended_within(&self.arrivals.borrow(), from, to)
    }
}

fn any_ended_within(arrivals: &[Vec<Vec<Instant>>], from: Instant, to: Instant) -> bool {
    let mut borders = arrivals.iter().flat_map(|requests| requests.windows(2));
    borders.any(|pair| {
        let (end, next) = (pair[0].last(), pair[1].first());
        end.is_some_and(|end| *end < to) && next.is_some_and(|next| *next > from)
    })
}

fn gaps_within(arrivals: &[Vec<Vec<Instant>>], from: Instant, to: Instant) -> Vec<Duration> {
    let requests = arrivals.iter().flatten();
    let pairs = requests.flat_map(|tokens| tokens.windows(2));
    let overlapping = pairs.filter(|pair| pair[1] > from && pair[0] < to);
    overlapping.map(|pair| pair[1].duration_since(pair[0])).collect()
}

/// Runs the phase. Each long prompt gives one entry, whose gaps are the streams'.
pub async fn long_prompt_loop(
    phase: Phase<'_>,
    num_streams: usize,
    long: LongPrompts<'_>,
    stall_timeout: Duration,
) -> Vec<Finished> {
    let mut finished = Vec::new();
    for trial in 0..long.trials as u64 {
        finished.push(run_trial(phase, num_streams, long, phase.first_prompt + trial, stall_timeout).await);
        sleep(long.rest).await;
    }
    finished
}

async fn run_trial(
    phase: Phase<'_>,
    num_streams: usize,
    long: LongPrompts<'_>,
    prompt_idx: u64,
    stall_timeout: Duration,
) -> Finished {
    let streams = Streams::new(num_streams);
    let first_stream_prompt = prompt_idx * 64 * num_streams as u64;
    let endless = (0..num_streams).map(|stream_idx| {
        let first = first_stream_prompt + stream_idx as u64 * 64;
        Box::pin(stream_without_end(phase, &streams, stream_idx, first))
    });
    let trial = Box::pin(send_long_prompt(phase, &streams, long, prompt_idx, stall_timeout));
    match select(trial, select_all(endless)).await {
        // The streams are dropped here, and with them their connections: the server sees four hang-ups.
        Either::Left((finished, _)) => finished,
        Either::Right(((Err(failure), _, _), _)) => {
            failed(prompt_idx, long.prompts.get(phase.seed, prompt_idx), failure)
        }
    }
}

/// Streams one request after another until one fails.
async fn stream_without_end(
    phase: Phase<'_>,
    streams: &Streams,
    stream_idx: usize,
    first_prompt: u64,
) -> Result<Infallible, (Failure, String)> {
    let mut prompt_idx = first_prompt;
    loop {
        let prompt = phase.prompts.get(phase.seed, prompt_idx);
        let max_tokens = phase.workload.max_tokens.of(phase.seed, prompt_idx);
        let question = Question::new(phase.workload, phase.server, &prompt, max_tokens);
        streams.begin_request(stream_idx);
        let on_delta = |at| {
            phase.progress.token();
            streams.take_token(stream_idx, at);
        };
        let reply = phase.client.ask(phase.server, &question, Instant::now(), on_delta).await;
        if let Some((kind, message)) = reply.failure {
            return Err((kind, format!("a stream: {message}")));
        }
        if reply.deltas.is_empty() {
            return Err((Failure::BrokenSse, "a stream: an answer without content".to_owned()));
        }
        prompt_idx += 1;
    }
}

async fn send_long_prompt(
    phase: Phase<'_>,
    streams: &Streams,
    long: LongPrompts<'_>,
    prompt_idx: u64,
    stall_timeout: Duration,
) -> Finished {
    let has_settled = |requests: &[Vec<Instant>]| {
        requests.iter().map(Vec::len).sum::<usize>() >= long.settle_tokens
            && requests.last().is_some_and(|tokens| tokens.len() > 1)
    };
    streams.wait_until(has_settled).await;
    let prompt = long.prompts.get(phase.seed, prompt_idx);
    let question = Question::new(phase.workload, phase.server, &prompt, long.max_tokens);
    let reply = phase.client.ask(phase.server, &question, Instant::now(), |_| phase.progress.token()).await;
    phase.progress.request(reply.failure.is_none());
    let first_token = reply.deltas.first().copied().unwrap_or(reply.ended);
    // Each stream goes on until it has spoken again: its gap may reach past the long prompt's first token.
    let has_spoken_again = |requests: &[Vec<Instant>]| {
        requests.iter().rev().find_map(|tokens| tokens.last()).is_some_and(|last| *last > first_token)
    };
    if timeout(stall_timeout, streams.wait_until(has_spoken_again)).await.is_err() {
        let message = format!("a stream: no token for {stall_timeout:?} after the long prompt's first");
        return failed(prompt_idx, prompt, (Failure::Stall, message));
    }
    if streams.any_ended_within(reply.sent, first_token) {
        let message = "a stream's answer ended meanwhile: take prompts with longer answers".to_owned();
        return failed(prompt_idx, prompt, (Failure::EndedEarly, message));
    }
    let gaps = streams.gaps_within(reply.sent, first_token);
    Finished { gaps, ..Finished::new(prompt_idx, prompt, reply) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_gaps_that_overlap_count_and_none_across_requests() {
        let start = Instant::now();
        let at =
            |ms: &[u64]| -> Vec<Instant> { ms.iter().map(|ms| start + Duration::from_millis(*ms)).collect() };
        // One stream of two requests, one of one; the long prompt is under way from 100 to 200 ms.
        let arrivals = vec![vec![at(&[0, 90, 110]), at(&[150, 160])], vec![at(&[10, 80, 190, 230, 290])]];
        let from = start + Duration::from_millis(100);
        let gaps = gaps_within(&arrivals, from, start + Duration::from_millis(200));
        let ms: Vec<u128> = gaps.iter().map(Duration::as_millis).collect();
        assert_eq!(ms, [20, 10, 110, 40]);

        let to = start + Duration::from_millis(200);
        assert!(any_ended_within(&arrivals, from, to));
        assert!(!any_ended_within(&arrivals, start + Duration::from_millis(155), to));
        assert!(!any_ended_within(&arrivals, start, start + Duration::from_millis(105)));
        assert!(!any_ended_within(&arrivals[1..], from, to));
    }
}
