//! From the requests of one phase to its summary, and to the lines that are written down. No HTTP, no files.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::check::Verdict;
use crate::drive::Finished;
use crate::stats::{PhaseSummary, Times};

/// What a phase gave, before it is judged.
#[derive(Debug)]
pub struct Measured {
    /// Its requests, in the order of their prompts.
    pub finished: Vec<Finished>,
    /// This program's share of one core meanwhile.
    pub cpu_share: f64,
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
    /// Stands for the answer's text: equal for equal answers.
    pub answer: String,
}

/// Server, level and round of a phase.
pub type PhasePlace<'a> = (&'a str, &'a str, usize);

/// The figures of a phase. `judged` has an entry for each request, none for one that failed.
pub fn summarise(
    (server, level, round): PhasePlace<'_>,
    level_value: f64,
    measured: &Measured,
    judged: &[Option<Verdict>],
) -> PhaseSummary {
    let all = &measured.finished;
    let mut failures = BTreeMap::new();
    let mut wrong = BTreeMap::new();
    let [mut ttft, mut tbt, mut tpot, mut longest, mut e2e, mut late] =
        std::array::from_fn(|_| Times::default());
    let (mut tokens, mut prompt_tokens, mut num_ok) = (0, 0, 0);
    for one in all {
        late.record(one.reply.sent.duration_since(one.reply.intended));
        if let Some((kind, _)) = &one.reply.failure {
            *failures.entry(kind.to_string()).or_insert(0) += 1;
            continue;
        }
        num_ok += 1;
        tokens += one.reply.num_tokens();
        prompt_tokens += one.reply.prompt_tokens.unwrap_or(0);
        e2e.record(one.reply.ended.duration_since(one.reply.intended));
        one.reply.time_to_first_token().into_iter().for_each(|time| ttft.record(time));
        one.reply.time_per_token().into_iter().for_each(|time| tpot.record(time));
        one.gaps.iter().for_each(|gap| tbt.record(*gap));
        one.gaps.iter().max().into_iter().for_each(|gap| longest.record(*gap));
    }
    let verdicts = judged.iter().flatten();
    for reason in verdicts.clone().filter_map(|verdict| verdict.wrong.as_ref()) {
        *wrong.entry(reason.clone()).or_insert(0) += 1;
    }
    let expected: Vec<(u64, u64)> = verdicts.filter_map(|verdict| verdict.as_expected).collect();
    let wall_s = if measured.is_long_prompt {
        // What the streams did while a long prompt was prefilled: their tokens, over that time.
        tokens = tbt.count();
        all.iter().filter_map(|one| one.reply.time_to_first_token()).sum::<Duration>().as_secs_f64()
    } else {
        let begin = all.iter().map(|one| one.reply.intended).min();
        let end = all.iter().map(|one| one.reply.ended).max();
        begin.zip(end).map_or(0.0, |(begin, end)| end.duration_since(begin).as_secs_f64())
    };
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
        prompt_tokens,
        tokens,
        is_counted_by_server: all
            .iter()
            .all(|one| one.reply.failure.is_some() || one.reply.completion_tokens.is_some()),
        tokens_per_s: per_second(tokens),
        requests_per_s: per_second(num_ok),
        ttft: ttft.quantiles(),
        tbt: tbt.quantiles(),
        tpot: tpot.quantiles(),
        longest_gap: longest.quantiles(),
        e2e: e2e.quantiles(),
        send_lateness: late.quantiles(),
        client_cpu_share: measured.cpu_share,
    }
}

/// The requests of a phase as they are written down.
pub fn records(
    (server, level, round): PhasePlace<'_>,
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
        answer: fingerprint(&one.reply.text),
    };
    measured.finished.iter().zip(judged).map(record).collect()
}

/// FNV-1a in 64 bits: the same in every run and on every machine.
fn fingerprint(text: &str) -> String {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}
