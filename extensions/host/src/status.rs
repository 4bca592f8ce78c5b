//! What operators see of a place, ready to be written as JSON.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::lock;
use crate::shadow::Shadow;
use crate::slot::{Past, SlotCore};
use crate::verdict::{Hook, Verdict};
use crate::version::Version;

/// A version that was just put in, or tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Loaded {
    /// Counts the versions of one place from 1.
    pub number: u64,
    /// As it calls itself.
    pub name: String,
    /// As it calls itself.
    pub version: String,
    /// SHA-256 of its file, in hexadecimal.
    pub digest: String,
    /// The hooks that it serves here.
    pub hooks: Vec<&'static str>,
    /// What it imports: its whole authority.
    pub imports: Vec<String>,
}

/// One place.
#[derive(Debug, Clone, Serialize)]
pub struct SlotStatus {
    /// Its name.
    pub policy: String,
    /// Who decides; nobody is the built-in policy.
    pub serving: Option<VersionStatus>,
    /// Who runs beside it.
    pub candidate: Option<CandidateStatus>,
    /// Versions that a roll-back would bring back, the next one first.
    pub kept: Vec<Loaded>,
    /// Who served before, newest first.
    pub history: Vec<HistoryEntry>,
    /// Log lines that were over the ration.
    pub log_lines_dropped: u64,
    /// Metric updates that were over the ration.
    pub metric_updates_dropped: u64,
}

/// What a version did so far.
#[derive(Debug, Clone, Serialize)]
pub struct VersionStatus {
    /// Who it is.
    #[serde(flatten)]
    pub who: Loaded,
    /// The file that it came from.
    pub file: Option<String>,
    /// When, in milliseconds since 1970.
    pub loaded_at_ms: u64,
    /// `trial`, `serving`, `quarantined`, `rehearsing` or `condemned`.
    pub state: &'static str,
    /// Calls until the trial is over.
    pub trial_calls_left: u32,
    /// How often it was quarantined.
    pub times_quarantined: u32,
    /// How much of its quarantine is left.
    pub quarantine_left_ms: u64,
    /// The most memory that an instance ever had.
    pub memory_peak_bytes: u64,
    /// For each hook that it serves.
    pub calls: Vec<HookStatus>,
    /// The last few, oldest first.
    pub faults: Vec<FaultStatus>,
}

/// Calls of one hook.
#[derive(Debug, Clone, Serialize)]
pub struct HookStatus {
    /// The hook.
    pub hook: &'static str,
    /// How often each verdict.
    pub verdicts: BTreeMap<&'static str, u64>,
    /// How often it was not asked: in quarantine, or without an instance.
    pub skipped: u64,
    /// Calls in quarantine whose answers were thrown away.
    pub rehearsed: u64,
    /// Of all calls that were made; 0 where the engine does not count them.
    pub instructions: u64,
    /// Half of the calls took at most this.
    pub p50_us: f64,
    /// All but a hundredth of the calls took at most this.
    pub p99_us: f64,
}

/// A call that failed.
#[derive(Debug, Clone, Serialize)]
pub struct FaultStatus {
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The hook; nothing while an instance was made.
    pub hook: Option<&'static str>,
    /// What kind of fault.
    pub verdict: &'static str,
    /// Why.
    pub reason: String,
}

/// A candidate, and how its plans compare.
#[derive(Debug, Clone, Serialize)]
pub struct CandidateStatus {
    /// What it did so far.
    #[serde(flatten)]
    pub version: VersionStatus,
    /// Steps in which it planned the same.
    pub same: u64,
    /// Steps in which it planned otherwise.
    pub different: u64,
    /// Of these, by what differed; a step can count several times.
    pub different_by: BTreeMap<&'static str, u64>,
    /// Steps that it was too slow for.
    pub missed: u64,
}

/// A version that left.
#[derive(Debug, Clone, Serialize)]
pub struct HistoryEntry {
    /// Counts the versions of one place from 1.
    pub number: u64,
    /// As it called itself.
    pub name: String,
    /// As it called itself.
    pub version: String,
    /// SHA-256 of its file, in hexadecimal.
    pub digest: String,
    /// When it came, in milliseconds since 1970.
    pub loaded_at_ms: u64,
    /// When it left, in milliseconds since 1970.
    pub left_at_ms: u64,
    /// Why it left.
    pub why: String,
}

impl HookStatus {
    /// How often this verdict.
    #[must_use]
    pub fn count(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(verdict.name()).copied().unwrap_or(0)
    }
}

impl VersionStatus {
    /// Calls of one hook, if it serves it.
    #[must_use]
    pub fn hook(&self, hook: Hook) -> Option<&HookStatus> {
        self.calls.iter().find(|calls| calls.hook == hook.name())
    }

    fn of(version: &Version, now_us: u64) -> VersionStatus {
        let health = version.health.view();
        let waits = matches!(health.state, "quarantined");
        let left_us = if waits { health.until_us.saturating_sub(now_us) } else { 0 };
        let faults = version.faults.list().into_iter().map(|note| FaultStatus {
            at_ms: unix_ms(note.at),
            hook: note.hook.map(Hook::name),
            verdict: note.fault.verdict.name(),
            reason: note.fault.reason,
        });
        VersionStatus {
            who: Loaded::of(version),
            file: version.code.source.as_ref().map(|path| path.display().to_string()),
            loaded_at_ms: unix_ms(version.loaded_at),
            state: health.state,
            trial_calls_left: health.trial_left,
            times_quarantined: health.times_quarantined,
            quarantine_left_ms: left_us / 1000,
            memory_peak_bytes: version.code.memory_peak.load(Ordering::Relaxed),
            calls: version.code.hooks.iter().map(|hook| HookStatus::of(version, hook)).collect(),
            faults: faults.collect(),
        }
    }
}

impl HookStatus {
    fn of(version: &Version, hook: Hook) -> HookStatus {
        let stats = version.stats(hook);
        let micros = |share| stats.latency.quantile(share).as_nanos() as f64 / 1000.0;
        HookStatus {
            hook: hook.name(),
            verdicts: stats.verdicts().map(|(verdict, count)| (verdict.name(), count)).into(),
            skipped: stats.skipped.load(Ordering::Relaxed),
            rehearsed: stats.rehearsed.load(Ordering::Relaxed),
            instructions: stats.instructions.load(Ordering::Relaxed),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
        }
    }
}

impl Loaded {
    pub(crate) fn of(version: &Version) -> Loaded {
        Loaded {
            number: version.number,
            name: version.name.clone(),
            version: version.version.clone(),
            digest: version.code.digest.to_string(),
            hooks: version.code.hooks.iter().map(Hook::name).collect(),
            imports: version.code.imports.clone(),
        }
    }
}

impl CandidateStatus {
    fn of(shadow: &Shadow, now_us: u64) -> CandidateStatus {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &shadow.counts;
        let by = [
            ("admit", &counts.admit),
            ("admit_chunk", &counts.admit_chunk),
            ("preempt", &counts.preempt),
            ("running_chunk", &counts.running_chunk),
            ("adapter", &counts.adapter),
        ];
        CandidateStatus {
            version: VersionStatus::of(&shadow.version, now_us),
            same: read(&counts.same),
            different: read(&counts.different),
            different_by: by.map(|(name, count)| (name, read(count))).into(),
            missed: read(&counts.missed),
        }
    }
}

impl HistoryEntry {
    fn of(past: &Past) -> HistoryEntry {
        HistoryEntry {
            number: past.number,
            name: past.name.clone(),
            version: past.version.clone(),
            digest: past.digest.to_string(),
            loaded_at_ms: unix_ms(past.loaded_at),
            left_at_ms: unix_ms(past.left_at),
            why: past.why.clone(),
        }
    }
}

impl SlotStatus {
    pub(crate) fn of(core: &SlotCore) -> SlotStatus {
        let now_us = core.engine.now_us();
        let (serving, kept, history) = {
            let ledger = lock(&core.ledger);
            let kept = ledger.past.iter().rev().map(|version| Loaded::of(version)).collect();
            let history = ledger.history.iter().rev().map(HistoryEntry::of).collect();
            (ledger.serving.clone(), kept, history)
        };
        SlotStatus {
            policy: core.settings.name.clone(),
            serving: serving.map(|version| VersionStatus::of(&version, now_us)),
            candidate: core.shadow.load().as_deref().map(|shadow| CandidateStatus::of(shadow, now_us)),
            kept,
            history,
            log_lines_dropped: core.shared.log_dropped.load(Ordering::Relaxed),
            metric_updates_dropped: core.shared.updates_dropped.load(Ordering::Relaxed),
        }
    }
}

fn unix_ms(at: SystemTime) -> u64 {
    at.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
