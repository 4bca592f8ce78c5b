//! A run: every level, round by round, the servers in turn, and the figures of each phase.
//!
//! The load runs on its own thread with a single-threaded runtime. Results go to a sink after each phase, so
//! that a run that is interrupted leaves what it has measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use crate::check::{Agreement, Strictness, Verdict, judge};
use crate::client::{Client, Server};
use crate::drive::{Driven, Phase, closed_loop, open_loop};
use crate::long_prompt::{LongPrompts, long_prompt_loop};
use crate::machine::own_cpu_time;
use crate::progress::{Progress, ProgressLine};
use crate::prompts::{PromptError, PromptSet};
use crate::ramp::RampEnd;
use crate::stats::{PhaseSummary, rounds};
use crate::summary::{Measured, RequestRecord, records, summarise};
use crate::trace::{Trace, TraceError};
use crate::workload::{Amount, Load, Workload};

/// Prompts that one phase of a fixed duration may use before it meets the next one's.
const PROMPTS_PER_PHASE: u64 = 10_000;

/// Distance between the prompts of two settings of one server. A multiple of many lengths of lists, so that
/// both are asked the same texts.
const PROMPTS_APART: u64 = 1 << 32;

/// What to run.
#[derive(Debug)]
pub struct RunPlan {
    /// The workload.
    pub workload: Workload,
    /// Its prompts.
    pub prompts: PromptSet,
    /// The long prompts, if its load has them.
    pub long_prompts: Option<PromptSet>,
    /// The trace, if its load replays one.
    pub trace: Option<Trace>,
    /// Servers in turn.
    pub servers: Vec<Server>,
    /// How often each pair is measured.
    pub rounds: usize,
    /// Decides numbers in prompts and arrival times.
    pub seed: u64,
}

/// Why a workload that has no mistake of its own cannot be run: something it names cannot be used.
#[derive(Debug, Error)]
pub enum PlanError {
    /// Its prompts.
    #[error(transparent)]
    Prompts(#[from] PromptError),
    /// Its trace.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// The trace has lengths that the prompts cannot have.
    #[error(
        "workload {workload}: the trace says how many tokens prompts have, but only prompts cut from a text can be \
         given a length: name a text in [prompts], or take the column prompt_tokens out of the trace"
    )]
    LengthsUnused {
        /// The workload's name.
        workload: String,
    },
}

impl RunPlan {
    /// Reads the files that a workload names.
    ///
    /// # Errors
    /// When one of them cannot be used.
    pub fn new(
        workload: Workload,
        servers: Vec<Server>,
        rounds: usize,
        seed: u64,
    ) -> Result<Self, PlanError> {
        let prompts = workload.read_prompts(&workload.prompts)?;
        let long_prompts = match &workload.load {
            Load::LongPrompt { prompts, .. } => Some(workload.read_prompts(prompts)?),
            _ => None,
        };
        let trace = workload.read_trace()?;
        if trace.as_ref().is_some_and(Trace::has_prompt_lengths) && !prompts.has_lengths() {
            return Err(PlanError::LengthsUnused { workload: workload.name });
        }
        Ok(Self { workload, prompts, long_prompts, trace, servers, rounds, seed })
    }
}

/// Everything that a run found out.
#[derive(Debug, Default)]
pub struct RunOutcome {
    /// A summary a phase, in the order in which they ran.
    pub phases: Vec<PhaseSummary>,
    /// Answers that were compared across servers.
    pub num_compared: u64,
    /// Those that differed.
    pub num_different: u64,
    /// Requests of all phases.
    pub num_requests: u64,
    /// Those that failed.
    pub num_failed: u64,
    /// Those with wrong answers.
    pub num_wrong: u64,
    /// One message for each kind of failure or wrong answer.
    pub examples: BTreeMap<String, String>,
    /// Where each server's ramp ended, if the load is one.
    pub ramp_ends: Vec<RampEnd>,
}

impl RunOutcome {
    /// Whether the run counts as passed.
    pub fn is_passed(&self, workload: &Workload) -> bool {
        self.why_failed(workload).is_none()
    }

    /// Why the run does not count as passed: a wrong answer, more failures than the workload allows, a phase that
    /// was given up, or a ramp that held at no rate. Failures at the rate that a ramp broke at are its result.
    pub fn why_failed(&self, workload: &Workload) -> Option<String> {
        let (failed, wrong, all) = (self.num_failed, self.num_wrong, self.num_requests);
        let is_ramp = !self.ramp_ends.is_empty();
        let share = failed as f64 / all.max(1) as f64;
        if let Some(end) = self.ramp_ends.iter().find(|end| end.held_rate.is_none()) {
            return Some(end.to_string());
        }
        if let Some(phase) = self.phases.iter().find(|phase| phase.gave_up.is_some() && !is_ramp) {
            let gave_up = phase.gave_up.as_deref().unwrap_or_default();
            return Some(format!("{}, {}: {gave_up}", phase.server, phase.level));
        }
        let has_too_many_failures = !is_ramp && share > workload.check.max_error_share;
        (wrong > 0 || has_too_many_failures)
            .then(|| format!("{failed} of {all} requests failed, {wrong} answers were wrong"))
    }
}

/// Takes a phase's results as soon as they are there.
pub trait Sink {
    /// Writes a phase down.
    ///
    /// # Errors
    /// When it cannot; the run ends then.
    fn take(&mut self, summary: &PhaseSummary, records: &[RequestRecord]) -> std::io::Result<()>;
}

/// Runs the plan on a thread of its own and shows its progress. Blocks until it is done.
///
/// # Errors
/// When the system gives no thread, sockets or runtime, or the sink fails.
pub fn run(plan: RunPlan, sink: Box<dyn Sink + Send>) -> anyhow::Result<RunOutcome> {
    let progress = Arc::new(Progress::default());
    let line = ProgressLine::new();
    let load = std::thread::Builder::new().name("load".to_owned()).spawn({
        let progress = Arc::clone(&progress);
        move || -> anyhow::Result<RunOutcome> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(run_plan(&plan, &progress, sink))
        }
    })?;
    while !load.is_finished() {
        line.draw(&progress);
        // Five times a second: enough for eyes, too little to disturb the servers.
        std::thread::park_timeout(Duration::from_millis(200));
    }
    load.join().map_err(|_| anyhow::anyhow!("the load thread panicked"))?
}

async fn run_plan(
    plan: &RunPlan,
    progress: &Progress,
    mut sink: Box<dyn Sink + Send>,
) -> anyhow::Result<RunOutcome> {
    let workload = &plan.workload;
    let client = Client::new(workload.stall_timeout, workload.request_timeout)
        .keeping_connections(workload.keeps_connections);
    let mut outcome = RunOutcome::default();
    if let Load::Ramp { .. } = plan.workload.load {
        outcome.ramp_ends = plan.servers.iter().map(|server| RampEnd::new(&server.name)).collect();
    }
    let mut first_prompt = 0;
    for level in levels_of(&plan.workload.load) {
        for round in 0..plan.rounds {
            let mut agreement = Agreement::default();
            for server_idx in 0..plan.servers.len() {
                if outcome.ramp_ends.get(server_idx).is_some_and(|end| !end.is_rising()) {
                    continue;
                }
                let turn = Turn { plan, client: &client, level: &level, round, server_idx, first_prompt };
                let measured = turn.measure(progress).await?;
                turn.take(&measured, &mut agreement, &mut outcome, sink.as_mut())?;
            }
            outcome.num_compared += agreement.num_compared;
            outcome.num_different += agreement.num_different;
            first_prompt += prompts_of(plan, &level);
        }
        for end in outcome.ramp_ends.iter_mut().filter(|end| end.is_rising()) {
            let server = end.server.clone();
            end.take(level.value, rounds(&outcome.phases, &server, &level.label));
        }
    }
    Ok(outcome)
}

/// One server's turn: one level, one round.
struct Turn<'a> {
    plan: &'a RunPlan,
    client: &'a Client,
    level: &'a Level,
    round: usize,
    server_idx: usize,
    first_prompt: u64,
}

impl Turn<'_> {
    async fn measure(&self, progress: &Progress) -> anyhow::Result<Measured> {
        let Self { plan, client, level, .. } = *self;
        let server = &plan.servers[self.server_idx];
        let label = format!("{}, round {} of {}, {}", level.label, self.round + 1, plan.rounds, server.name);
        prepare(server, &label)?;
        let (workload, prompts, seed) = (&plan.workload, &plan.prompts, plan.seed);
        let first_prompt = self.first_prompt + PROMPTS_APART * twins_before(&plan.servers, self.server_idx);
        let phase = Phase { client, server, workload, prompts, seed, first_prompt, progress };
        run_phase(plan, phase, level, label).await
    }

    fn take(
        &self,
        measured: &Measured,
        agreement: &mut Agreement,
        outcome: &mut RunOutcome,
        sink: &mut (dyn Sink + Send),
    ) -> std::io::Result<()> {
        let server = &self.plan.servers[self.server_idx];
        let place = (server.name.as_str(), self.level.label.as_str(), self.round);
        let objective = self.plan.workload.objective.as_ref();
        let judged = judge_all(self.plan, measured, self.server_idx, agreement, outcome);
        let summary = summarise(place, self.level.value, objective, measured, &judged);
        sink.take(&summary, &records(place, objective, measured, &judged))?;
        outcome.num_requests += summary.num_ok + summary.num_failed;
        outcome.num_failed += summary.num_failed;
        outcome.num_wrong += summary.num_wrong;
        outcome.phases.push(summary);
        Ok(())
    }
}

/// How many earlier settings of the same server there are: each prompt comes only once to a server that is
/// prepared anew, for else its cache would know the next setting's.
fn twins_before(servers: &[Server], idx: usize) -> u64 {
    let is_twin = |other: &&Server| other.prepare.is_some() && other.url == servers[idx].url;
    servers[..idx].iter().filter(is_twin).count() as u64
}

/// Runs a server's command, if it has one. The load rests meanwhile.
fn prepare(server: &Server, label: &str) -> anyhow::Result<()> {
    let Some(command) = &server.prepare else { return Ok(()) };
    let done = std::process::Command::new("sh").args(["-c", command]).output()?;
    let words = String::from_utf8_lossy(&done.stderr);
    anyhow::ensure!(done.status.success(), "{label}: {command}: {}: {}", done.status, words.trim());
    Ok(())
}

/// A level with its name.
struct Level {
    label: String,
    value: f64,
}

fn levels_of(load: &Load) -> Vec<Level> {
    let plural = |count: usize| if count == 1 { "" } else { "s" };
    match load {
        Load::Closed { clients, .. } => {
            let level = |n: &usize| Level { label: format!("{n} client{}", plural(*n)), value: *n as f64 };
            clients.iter().map(level).collect()
        }
        Load::Open { rates, .. } => {
            rates.iter().map(|rate| Level { label: format!("{rate} requests/s"), value: *rate }).collect()
        }
        Load::Ramp { ramp, .. } => {
            let level = |rate: f64| Level { label: format!("{rate} requests/s"), value: rate };
            ramp.rates().into_iter().map(level).collect()
        }
        Load::Trace { speeds, .. } => {
            let level = |speed: &f64| Level { label: format!("trace × {speed}"), value: *speed };
            speeds.iter().map(level).collect()
        }
        Load::LongPrompt { streams, .. } => {
            let level = |n: &usize| Level { label: format!("{n} stream{}", plural(*n)), value: *n as f64 };
            streams.iter().map(level).collect()
        }
    }
}

/// How many prompt numbers a phase takes, so that the next one does not repeat its prompts.
fn prompts_of(plan: &RunPlan, level: &Level) -> u64 {
    match &plan.workload.load {
        Load::Closed { amount, .. } | Load::Open { amount, .. } | Load::Ramp { amount, .. } => match amount {
            Amount::Requests(count) => *count as u64,
            Amount::RequestsPerClient(count) => *count as u64 * level.value as u64,
            Amount::Duration(_) => PROMPTS_PER_PHASE,
        },
        Load::Trace { .. } => plan.trace.as_ref().map_or(0, |trace| trace.arrivals.len() as u64),
        Load::LongPrompt { trials, .. } => *trials as u64,
    }
}

async fn run_phase(
    plan: &RunPlan,
    phase: Phase<'_>,
    level: &Level,
    label: String,
) -> anyhow::Result<Measured> {
    phase.progress.begin(format!("{label} (warm-up)"));
    phase.warm_up().await;
    phase.progress.begin(label);
    let (started, cpu_before) = (tokio::time::Instant::now(), own_cpu_time());
    let driven = drive(plan, phase, level).await?;
    let (cpu_time, elapsed) = (own_cpu_time().saturating_sub(cpu_before), started.elapsed());
    let is_long_prompt = matches!(plan.workload.load, Load::LongPrompt { .. });
    let Driven { finished, gave_up } = driven;
    Ok(Measured { finished, gave_up, cpu_time, elapsed, is_long_prompt })
}

async fn drive(plan: &RunPlan, phase: Phase<'_>, level: &Level) -> std::io::Result<Driven> {
    match &plan.workload.load {
        Load::Closed { amount, .. } => Ok(closed_loop(phase, level.value as usize, *amount).await),
        Load::Open { arrivals, amount, max_in_flight, .. }
        | Load::Ramp { arrivals, amount, max_in_flight, .. } => {
            let offsets = arrivals.offsets(level.value, *amount, phase.seed ^ phase.first_prompt);
            open_loop(phase, offsets, &[], *max_in_flight).await
        }
        Load::Trace { max_in_flight, .. } => {
            let recorded = &plan.trace.as_ref().expect("this load was planned with its trace").arrivals;
            let offsets = recorded.iter().map(|arrival| arrival.offset(level.value)).collect();
            open_loop(phase, offsets, recorded, *max_in_flight).await
        }
        Load::LongPrompt { settle_tokens, trials, rest, max_tokens, .. } => {
            let prompts = plan.long_prompts.as_ref().expect("this load was planned with long prompts");
            let (max_tokens, settle_tokens, trials, rest) = (*max_tokens, *settle_tokens, *trials, *rest);
            let long = LongPrompts { prompts, max_tokens, settle_tokens, trials, rest };
            let stall_timeout = plan.workload.stall_timeout;
            let finished = long_prompt_loop(phase, level.value as usize, long, stall_timeout).await;
            Ok(Driven { finished, gave_up: None })
        }
    }
}

/// Judges a phase's answers, in the order of its requests; none for a request that failed.
fn judge_all(
    plan: &RunPlan,
    measured: &Measured,
    server_idx: usize,
    agreement: &mut Agreement,
    outcome: &mut RunOutcome,
) -> Vec<Option<Verdict>> {
    let check = &plan.workload.check;
    let mut judged = Vec::with_capacity(measured.finished.len());
    for one in &measured.finished {
        if let Some((kind, message)) = &one.reply.failure {
            outcome.examples.entry(kind.to_string()).or_insert_with(|| message.clone());
            judged.push(None);
            continue;
        }
        let mut verdict = judge(check, &one.prompt, &one.reply);
        if let Some(strictness) = check.equal_across_servers {
            let is_different = agreement.take(one.prompt_idx, server_idx, &one.reply.text);
            if is_different && strictness == Strictness::Require {
                verdict.wrong.get_or_insert_with(|| "unlike the first server's answer".to_owned());
            }
        }
        if let Some(wrong) = &verdict.wrong {
            let answer: String = one.reply.text.chars().take(200).collect();
            outcome.examples.entry(wrong.clone()).or_insert_with(|| format!("{answer:?}"));
        }
        judged.push(Some(verdict));
    }
    judged
}
