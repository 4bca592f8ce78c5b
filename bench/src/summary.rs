//! From the requests of one phase to its summary, and to the lines that are written down. No HTTP, no files.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::check::Verdict;
use crate::drive::Finished;
use crate::objective::Objective;
use crate::stats::{ObjectiveFigures, PhaseSummary, TenantFigures};
use crate::times::Times;

/// What a phase gave, before it is judged.
#[derive(Debug)]
pub struct Measured {
    /// Its requests, in the order of their prompts.
    pub finished: Vec<Finished>,
    /// Why it ended before its time, if it did.
    pub gave_up: Option<String>,
    /// This program's processor time meanwhile.
    pub cpu_time: Duration,
    /// How long the load was driven.
    pub elapsed: Duration,
    /// Requests are long prompts, and their gaps those of the streams beside them.
    pub is_long_prompt: bool,
}

/// One request as it is written down.
#[derive(Debug, Serialize)]
pub struct RequestRecord {
    /// The server's name.
    pub server: String,
    /// The level.
    pub level: String,
    /// From 0.
    pub round: usize,
    /// The prompt's number.
    pub prompt_idx: u64,
    /// How it failed, with the message.
    pub failure: Option<(String, String)>,
    /// Why its answer is wrong.
    pub wrong: Option<String>,
    /// Whether its answer contains the expected one.
    pub as_expected: Option<bool>,
    /// Prompt tokens as the server counts.
    pub prompt_tokens: Option<u64>,
    /// Answer tokens.
    pub tokens: u64,
    /// Why the server stopped.
    pub finish_reason: Option<String>,
    /// From the phase's beginning to the intended time.
    pub intended_s: f64,
    /// From the intended time to sending.
    pub late_ms: f64,
    /// From the intended time to the first content.
    pub ttft_ms: Option<f64>,
    /// From the intended time to the end.
    pub e2e_ms: f64,
    /// Longest time between two tokens.
    pub longest_gap_ms: Option<f64>,
    /// The deadline that the server was told, from the intended time.
    pub deadline_ms: Option<u32>,
    /// Who asked, if the workload has tenants.
    pub tenant: Option<String>,
    /// Whether it kept the objective, if there is one.
    pub is_kept: Option<bool>,
    /// Stands for the answer's text: equal for equal answers.
    pub answer: String,
}

/// Server, level and round of a phase.
pub type PhasePlace<'a> = (&'a str, &'a str, usize);

/// The requests of a phase that ended well, as sets of times.
#[derive(Default)]
struct Sets {
    ttft: Times,
    tbt: Times,
    tpot: Times,
    longest_gap: Times,
    e2e: Times,
    ttft_from_send: Times,
    e2e_from_send: Times,
}

impl Sets {
    fn take(&mut self, one: &Finished) {
        let reply = &one.reply;
        self.e2e.record(reply.ended.duration_since(reply.intended));
        self.e2e_from_send.record(reply.ended.duration_since(reply.sent));
        reply.time_to_first_token().into_iter().for_each(|time| self.ttft.record(time));
        let from_send = reply.deltas.first().map(|first| first.duration_since(reply.sent));
        from_send.into_iter().for_each(|time| self.ttft_from_send.record(time));
        reply.time_per_token().into_iter().for_each(|time| self.tpot.record(time));
        one.gaps.iter().for_each(|gap| self.tbt.record(*gap));
        one.gaps.iter().max().into_iter().for_each(|gap| self.longest_gap.record(*gap));
    }
}

/// The figures of a phase. `judged` has an entry for each request, none for one that failed.
pub fn summarise(
    (server, level, round): PhasePlace<'_>,
    level_value: f64,
    objective: Option<&Objective>,
    measured: &Measured,
    judged: &[Option<Verdict>],
) -> PhaseSummary {
    let all = &measured.finished;
    let (mut send_lateness, mut wake_lateness) = (Times::default(), Times::default());
    for one in all {
        send_lateness.record(one.reply.sent.duration_since(one.reply.intended));
        wake_lateness.record(one.wake_lateness);
    }
    let mut sets = Sets::default();
    let good = || all.iter().filter(|one| one.reply.failure.is_none());
    good().for_each(|one| sets.take(one));
    let verdicts = judged.iter().flatten();
    let wrong = count(verdicts.clone().filter_map(|verdict| verdict.wrong.clone()));
    let failures =
        count(all.iter().filter_map(|one| one.reply.failure.as_ref()).map(|(kind, _)| kind.to_string()));
    let expected: Vec<(u64, u64)> = verdicts.filter_map(|verdict| verdict.as_expected).collect();
    let num_ok = good().count() as u64;
    let tokens = match measured.is_long_prompt {
        // What the streams did while a long prompt was prefilled: their tokens, over that time.
        true => sets.tbt.count(),
        false => good().map(|one| one.reply.num_tokens()).sum(),
    };
    let wall_s = wall_time(measured).as_secs_f64();
    let per_second = |count: u64| if wall_s > 0.0 { count as f64 / wall_s } else { 0.0 };
    PhaseSummary {
        server: server.to_owned(),
        level: level.to_owned(),
        level_value,
        round,
        num_ok,
        num_failed: failures.values().sum(),
        num_wrong: wrong.values().sum(),
        failures,
        wrong,
        num_with_expected: expected.iter().map(|(_, all)| all).sum(),
        num_as_expected: expected.iter().map(|(right, _)| right).sum(),
        wall_s,
        prompt_tokens: good().filter_map(|one| one.reply.prompt_tokens).sum(),
        tokens,
        is_counted_by_server: good().all(|one| one.reply.completion_tokens.is_some()),
        tokens_per_s: per_second(tokens),
        requests_per_s: per_second(num_ok),
        ttft: sets.ttft.quantiles(),
        tbt: sets.tbt.quantiles(),
        tpot: sets.tpot.quantiles(),
        longest_gap: sets.longest_gap.quantiles(),
        e2e: sets.e2e.quantiles(),
        ttft_from_send: sets.ttft_from_send.quantiles(),
        e2e_from_send: sets.e2e_from_send.quantiles(),
        send_lateness: send_lateness.quantiles(),
        wake_lateness: wake_lateness.quantiles(),
        client_cpu_share: measured.cpu_time.as_secs_f64() / measured.elapsed.as_secs_f64().max(1e-3),
        client_cpu_s: measured.cpu_time.as_secs_f64(),
        objective: objective.map(|objective| objective_figures(objective, all, judged, per_second)),
        tenants: tenant_figures(objective, measured, judged),
        gave_up: measured.gave_up.clone(),
    }
}

fn objective_figures(
    objective: &Objective,
    all: &[Finished],
    judged: &[Option<Verdict>],
    per_second: impl Fn(u64) -> f64,
) -> ObjectiveFigures {
    let num_kept =
        all.iter().zip(judged).filter(|(one, verdict)| is_kept(objective, one, verdict)).count() as u64;
    ObjectiveFigures {
        times: objective.to_string(),
        share_wanted: objective.share,
        share_kept: num_kept as f64 / all.len().max(1) as f64,
        goodput_per_s: per_second(num_kept),
    }
}

fn count(kinds: impl Iterator<Item = String>) -> BTreeMap<String, u64> {
    let mut counts = BTreeMap::new();
    kinds.for_each(|kind| *counts.entry(kind).or_insert(0) += 1);
    counts
}

/// The time that throughput is counted over.
fn wall_time(measured: &Measured) -> Duration {
    let all = &measured.finished;
    if measured.is_long_prompt {
        return all.iter().filter_map(|one| one.reply.time_to_first_token()).sum();
    }
    let begin = all.iter().map(|one| one.reply.intended).min();
    let end = all.iter().map(|one| one.reply.ended).max();
    begin.zip(end).map_or(Duration::ZERO, |(begin, end)| end.duration_since(begin))
}

/// Whether a request counts as goodput: it ended well, its answer is good, and it kept the objective.
fn is_kept(objective: &Objective, one: &Finished, verdict: &Option<Verdict>) -> bool {
    verdict.as_ref().is_some_and(|verdict| verdict.wrong.is_none()) && objective.is_kept(&one.reply)
}

fn tenant_figures(
    objective: Option<&Objective>,
    measured: &Measured,
    judged: &[Option<Verdict>],
) -> BTreeMap<String, TenantFigures> {
    let mut by_name: BTreeMap<&str, Vec<(&Finished, &Option<Verdict>)>> = BTreeMap::new();
    for (one, verdict) in measured.finished.iter().zip(judged) {
        let name = one.tenant.as_deref();
        name.into_iter().for_each(|name| by_name.entry(name).or_default().push((one, verdict)));
    }
    let figures = |all: Vec<(&Finished, &Option<Verdict>)>| {
        let mut sets = Sets::default();
        let good = || all.iter().map(|(one, _)| *one).filter(|one| one.reply.failure.is_none());
        good().for_each(|one| sets.take(one));
        let num_ok = good().count();
        let num_kept =
            |objective| all.iter().filter(|(one, verdict)| is_kept(objective, one, verdict)).count();
        TenantFigures {
            num_ok: num_ok as u64,
            num_failed: (all.len() - num_ok) as u64,
            tokens: good().map(|one| one.reply.num_tokens()).sum(),
            ttft: sets.ttft.quantiles(),
            e2e: sets.e2e.quantiles(),
            share_kept: objective.map(|objective| num_kept(objective) as f64 / all.len() as f64),
        }
    };
    by_name.into_iter().map(|(name, all)| (name.to_owned(), figures(all))).collect()
}

/// The requests of a phase as they are written down.
pub fn records(
    (server, level, round): PhasePlace<'_>,
    objective: Option<&Objective>,
    measured: &Measured,
    judged: &[Option<Verdict>],
) -> Vec<RequestRecord> {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let begin = measured.finished.iter().map(|one| one.reply.intended).min();
    let record = |(one, verdict): (&Finished, &Option<Verdict>)| RequestRecord {
        server: server.to_owned(),
        level: level.to_owned(),
        round,
        prompt_idx: one.prompt_idx,
        failure: one.reply.failure.as_ref().map(|(kind, message)| (kind.to_string(), message.clone())),
        wrong: verdict.as_ref().and_then(|verdict| verdict.wrong.clone()),
        as_expected: verdict
            .as_ref()
            .and_then(|verdict| verdict.as_expected)
            .map(|(right, all)| right == all),
        prompt_tokens: one.reply.prompt_tokens,
        tokens: one.reply.num_tokens(),
        finish_reason: one.reply.finish_reason.clone(),
        intended_s: begin.map_or(0.0, |begin| one.reply.intended.duration_since(begin).as_secs_f64()),
        late_ms: ms(one.reply.sent.duration_since(one.reply.intended)),
        ttft_ms: one.reply.time_to_first_token().map(ms),
        e2e_ms: ms(one.reply.ended.duration_since(one.reply.intended)),
        longest_gap_ms: one.gaps.iter().max().copied().map(ms),
        deadline_ms: one.deadline_ms,
        tenant: one.tenant.clone(),
        is_kept: objective.map(|objective| is_kept(objective, one, verdict)),
        answer: fingerprint(&one.reply.text),
    };
    measured.finished.iter().zip(judged).map(record).collect()
}

/// FNV-1a in 64 bits: the same in every run and on every machine.
fn fingerprint(text: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}
