//! What became of each request, and what that comes to.

use std::collections::VecDeque;

use serde::Serialize;

use crate::simulate::trace::Trace;
use crate::stats::{fair_shares, jain, quantile};

/// How many of the latest steps, gaps and first tokens count as recent.
const RECENT: usize = 256;

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Expired,
    Refused,
    TooLong,
}

/// One request's fate; times are from its arrival.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    arrived_us: u64,
    pub(crate) end: Option<End>,
    pub(crate) queue_us: Option<u64>,
    pub(crate) ttft_us: Option<u64>,
    pub(crate) total_us: Option<u64>,
    pub(crate) new_tokens: u32,
    last_token_us: u64,
}

/// Steps that the built-in policy planned in the policy's place.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Fallbacks {
    /// It had no opinion, or failed.
    pub none: u64,
    /// Its plan broke a rule.
    pub invalid: u64,
    /// Its plan before left everybody standing.
    pub stalled: u64,
}

/// All that happened.
#[derive(Debug, Clone, Default)]
pub(crate) struct Served {
    pub(crate) requests: Vec<Request>,
    pub(crate) fallbacks: Fallbacks,
    pub(crate) pauses: u64,
    pub(crate) steps: u64,
    pub(crate) now_us: u64,
    busy_us: u64,
    gaps_us: Vec<f64>,
    /// When each of them ended.
    gap_ends_us: Vec<u64>,
    /// When the batcher's limits changed: the longest step in microseconds, sequences that may run.
    pub(super) tuned: Vec<(u64, u32, u32)>,
    /// Tokens by tenant up to the last arrival, while all still compete.
    tokens: Vec<f64>,
    last_arrival_us: u64,
    untold: Vec<usize>,
    recent_steps: VecDeque<f64>,
    recent_ttft: VecDeque<f64>,
    recent_token_times: VecDeque<u64>,
    tenant_of: Vec<usize>,
}

fn keep<T>(recent: &mut VecDeque<T>, value: T) {
    if recent.len() == RECENT {
        recent.pop_front();
    }
    recent.push_back(value);
}

impl Served {
    pub(super) fn new(trace: &Trace) -> Served {
        let arrived = |arrival: &crate::simulate::trace::Arrival| Request {
            arrived_us: arrival.at_us,
            ..Request::default()
        };
        Served {
            requests: trace.arrivals.iter().map(arrived).collect(),
            tokens: vec![0.0; trace.tenants.len()],
            last_arrival_us: trace.arrivals.last().map_or(0, |arrival| arrival.at_us),
            tenant_of: trace.arrivals.iter().map(|arrival| arrival.tenant).collect(),
            ..Served::default()
        }
    }

    pub(super) fn start(&mut self, idx: usize, now_us: u64) {
        let request = &mut self.requests[idx];
        request.queue_us = Some(now_us - request.arrived_us);
    }

    /// Prompt tokens were computed for the first time.
    pub(super) fn computed(&mut self, idx: usize, tokens: u32, now_us: u64) {
        if now_us <= self.last_arrival_us {
            self.tokens[self.tenant_of[idx]] += f64::from(tokens);
        }
    }

    pub(super) fn token(&mut self, idx: usize, now_us: u64) {
        let request = &mut self.requests[idx];
        request.new_tokens += 1;
        if request.ttft_us.is_none() {
            let ttft_us = now_us - request.arrived_us;
            request.ttft_us = Some(ttft_us);
            keep(&mut self.recent_ttft, ttft_us as f64);
        } else {
            self.gaps_us.push((now_us - request.last_token_us) as f64);
            self.gap_ends_us.push(now_us);
        }
        request.last_token_us = now_us;
        self.computed(idx, 1, now_us);
        self.recent_token_times.push_back(now_us);
    }

    pub(super) fn step(&mut self, now_us: u64, took_us: u64) {
        self.steps += 1;
        self.now_us = now_us;
        self.busy_us += took_us;
        keep(&mut self.recent_steps, took_us as f64);
        while self.recent_token_times.front().is_some_and(|&at_us| at_us + 1_000_000 < now_us) {
            self.recent_token_times.pop_front();
        }
    }

    pub(super) fn end(&mut self, idx: usize, end: End, now_us: u64) {
        let request = &mut self.requests[idx];
        request.end = Some(end);
        if end == End::Finished {
            request.total_us = Some(now_us - request.arrived_us);
        }
        self.untold.push(idx);
    }

    pub(super) fn take_untold(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.untold)
    }

    /// Times between two tokens of a stream, with when they ended.
    pub(super) fn gaps(&self) -> impl Iterator<Item = (u64, f64)> {
        self.gap_ends_us.iter().copied().zip(self.gaps_us.iter().copied())
    }

    pub(super) fn recent_step_us(&self, share: f64) -> u32 {
        quantile(&mut self.recent_steps.iter().copied().collect::<Vec<_>>(), share) as u32
    }

    pub(super) fn recent_ttft_ms(&self) -> u32 {
        (quantile(&mut self.recent_ttft.iter().copied().collect::<Vec<_>>(), 0.95) / 1000.0) as u32
    }

    pub(super) fn recent_gap_us(&self) -> u32 {
        let from = self.gaps_us.len().saturating_sub(RECENT);
        quantile(&mut self.gaps_us[from..].to_vec(), 0.95) as u32
    }

    pub(super) fn tokens_in_last_second(&self, now_us: u64) -> u32 {
        self.recent_token_times.iter().filter(|&&at_us| at_us + 1_000_000 >= now_us).count() as u32
    }
}

/// What a policy achieved on a trace.
#[derive(Debug, Clone, Serialize)]
pub struct Summary {
    /// The policy.
    pub policy: String,
    /// Requests of the trace.
    pub requests: usize,
    /// Served to their end.
    pub finished: usize,
    /// Dropped because their deadline passed while they were queued.
    pub expired: usize,
    /// Refused because the queue was full, or by the admission hook.
    pub refused: usize,
    /// Time to first token.
    pub ttft_p50_ms: f64,
    /// Time to first token.
    pub ttft_p95_ms: f64,
    /// Time between two tokens of a stream.
    pub tbt_p50_ms: f64,
    /// Time between two tokens of a stream.
    pub tbt_p95_ms: f64,
    /// Requests that had a deadline.
    pub with_deadline: usize,
    /// Of these, those whose last token came in time.
    pub deadlines_met: usize,
    /// Jain's index of the tokens that tenants were served up to the last arrival,
    /// each as a part of its max-min fair share: 1 is fair.
    pub fairness: f64,
    /// The least such part of any tenant.
    pub worst_share: f64,
    /// Generated tokens a second until the last was done.
    pub tokens_per_second: f64,
    /// Share of the time in which steps ran.
    pub busy: f64,
    /// Sequences paused.
    pub pauses: u64,
    /// Steps that were planned.
    pub steps: u64,
    /// Steps that the built-in policy planned in this one's place.
    pub fallbacks: Fallbacks,
    /// Time to first token by tenant, 95th percentile.
    pub tenants: Vec<TenantSummary>,
}

/// What a tenant got.
#[derive(Debug, Clone, Serialize)]
pub struct TenantSummary {
    /// Its name.
    pub tenant: String,
    /// Its requests.
    pub requests: usize,
    /// Time to first token.
    pub ttft_p50_ms: f64,
    /// Time to first token.
    pub ttft_p95_ms: f64,
}

impl Summary {
    pub(crate) fn new(policy: &str, trace: &Trace, served: &Served) -> Summary {
        let requests = &served.requests;
        let ended = |end: End| requests.iter().filter(|request| request.end == Some(end)).count();
        let mut ttft = ttft_ms(trace, served, |_| true);
        let mut gaps: Vec<f64> = served.gaps_us.iter().map(|us| us / 1000.0).collect();
        let deadlines = trace.arrivals.iter().zip(requests);
        let deadlines =
            deadlines.filter_map(|(arrival, request)| Some((arrival.deadline_us?, request.total_us)));
        let met = deadlines.clone().filter(|(deadline, total)| total.is_some_and(|total| total <= *deadline));
        let shares = shares(trace, served);
        let seconds = (served.now_us as f64 / 1e6).max(f64::MIN_POSITIVE);
        let tokens: u64 = requests.iter().map(|request| u64::from(request.new_tokens)).sum();
        let tenant = |(idx, name): (usize, &String)| {
            let mut ttft = ttft_ms(trace, served, |tenant| tenant == idx);
            TenantSummary {
                tenant: name.clone(),
                requests: trace.arrivals.iter().filter(|arrival| arrival.tenant == idx).count(),
                ttft_p50_ms: quantile(&mut ttft, 0.5),
                ttft_p95_ms: quantile(&mut ttft, 0.95),
            }
        };
        Summary {
            policy: policy.to_owned(),
            requests: requests.len(),
            finished: ended(End::Finished),
            expired: ended(End::Expired),
            refused: ended(End::Refused) + ended(End::TooLong),
            ttft_p50_ms: quantile(&mut ttft, 0.5),
            ttft_p95_ms: quantile(&mut ttft, 0.95),
            tbt_p50_ms: quantile(&mut gaps, 0.5),
            tbt_p95_ms: quantile(&mut gaps, 0.95),
            with_deadline: deadlines.clone().count(),
            deadlines_met: met.count(),
            fairness: jain(&shares),
            worst_share: shares.iter().copied().fold(1.0, f64::min),
            tokens_per_second: tokens as f64 / seconds,
            busy: served.busy_us as f64 / 1e6 / seconds,
            pauses: served.pauses,
            steps: served.steps,
            fallbacks: served.fallbacks,
            tenants: trace.tenants.iter().enumerate().map(tenant).collect(),
        }
    }

    /// Of those with a deadline; 1 where nobody had one.
    #[must_use]
    pub fn attainment(&self) -> f64 {
        if self.with_deadline == 0 { 1.0 } else { self.deadlines_met as f64 / self.with_deadline as f64 }
    }
}

/// Times to first token of some tenants' requests.
pub(crate) fn ttft_ms(trace: &Trace, served: &Served, of: impl Fn(usize) -> bool) -> Vec<f64> {
    let requests = trace.arrivals.iter().zip(&served.requests).filter(|(arrival, _)| of(arrival.tenant));
    requests.filter_map(|(_, request)| request.ttft_us).map(|us| us as f64 / 1000.0).collect()
}

/// What tenants with requests were served, as parts of their max-min fair shares.
fn shares(trace: &Trace, served: &Served) -> Vec<f64> {
    let mut demands = vec![0.0; trace.tenants.len()];
    for arrival in &trace.arrivals {
        demands[arrival.tenant] += f64::from(arrival.prompt - arrival.cached) + f64::from(arrival.max_new);
    }
    let fair = fair_shares(&demands, served.tokens.iter().sum());
    let each = served.tokens.iter().zip(fair).filter(|(_, fair)| *fair > 0.0);
    each.map(|(tokens, fair)| tokens / fair).collect()
}
