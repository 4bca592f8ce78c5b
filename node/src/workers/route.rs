//! Which worker gets a request, and what becomes of it where there is none.

use std::time::{Duration, Instant};

use metrics::counter;
use quern_scheduler::request::{Event, Failure, Request, Score, Sink, Work};
use quern_scheduler::{Backlog, Permit, Refused};

use super::pool::{Pool, State, Worker};
use super::prefixes::blocks;
use super::{NotTaken, Settings};

/// A shorter prefix is not worth leaving the least loaded worker for: a chat
/// template's first words are common to everybody.
const WORTH_TOKENS: usize = 64;

/// A request waits for a worker that is to be started again within this time;
/// else it is told to come back.
const WORTH_WAITING: Duration = Duration::from_secs(1);

/// A request on its way to a worker.
pub(super) struct Offer {
    permit: Permit,
    pub(super) request: Box<Request>,
    /// Of its prompt; empty where there can only be one worker.
    blocks: Vec<u64>,
}

/// What is known of a worker when a request comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Candidate {
    /// Requests that it has not finished.
    requests: usize,
    /// Prompt tokens that it has to compute before the request's.
    tokens: u64,
    /// Tokens of the prompt that it should have.
    cached: usize,
}

/// Why a worker was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    Prefix,
    /// The one with the prefix has too much to do.
    Spilled,
    LeastLoaded,
}

impl Candidate {
    fn of(worker: &Worker, blocks: &[u64]) -> Candidate {
        let Backlog { requests, tokens } = worker.handle.backlog();
        Candidate { requests, tokens, cached: worker.prefixes.cached_tokens(blocks) }
    }

    /// Whether a cached prefix is not worth waiting behind all of this.
    fn is_overloaded(&self, least: &Candidate, settings: &Settings) -> bool {
        self.requests > least.requests + settings.spill_requests
            || self.tokens > least.tokens + settings.spill_tokens
    }
}

/// The longest cached prefix wins, unless its worker is overloaded beside the
/// least loaded one; of equal ones the least loaded.
fn choose(candidates: &[Candidate], settings: &Settings) -> Option<(usize, Why)> {
    let all = || candidates.iter().enumerate();
    let (least_idx, least) = all().min_by_key(|(_, one)| (one.requests, one.tokens))?;
    let longest = all()
        .filter(|(_, one)| one.cached >= WORTH_TOKENS)
        .min_by_key(|(_, one)| (std::cmp::Reverse(one.cached), one.requests, one.tokens));
    Some(match longest {
        None => (least_idx, Why::LeastLoaded),
        Some((_, one)) if one.is_overloaded(least, settings) => (least_idx, Why::Spilled),
        Some((idx, _)) => (idx, Why::Prefix),
    })
}

impl Pool {
    pub(super) fn submit(&self, permit: Permit, request: Request) -> Result<(), NotTaken> {
        let alone = self.settings.max == 1;
        let blocks = if alone { Vec::new() } else { blocks(request.adapter, &request.prompt) };
        let mut state = self.lock();
        if state.stopping {
            return Err(Refused::Closed.into());
        }
        self.arrivals.arrived();
        state.idle_since = None;
        match self.route(&mut state, Offer { permit, request: Box::new(request), blocks })? {
            None => Ok(()),
            Some(offer) => self.wait_for_worker(&mut state, offer),
        }
    }

    /// Gives a request to a worker; back where nobody is ready.
    pub(super) fn route(&self, state: &mut State, mut offer: Offer) -> Result<Option<Offer>, NotTaken> {
        // Those that turn out to have ended.
        let mut gone = Vec::new();
        loop {
            let serves = |worker: &&mut Worker| worker.is_useful() && !gone.contains(&worker.id);
            let mut ready: Vec<&mut Worker> = state.workers.iter_mut().filter(serves).collect();
            let chosen = match ready.len() {
                0 => return Ok(Some(offer)),
                1 => 0,
                _ => {
                    let candidates: Vec<Candidate> =
                        ready.iter().map(|worker| Candidate::of(worker, &offer.blocks)).collect();
                    let (chosen, why) = choose(&candidates, &self.settings).expect("there are two or more");
                    note(why);
                    chosen
                }
            };
            let worker = &mut ready[chosen];
            let Err(not_taken) = worker.handle.offer(offer.permit, offer.request) else {
                worker.prefixes.note(&offer.blocks);
                return Ok(None);
            };
            if not_taken.why != Refused::Closed {
                return Err(not_taken.why.into());
            }
            gone.push(worker.id);
            offer = Offer { permit: not_taken.permit, request: not_taken.request, blocks: offer.blocks };
        }
    }

    /// Keeps a request until there is a worker, and asks for one. The queue's
    /// bound holds for these too.
    fn wait_for_worker(&self, state: &mut State, offer: Offer) -> Result<(), NotTaken> {
        if let Some(trouble) = state.trouble.as_ref().filter(|trouble| !trouble.over) {
            let retry_after = trouble.retry_at.saturating_duration_since(Instant::now());
            if retry_after > WORTH_WAITING {
                return Err(NotTaken::NoWorker { why: trouble.why.clone(), retry_after });
            }
        }
        state.wake();
        state.pending.push_back(offer);
        self.changed.notify_all();
        Ok(())
    }

    /// Gives those that wait to a worker that has come.
    pub(super) fn flush(&self, state: &mut State) {
        while let Some(offer) = state.pending.pop_front() {
            match self.route(state, offer) {
                Ok(None) => {}
                Ok(Some(offer)) => {
                    state.pending.push_front(offer);
                    return;
                }
                // Its way in is full of other commands, which is over soon; the
                // request's sinks are gone, so that it ends as lost.
                Err(error) => tracing::error!(error = %error, "a request that waited was not taken"),
            }
        }
    }
}

impl State {
    /// Fails those that wait past their deadline, and forgets those that nobody
    /// waits for.
    pub(super) fn expire(&mut self, now: Instant) {
        self.pending.retain_mut(|offer| {
            if offer.request.deadline.is_some_and(|at| at < now) {
                fail(&mut offer.request, &Failure::Expired);
                return false;
            }
            !is_given_up(&offer.request)
        });
    }

    /// Fails all that wait.
    pub(super) fn fail_pending(&mut self, failure: &Failure) {
        self.pending.drain(..).for_each(|mut offer| fail(&mut offer.request, failure));
    }
}

fn fail(request: &mut Request, failure: &Failure) {
    let tell = |sink: &mut Box<dyn Sink>| {
        // Nobody listening is no error: the request is over either way.
        let _ = sink.send(Event::Failed(failure.clone()));
    };
    match &mut request.work {
        Work::Generate(generate) => generate.sinks.iter_mut().for_each(tell),
        Work::Embed { sink, .. } | Work::Score(Score { sink, .. }) => tell(sink),
    }
}

fn is_given_up(request: &Request) -> bool {
    match &request.work {
        Work::Generate(generate) => generate.sinks.iter().all(|sink| sink.is_closed()),
        Work::Embed { sink, .. } | Work::Score(Score { sink, .. }) => sink.is_closed(),
    }
}

fn note(why: Why) {
    let why = match why {
        Why::Prefix => "prefix",
        Why::Spilled => "spilled",
        Why::LeastLoaded => "least_loaded",
    };
    counter!("quern_routed_requests_total", "why" => why).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(candidates: &[(usize, u64, usize)], expected: (usize, Why)) {
        let candidates =
            candidates.iter().map(|&(requests, tokens, cached)| Candidate { requests, tokens, cached });
        let candidates: Vec<Candidate> = candidates.collect();
        assert_eq!(choose(&candidates, &Settings::default()), Some(expected));
    }

    #[test]
    fn the_longest_prefix_wins() {
        check(&[(0, 0, 64), (3, 100, 128), (0, 0, 0)], (1, Why::Prefix));
        check(&[(2, 0, 128), (1, 0, 128)], (1, Why::Prefix));
        check(&[(2, 50, 128), (2, 0, 128)], (1, Why::Prefix));
    }

    #[test]
    fn without_one_worth_it_the_least_loaded_gets_it() {
        check(&[(1, 0, 0), (0, 0, 0)], (1, Why::LeastLoaded));
        check(&[(1, 0, 48), (0, 0, 0)], (1, Why::LeastLoaded));
        check(&[(1, 9, 0), (1, 5, 0)], (1, Why::LeastLoaded));
    }

    #[test]
    fn an_overloaded_worker_is_passed_over() {
        check(&[(8, 0, 512), (0, 0, 0)], (0, Why::Prefix));
        check(&[(9, 0, 512), (0, 0, 0)], (1, Why::Spilled));
        check(&[(1, 2048, 512), (0, 0, 0)], (0, Why::Prefix));
        check(&[(1, 2049, 512), (0, 0, 0)], (1, Why::Spilled));
    }
}
