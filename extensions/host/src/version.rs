//! A version of a policy that serves, served or is tried: its code, its name,
//! what it did so far.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::engine::PolicyEngine;
use crate::health::{Consequence, Health};
use crate::load::Code;
use crate::settings::Settings;
use crate::verdict::{Fault, FaultLog, Hook, HookStats, Verdict};

/// See the module's text.
pub(crate) struct Version {
    /// Counts the versions of one place from 1.
    pub(crate) number: u64,
    pub(crate) policy: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) code: Arc<Code>,
    pub(crate) loaded_at: SystemTime,
    pub(crate) health: Health,
    pub(crate) faults: FaultLog,
    stats: [HookStats; 5],
    /// Somebody was told to put the version before in its place.
    pub(crate) roll_back_ordered: AtomicBool,
}

impl Version {
    pub(crate) fn new(number: u64, code: Arc<Code>, named: (String, String), settings: &Settings) -> Version {
        let (name, version) = named;
        Version {
            number,
            policy: settings.name.clone(),
            name,
            version,
            code,
            loaded_at: SystemTime::now(),
            health: Health::new(settings.quarantine, settings.trial),
            faults: FaultLog::default(),
            stats: Hook::ALL.map(|hook| HookStats::new(&settings.name, hook)),
            roll_back_ordered: AtomicBool::new(false),
        }
    }

    pub(crate) fn stats(&self, hook: Hook) -> &HookStats {
        &self.stats[hook as usize]
    }

    /// Counts a call without a fault.
    pub(crate) fn count(&self, hook: Hook, verdict: Verdict, rehearsal: bool) -> Consequence {
        let stats = self.stats(hook);
        if rehearsal {
            stats.rehearsed.fetch_add(1, Ordering::Relaxed);
        } else {
            stats.count(verdict);
        }
        self.noted(self.health.well())
    }

    /// Counts a fault, and keeps its reason. Without a hook it happened while
    /// an instance was made.
    pub(crate) fn count_fault(&self, engine: &PolicyEngine, hook: Option<Hook>, fault: Fault) -> Consequence {
        if let Some(hook) = hook {
            self.stats(hook).count(fault.verdict);
        }
        tracing::debug!(
            policy = self.policy,
            name = self.name,
            hook = hook.map(Hook::name),
            fault = %fault,
            "policy failed"
        );
        self.faults.note(hook, fault);
        self.noted(self.health.fault(engine.now_us()))
    }

    /// Says once what operators should know.
    fn noted(&self, consequence: Consequence) -> Consequence {
        let (policy, name, version) = (&*self.policy, &*self.name, &*self.version);
        match consequence {
            Consequence::Quarantined(back_off) => {
                let back_off_s = back_off.as_secs_f64();
                tracing::warn!(policy, name, version, back_off_s, "policy quarantined after repeated faults");
                metrics::counter!("quern_policy_quarantines_total", "policy" => policy.to_owned())
                    .increment(1);
            }
            Consequence::Readmitted => tracing::info!(policy, name, version, "policy decides again"),
            Consequence::Condemned => tracing::warn!(policy, name, version, "policy failed its trial"),
            Consequence::Nothing | Consequence::TrialPassed => {}
        }
        consequence
    }
}
