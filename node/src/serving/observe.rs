//! Metrics of requests as clients feel them. The scheduler has its own.

use std::sync::Arc;
use std::time::Instant;

use metrics::{Counter, Histogram, counter, histogram};

use super::{Finish, Recent};

/// Measures one request's tokens.
pub(super) struct Observer {
    arrived: Instant,
    first_token: Histogram,
    inter_token: Histogram,
    generated: Counter,
    /// When each choice's first and last token came, and how many there were.
    choices: Vec<Option<Seen>>,
    recent: Arc<Recent>,
}

#[derive(Clone, Copy)]
struct Seen {
    first: Instant,
    last: Instant,
    num_tokens: u32,
}

impl Observer {
    pub(super) fn new(
        arrived: Instant,
        num_choices: usize,
        prompt_tokens: usize,
        recent: Arc<Recent>,
    ) -> Observer {
        counter!("quern_prompt_tokens_total").increment(prompt_tokens as u64);
        Observer {
            arrived,
            first_token: histogram!("quern_time_to_first_token_seconds"),
            inter_token: histogram!("quern_inter_token_latency_seconds"),
            generated: counter!("quern_generated_tokens_total"),
            choices: vec![None; num_choices],
            recent,
        }
    }

    pub(super) fn token(&mut self, choice: usize) {
        let now = Instant::now();
        self.generated.increment(1);
        self.recent.token();
        match &mut self.choices[choice] {
            seen @ None => {
                let after = now.duration_since(self.arrived);
                self.first_token.record(after.as_secs_f64());
                self.recent.first_token(after);
                *seen = Some(Seen { first: now, last: now, num_tokens: 1 });
            }
            Some(seen) => {
                self.inter_token.record(now.duration_since(seen.last).as_secs_f64());
                (seen.last, seen.num_tokens) = (now, seen.num_tokens + 1);
            }
        }
    }

    /// The choice has all its tokens.
    pub(super) fn ended(&self, choice: usize) {
        if let Some(seen) = self.choices[choice].filter(|seen| seen.num_tokens > 1) {
            self.recent.between_tokens(seen.last.duration_since(seen.first) / (seen.num_tokens - 1));
        }
    }
}

/// Counts a choice that came to its end.
pub(super) fn finished(reason: Finish) {
    let reason = match reason {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    };
    counter!("quern_requests_finished_total", "reason" => reason).increment(1);
}

/// Counts a choice that did not.
pub(super) fn failed() {
    counter!("quern_requests_finished_total", "reason" => "error").increment(1);
}

/// Counts choices that nobody waited for.
pub(super) fn abandoned(num_choices: usize) {
    counter!("quern_requests_finished_total", "reason" => "cancelled").increment(num_choices as u64);
}

/// Counts the tokens of a prompt that is only read.
pub(super) fn read(prompt_tokens: usize) {
    counter!("quern_prompt_tokens_total").increment(prompt_tokens as u64);
}

/// Counts texts by whether they got a label.
pub(super) fn classified(labelled: impl Iterator<Item = bool>) {
    for has_label in labelled {
        let outcome = if has_label { "label" } else { "abstained" };
        counter!("quern_classified_texts_total", "outcome" => outcome).increment(1);
    }
}
