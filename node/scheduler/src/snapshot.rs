//! Turns the scheduler's sequences into the columns that a planner sees.
//!
//! The buffers are kept from step to step. Looking up a waiting prompt in the
//! prefix cache costs time in its length, so only the first [`LOOKUPS`] rows in
//! arrival order are looked up; the others show nothing cached, which is a
//! lower bound.

use std::time::Instant;

use quern_engine::AdapterId;

use crate::builtin::WORTH_WAITING;
use crate::offloaded::Offloaded;
use crate::plan::{NO_DEADLINE, Running, Snapshot, Waiting};
use crate::prefix_cache::{PrefixCache, common_prefix};
use crate::sequence::Sequence;

/// Waiting rows whose prompt is looked up in the prefix cache for each step.
const LOOKUPS: usize = 64;

/// Fills the two tables; the caller fills in the step.
pub(crate) fn fill(
    snapshot: &mut Snapshot,
    waiting: &[Sequence],
    running: &[Sequence],
    cache: &PrefixCache,
    offloaded: &Offloaded,
    tier: impl Fn(AdapterId) -> u8,
    now: Instant,
) {
    let reuse = |sequence: &Sequence| reuse(sequence, running, cache, offloaded);
    fill_waiting(&mut snapshot.waiting, waiting, reuse, now);
    refill(&mut snapshot.waiting.adapter_tier, waiting, |s| tier(s.adapter));
    fill_running(&mut snapshot.running, running, now);
}

/// What a waiting sequence can have without computing it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Reuse {
    /// Tokens that are there already.
    pub(crate) cached: usize,
    /// Tokens that will be, once a running sequence has computed its prompt.
    pub(crate) pending: usize,
    /// Tokens of room that starting takes.
    pub(crate) kv_need: usize,
}

pub(crate) fn reuse(
    sequence: &Sequence,
    running: &[Sequence],
    cache: &PrefixCache,
    offloaded: &Offloaded,
) -> Reuse {
    let wanted = sequence.reusable();
    let found = cache.find(sequence.adapter, wanted);
    let shared = found.map_or(0, |found| cache.shared_live(found, found.len));
    let here = found.map_or(0, |found| found.len);
    let saved = match &sequence.saved {
        Some(saved) => saved.len,
        None => offloaded.find(sequence.adapter, wanted, here).unwrap_or(0),
    };
    let cached = here.max(saved);
    let prefilling = running.iter().filter(|other| other.left() > 1 && other.adapter == sequence.adapter);
    let coming = prefilling.map(|other| common_prefix(wanted, &other.tokens)).max().unwrap_or(0);
    // Saved state comes back as tokens of its own.
    let shared = if saved > shared { 0 } else { shared };
    Reuse { cached, pending: cached.max(coming), kv_need: sequence.left() - shared }
}

/// Whether starting now would compute what is being computed.
pub(crate) fn better_later(reuse: &Reuse) -> bool {
    reuse.pending > reuse.cached + WORTH_WAITING as usize
}

fn fill_waiting(table: &mut Waiting, waiting: &[Sequence], reuse: impl Fn(&Sequence) -> Reuse, now: Instant) {
    let Waiting {
        id,
        age_us,
        prompt_left,
        cached,
        pending,
        kv_need,
        max_new,
        slack_us,
        priority,
        tenant,
        adapter,
        // Filled by the caller.
        adapter_tier: _,
    } = table;
    refill(id, waiting, |s| s.id);
    refill(age_us, waiting, |s| micros(now.saturating_duration_since(s.arrived)));
    refill(prompt_left, waiting, |s| s.left() as u32);
    refill(max_new, waiting, |s| (s.max_new() - s.generated()) as u32);
    refill(slack_us, waiting, |s| slack(s, now));
    refill(priority, waiting, |s| s.priority);
    refill(tenant, waiting, |s| s.tenant);
    refill(adapter, waiting, |s| s.adapter);
    refill(kv_need, waiting, |s| s.left() as u32);
    cached.clear();
    pending.clear();
    for (row, sequence) in waiting.iter().take(LOOKUPS).enumerate() {
        let reuse = reuse(sequence);
        cached.push(reuse.cached as u32);
        pending.push(reuse.pending as u32);
        kv_need[row] = reuse.kv_need as u32;
    }
    cached.resize(waiting.len(), 0);
    pending.resize(waiting.len(), 0);
}

fn fill_running(table: &mut Running, running: &[Sequence], now: Instant) {
    let Running { id, prompt_left, generated, max_new, kv, slack_us, priority, tenant, adapter } = table;
    refill(id, running, |s| s.id);
    refill(prompt_left, running, |s| s.left() as u32);
    refill(generated, running, |s| s.generated() as u32);
    refill(max_new, running, |s| s.max_new() as u32);
    refill(kv, running, |s| s.computed as u32);
    refill(slack_us, running, |s| slack(s, now));
    refill(priority, running, |s| s.priority);
    refill(tenant, running, |s| s.tenant);
    refill(adapter, running, |s| s.adapter);
}

fn refill<T>(column: &mut Vec<T>, sequences: &[Sequence], value: impl Fn(&Sequence) -> T) {
    column.clear();
    column.extend(sequences.iter().map(value));
}

fn micros(duration: std::time::Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn slack(sequence: &Sequence, now: Instant) -> i32 {
    let Some(deadline) = sequence.deadline else { return NO_DEADLINE };
    let left = deadline.saturating_duration_since(now).as_micros();
    let missed = now.saturating_duration_since(deadline).as_micros();
    // One of the two is zero; the largest value is kept for "no deadline".
    let left = i32::try_from(left).unwrap_or(NO_DEADLINE).min(NO_DEADLINE - 1);
    left - i32::try_from(missed).unwrap_or(i32::MAX)
}
