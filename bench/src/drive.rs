//! Drives one phase: one server, one level, one round. Closed loop and open loop; the long prompt has its own file.
//!
//! Everything of a phase runs as one task on a single-threaded runtime: the client costs little, and what it
//! counts needs no locks.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

use crate::arrivals::call;
use crate::client::{Client, Server};
use crate::progress::Progress;
use crate::prompts::{Prompt, PromptSet};
use crate::reply::{Failure, Reply};
use crate::request::Question;
use crate::tenants::Tenant;
use crate::trace::Arrival;
use crate::workload::{Amount, Workload};

/// Pause of a client whose request failed: a server that is down is not hammered, nor the results flooded.
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Requests in a row without an answer after which a closed loop gives up, for each client.
const SILENT_REQUESTS_PER_CLIENT: usize = 3;

/// The same for an open loop, whose rate does not depend on answers.
const SILENT_ARRIVALS: usize = 100;

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

/// One request to come.
#[derive(Debug, Clone, Copy)]
struct Want<'a> {
    /// The prompt's number in the run.
    prompt_idx: u64,
    /// When it is to be sent; as soon as it can be if not given.
    intended: Option<Instant>,
    /// No longer answer than this, whatever the workload says.
    max_tokens: Option<u32>,
    /// What a trace says of it.
    recorded: Option<&'a Arrival>,
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
    /// Who asked, if the workload has tenants.
    pub tenant: Option<String>,
    /// From the intended time until this program noticed that it had come.
    pub wake_lateness: Duration,
}

impl Finished {
    /// A request without a deadline or tenant, sent as soon as it was wanted.
    pub fn new(prompt_idx: u64, prompt: Prompt, reply: Reply) -> Self {
        let (gaps, wake_lateness) = (reply.gaps().collect(), Duration::ZERO);
        Self { prompt_idx, prompt, reply, gaps, deadline_ms: None, tenant: None, wake_lateness }
    }
}

/// What a load gave.
#[derive(Debug, Default)]
pub struct Driven {
    /// Its requests, in the order of their prompts.
    pub finished: Vec<Finished>,
    /// Why it ended before its time, if it did.
    pub gave_up: Option<String>,
}

/// Notices when nobody answers any more. Without it, a run against a server that is stuck would go on for its
/// number of requests times the stall timeout.
#[derive(Debug)]
struct Silence {
    num_in_a_row: usize,
    limit: usize,
}

impl Silence {
    fn new(limit: usize) -> Self {
        Self { num_in_a_row: 0, limit }
    }

    fn take(&mut self, reply: &Reply) {
        let is_silence = reply.failure.as_ref().is_some_and(|(kind, _)| kind.is_silence());
        self.num_in_a_row = if is_silence { self.num_in_a_row + 1 } else { 0 };
    }

    /// Says why to give up, if it is time to.
    fn verdict(&self) -> Option<String> {
        let is_over = self.num_in_a_row >= self.limit;
        is_over.then(|| format!("gave up: {} requests in a row without an answer", self.num_in_a_row))
    }
}

impl Phase<'_> {
    /// Sends one request and reads its answer.
    async fn ask(&self, want: Want<'_>) -> Finished {
        let Want { prompt_idx, intended, max_tokens, recorded } = want;
        let intended = intended.unwrap_or_else(Instant::now);
        let workload = self.workload;
        let prompt = match recorded.and_then(|recorded| recorded.prompt_tokens) {
            Some(num_tokens) => self.prompts.of_tokens(self.seed, prompt_idx, num_tokens),
            None => self.prompts.lines(self.seed, prompt_idx, workload.texts),
        };
        let wanted_tokens = recorded.and_then(|recorded| recorded.output_tokens);
        let wanted_tokens = wanted_tokens.unwrap_or_else(|| workload.max_tokens.of(self.seed, prompt_idx));
        let max_tokens = max_tokens.map_or(wanted_tokens, |max| max.min(wanted_tokens));
        let deadline_ms = workload.deadline.as_ref().map(|deadline| deadline.ms_of(self.seed, prompt_idx));
        let tenant = self.tenant_of(prompt_idx, recorded);
        let server = self.server_for(prompt_idx, tenant, deadline_ms);
        let question = Question::new(workload, &server, &prompt, max_tokens);
        let reply = self.client.ask(&server, &question, intended, |_| self.progress.token()).await;
        self.progress.request(reply.failure.is_none());
        let tenant = tenant.map(|tenant| tenant.name.clone());
        Finished { deadline_ms, tenant, ..Finished::new(prompt_idx, prompt, reply) }
    }

    fn tenant_of(&self, prompt_idx: u64, recorded: Option<&Arrival>) -> Option<&Tenant> {
        let tenants = self.workload.tenants.as_ref()?;
        let named = recorded.and_then(|recorded| recorded.tenant.as_deref());
        named.and_then(|name| tenants.named(name)).or_else(|| Some(tenants.of(self.seed, prompt_idx)))
    }

    /// The server as this request addresses it: model, key and headers are the request's own.
    fn server_for(&self, prompt_idx: u64, tenant: Option<&Tenant>, deadline_ms: Option<u32>) -> Server {
        let mut server = self.server.clone();
        if let Some(models) = &self.workload.models {
            server.model = models.of(self.seed, prompt_idx);
        }
        if let Some(tenant) = tenant {
            server.api_key = tenant.api_key.clone().or(server.api_key);
            server.headers.extend(tenant.headers.clone());
        }
        let deadline = self.workload.deadline.as_ref().zip(deadline_ms);
        server.headers.extend(deadline.map(|(deadline, ms)| (deadline.header.clone(), ms.to_string())));
        server
    }

    /// Sends requests that are not counted, all at once. A failure shows in the phase itself.
    pub async fn warm_up(&self) {
        // Prompts of their own, far from those of any phase.
        let first = u64::MAX / 2 + self.first_prompt;
        let max_tokens = Some(MAX_WARMUP_TOKENS);
        let ask =
            |idx| self.ask(Want { prompt_idx: first + idx, intended: None, max_tokens, recorded: None });
        join_all((0..self.workload.warmup as u64).map(ask)).await;
    }
}

/// Closed loop: each client sends its next request when its last one ended.
pub async fn closed_loop(phase: Phase<'_>, num_clients: usize, amount: Amount) -> Driven {
    let started = Instant::now();
    let (num_requests, until) = match amount {
        Amount::Requests(count) => (count as u64, None),
        Amount::RequestsPerClient(count) => ((count * num_clients) as u64, None),
        Amount::Duration(duration) => (u64::MAX, Some(started + duration)),
    };
    // Clients take from one heap of work, so that the last ones are not left to run alone for long.
    let next = Cell::new(0);
    let silence = RefCell::new(Silence::new(SILENT_REQUESTS_PER_CLIENT * num_clients));
    let is_wanted = || {
        let is_in_time = until.is_none_or(|until| Instant::now() < until);
        next.get() < num_requests && is_in_time && silence.borrow().verdict().is_none()
    };
    let client_loop = || async {
        let mut finished = Vec::new();
        while is_wanted() {
            let prompt_idx = phase.first_prompt + next.replace(next.get() + 1);
            let one = phase.ask(Want { prompt_idx, intended: None, max_tokens: None, recorded: None }).await;
            silence.borrow_mut().take(&one.reply);
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
    let is_whole = next.get() >= num_requests || until.is_some_and(|until| Instant::now() >= until);
    let gave_up = silence.borrow().verdict().filter(|_| !is_whole);
    Driven { finished, gave_up }
}

/// Open loop: requests arrive at their offsets from the beginning, whatever became of earlier ones, and latency
/// counts from those times, also for a request that had to wait here. `recorded` has an entry for each offset, or
/// none at all.
///
/// # Errors
/// When the system gives no thread for the clock.
pub async fn open_loop(
    phase: Phase<'_>,
    offsets: Vec<Duration>,
    recorded: &[Arrival],
    max_in_flight: usize,
) -> std::io::Result<Driven> {
    let places = Semaphore::new(max_in_flight);
    let num_arrivals = offsets.len();
    let started = Instant::now();
    let mut arrivals = call(offsets.clone(), started)?;
    let answer = |idx: usize| {
        let intended = started + offsets[idx];
        // The future is made when the arrival is called: from here on it is only the place that it waits for.
        let wake_lateness = intended.elapsed();
        let prompt_idx = phase.first_prompt + idx as u64;
        let want =
            Want { prompt_idx, intended: Some(intended), max_tokens: None, recorded: recorded.get(idx) };
        let places = &places;
        async move {
            let _place = places.acquire().await.expect("the semaphore is never closed");
            Finished { wake_lateness, ..phase.ask(want).await }
        }
    };
    let mut under_way = FuturesUnordered::new();
    let mut driven = Driven::default();
    let mut silence = Silence::new(SILENT_ARRIVALS);
    let mut is_arriving = true;
    while is_arriving || !under_way.is_empty() {
        tokio::select! {
            arrival = arrivals.recv(), if is_arriving => match arrival {
                Some(idx) => under_way.push(answer(idx)),
                None => is_arriving = false,
            },
            Some(one) = under_way.next(), if !under_way.is_empty() => {
                silence.take(&one.reply);
                driven.finished.push(one);
                let num_left = num_arrivals - driven.finished.len();
                if let Some(reason) = silence.verdict().filter(|_| num_left > 0) {
                    driven.gave_up = Some(format!("{reason}; {num_left} more were not waited for"));
                    break;
                }
            }
        }
    }
    driven.finished.sort_by_key(|one| one.prompt_idx);
    Ok(driven)
}

/// A request that stands for a phase's failure outside its own requests.
pub fn failed(prompt_idx: u64, prompt: Prompt, failure: (Failure, String)) -> Finished {
    let reply = Reply { failure: Some(failure), ..Reply::new(Instant::now()) };
    Finished::new(prompt_idx, prompt, reply)
}
