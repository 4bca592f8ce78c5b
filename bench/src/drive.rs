//! Drives one phase: one server, one level, one round. Closed loop and open loop; the long prompt has its own file.
//!
//! Everything of a phase runs as one task on a single-threaded runtime: the client costs little, and what it
//! counts needs no locks.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, sleep_until};

use crate::client::{Client, Failure, Reply, Server, body_of, path_of};
use crate::progress::Progress;
use crate::prompts::{Prompt, PromptSet};
use crate::workload::{Amount, Arrivals, Workload};

/// Pause of a client whose request failed: a server that is down is not hammered, nor the results flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Longest answer of a request that is not counted: it opens connections and caches, no more.
const MAX_WARMUP_TOKENS: u32 = 16;

/// What every request of a phase shares.
#[derive(Clone, Copy)]
pub struct Phase<'a> {
    /// Sends.
    pub client: &'a Client,
    /// The server that is measured.
    pub server: &'a Server,
    /// What is asked.
    pub workload: &'a Workload,
    /// The prompts of the workload.
    pub prompts: &'a PromptSet,
    /// Seed of the run.
    pub seed: u64,
    /// Number of the phase's first prompt. The same for every server of a pair.
    pub first_prompt: u64,
    /// Told of tokens and ends.
    pub progress: &'a Progress,
}

/// A request that ended, well or not.
#[derive(Debug)]
pub struct Finished {
    /// The prompt's number in the run.
    pub prompt_idx: u64,
    /// The prompt.
    pub prompt: Prompt,
    /// What came.
    pub reply: Reply,
    /// Times between tokens that this request stands for.
    pub gaps: Vec<Duration>,
    /// The deadline that the server was told, in milliseconds from the intended time.
    pub deadline_ms: Option<u32>,
}

impl Phase<'_> {
    /// Sends the prompt of this number and reads its stream.
    pub async fn ask(&self, prompt_idx: u64, intended: Option<Instant>, max_tokens: u32) -> Finished {
        let prompt = self.prompts.lines(self.seed, prompt_idx, self.workload.texts);
        let intended = intended.unwrap_or_else(Instant::now);
        let path = path_of(self.workload.api);
        let progress = self.progress;
        let deadline = self.workload.deadline.as_ref();
        let deadline_ms = deadline.map(|deadline| deadline.ms_of(self.seed, prompt_idx));
        let mut server = self.server.clone();
        if let Some(models) = &self.workload.models {
            server.model = models.of(self.seed, prompt_idx);
        }
        let body = body_of(self.workload, &server, &prompt, max_tokens);
        let header =
            deadline.zip(deadline_ms).map(|(deadline, ms)| (deadline.header.clone(), ms.to_string()));
        server.headers.extend(header);
        let reply = self.client.ask(&server, path, body, intended, |_| progress.token()).await;
        self.progress.request(reply.failure.is_none());
        let gaps = reply.gaps().collect();
        Finished { prompt_idx, prompt, reply, gaps, deadline_ms }
    }

    /// Sends requests that are not counted, all at once. A failure shows in the phase itself.
    pub async fn warm_up(&self) {
        // Prompts of their own, far from those of any phase.
        let first = u64::MAX / 2 + self.first_prompt;
        let max_tokens = self.workload.max_tokens.min(MAX_WARMUP_TOKENS);
        join_all((0..self.workload.warmup as u64).map(|idx| self.ask(first + idx, None, max_tokens))).await;
    }
}

/// Closed loop: each client sends its next request when its last one ended.
pub async fn closed_loop(phase: Phase<'_>, num_clients: usize, amount: Amount) -> Vec<Finished> {
    let started = Instant::now();
    let (num_requests, until) = match amount {
        Amount::Requests(count) => (count as u64, None),
        Amount::RequestsPerClient(count) => ((count * num_clients) as u64, None),
        Amount::Duration(duration) => (u64::MAX, Some(started + duration)),
    };
    // Clients take from one heap of work, so that the last ones are not left to run alone for long.
    let next = Cell::new(0);
    let client_loop = || async {
        let mut finished = Vec::new();
        while next.get() < num_requests && until.is_none_or(|until| Instant::now() < until) {
            let idx = next.replace(next.get() + 1);
            let one = phase.ask(phase.first_prompt + idx, None, phase.workload.max_tokens).await;
            if one.reply.failure.is_some() {
                sleep(PAUSE_AFTER_FAILURE).await;
            }
            finished.push(one);
        }
        finished
    };
    let mut clients: FuturesUnordered<_> = (0..num_clients).map(|_| client_loop()).collect();
    let mut finished = Vec::new();
    while let Some(one_client) = clients.next().await {
        finished.extend(one_client);
    }
    finished.sort_by_key(|one| one.prompt_idx);
    finished
}

/// Open loop: requests arrive at their times, whatever became of earlier ones, and latency counts from those
/// times, also for a request that had to wait here.
pub async fn open_loop(
    phase: Phase<'_>,
    arrivals: Arrivals,
    rate: f64,
    amount: Amount,
    max_in_flight: usize,
) -> Vec<Finished> {
    let permits = Rc::new(Semaphore::new(max_in_flight));
    let started = Instant::now();
    let offsets = arrival_times(arrivals, rate, amount, phase.seed ^ phase.first_prompt);
    let mut requests: FuturesUnordered<_> = (0u64..)
        .zip(offsets)
        .map(|(idx, offset)| {
            let permits = Rc::clone(&permits);
            async move {
                let intended = started + offset;
                sleep_until(intended).await;
                let _permit = permits.acquire().await.expect("the semaphore is never closed");
                phase.ask(phase.first_prompt + idx, Some(intended), phase.workload.max_tokens).await
            }
        })
        .collect();
    let mut finished = Vec::new();
    while let Some(one) = requests.next().await {
        finished.push(one);
    }
    finished.sort_by_key(|one| one.prompt_idx);
    finished
}

/// When requests arrive, from the phase's beginning.
fn arrival_times(arrivals: Arrivals, rate: f64, amount: Amount, seed: u64) -> Vec<Duration> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut time_s = 0.0;
    let mut times = Vec::new();
    loop {
        let is_enough = match amount {
            Amount::Requests(count) | Amount::RequestsPerClient(count) => times.len() >= count,
            Amount::Duration(duration) => time_s >= duration.as_secs_f64(),
        };
        if is_enough {
            return times;
        }
        times.push(Duration::from_secs_f64(time_s));
        time_s += match arrivals {
            Arrivals::Constant => 1.0 / rate,
            // One minus a number below one is above zero: its logarithm is finite.
            Arrivals::Poisson => -(1.0 - random.random::<f64>()).ln() / rate,
        };
    }
}

/// A request that stands for a phase's failure outside its own requests.
pub fn failed(prompt_idx: u64, prompt: Prompt, failure: (Failure, String)) -> Finished {
    let now = Instant::now();
    let reply = Reply {
        intended: now,
        sent: now,
        deltas: Vec::new(),
        ended: now,
        text: String::new(),
        prompt_tokens: None,
        completion_tokens: None,
        finish_reason: None,
        failure: Some(failure),
    };
    Finished { prompt_idx, prompt, reply, gaps: Vec::new(), deadline_ms: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constant_arrivals_are_evenly_spaced() {
        let times = arrival_times(Arrivals::Constant, 4.0, Amount::Duration(Duration::from_secs(1)), 1);
        assert_eq!(times, [0, 250, 500, 750].map(Duration::from_millis));
        assert_eq!(arrival_times(Arrivals::Constant, 4.0, Amount::Requests(9), 1).len(), 9);
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_repeat_by_seed() {
        let amount = Amount::Requests(20_000);
        let times = arrival_times(Arrivals::Poisson, 50.0, amount, 3);
        assert_eq!(times, arrival_times(Arrivals::Poisson, 50.0, amount, 3));
        assert_ne!(times, arrival_times(Arrivals::Poisson, 50.0, amount, 4));
        let gaps: Vec<f64> = times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        assert!((mean - 0.02).abs() < 0.001, "{mean}");
        // The standard deviation of exponential distances is their mean.
        assert!((variance.sqrt() - 0.02).abs() < 0.001, "{}", variance.sqrt());
    }
}
