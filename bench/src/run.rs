//! A run: every level, round by round, the servers in turn, and the figures of each phase.
//!
//! The load runs on its own thread with a single-threaded runtime. Results go to a sink after each phase, so
//! that a run that is interrupted leaves what it has measured.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::check::{Agreement, Verdict, judge};
use crate::client::{Client, Server};
use crate::drive::{Phase, closed_loop, open_loop};
use crate::long_prompt::{LongPrompts, long_prompt_loop};
use crate::machine::own_cpu_time;
use crate::progress::{Progress, ProgressLine};
use crate::prompts::PromptSet;
use crate::stats::PhaseSummary;
use crate::summary::{Measured, RequestRecord, records, summarise};
use crate::workload::{Amount, Load, Strictness, Workload};

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
    /// Servers in turn.
    pub servers: Vec<Server>,
    /// How often each pair is measured.
    pub rounds: usize,
    /// Decides numbers in prompts and arrival times.
    pub seed: u64,
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
}

impl RunOutcome {
    /// Whether the run counts as passed: no wrong answer, and no more failures than the workload allows.
    pub fn is_passed(&self, workload: &Workload) -> bool {
        let share = self.num_failed as f64 / self.num_requests.max(1) as f64;
        self.num_wrong == 0 && share <= workload.check.max_error_share
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
    let client = Client::new(plan.workload.stall_timeout, plan.workload.request_timeout)?;
    let mut outcome = RunOutcome::default();
    let mut first_prompt = 0;
    for level in levels_of(&plan.workload.load) {
        for round in 0..plan.rounds {
            let mut agreement = Agreement::default();
            for (server_idx, server) in plan.servers.iter().enumerate() {
                let workload = &plan.workload;
                let label =
                    format!("{}, round {} of {}, {}", level.label, round + 1, plan.rounds, server.name);
                prepare(server, &label)?;
                let (prompts, seed) = (&plan.prompts, plan.seed);
                let first_prompt = first_prompt + PROMPTS_APART * twins_before(&plan.servers, server_idx);
                let phase =
                    Phase { client: &client, server, workload, prompts, seed, first_prompt, progress };
                let measured = run_phase(plan, phase, &level, label).await;
                let place = (server.name.as_str(), level.label.as_str(), round);
                let judged = judge_all(plan, &measured, server_idx, &mut agreement, &mut outcome);
                let summary = summarise(place, level.value, &measured, &judged);
                sink.take(&summary, &records(place, &measured, &judged))?;
                outcome.num_requests += summary.num_ok + summary.num_failed;
                outcome.num_failed += summary.num_failed;
                outcome.num_wrong += summary.num_wrong;
                outcome.phases.push(summary);
            }
            outcome.num_compared += agreement.num_compared;
            outcome.num_different += agreement.num_different;
            first_prompt += prompts_of(&plan.workload.load, &level);
        }
    }
    Ok(outcome)
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
        Load::LongPrompt { streams, .. } => {
            let level = |n: &usize| Level { label: format!("{n} stream{}", plural(*n)), value: *n as f64 };
            streams.iter().map(level).collect()
        }
    }
}

/// How many prompt numbers a phase takes, so that the next one does not repeat its prompts.
fn prompts_of(load: &Load, level: &Level) -> u64 {
    match load {
        Load::Closed { amount, .. } | Load::Open { amount, .. } => match amount {
            Amount::Requests(count) => *count as u64,
            Amount::RequestsPerClient(count) => *count as u64 * level.value as u64,
            Amount::Duration(_) => PROMPTS_PER_PHASE,
        },
        Load::LongPrompt { trials, .. } => *trials as u64,
    }
}

async fn run_phase(plan: &RunPlan, phase: Phase<'_>, level: &Level, label: String) -> Measured {
    phase.progress.begin(format!("{label} (warm-up)"));
    phase.warm_up().await;
    phase.progress.begin(label);
    let (started, cpu_before) = (tokio::time::Instant::now(), own_cpu_time());
    let finished = match &plan.workload.load {
        Load::Closed { amount, .. } => closed_loop(phase, level.value as usize, *amount).await,
        Load::Open { arrivals, amount, max_in_flight, .. } => {
            open_loop(phase, *arrivals, level.value, *amount, *max_in_flight).await
        }
        Load::LongPrompt { settle_tokens, trials, rest, max_tokens, .. } => {
            let prompts = plan.long_prompts.as_ref().expect("this load was planned with long prompts");
            let (max_tokens, settle_tokens, trials, rest) = (*max_tokens, *settle_tokens, *trials, *rest);
            let long = LongPrompts { prompts, max_tokens, settle_tokens, trials, rest };
            long_prompt_loop(phase, level.value as usize, long, plan.workload.stall_timeout).await
        }
    };
    let cpu = own_cpu_time().saturating_sub(cpu_before);
    let cpu_share = cpu.as_secs_f64() / started.elapsed().as_secs_f64().max(1e-3);
    let is_long_prompt = matches!(plan.workload.load, Load::LongPrompt { .. });
    Measured { finished, cpu_share, is_long_prompt }
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
