//! What scheduler policies are tested with.
//!
//! [`snapshots`] makes tables of all sorts, [`check`] asks the node's own referee
//! whether a plan keeps the rules, and [`rig`] serves a list of arrivals with a
//! policy and tells when each request got its tokens. This crate only runs
//! natively; no guest depends on it.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod rig;
mod snapshots;

use quern_engine::AdapterId;
use quern_policy_sdk::SchedulerPolicy;
use quern_policy_sdk::tables::{Plan, Running, Step, Waiting};
use quern_scheduler::plan as node;

pub use snapshots::snapshots;

/// All that a scheduler policy sees.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// The step to be planned.
    pub step: Step,
    /// Those who wait.
    pub waiting: Waiting,
    /// Those who run.
    pub running: Running,
}

/// Whether a node would take this plan: asks the check that the node itself makes.
///
/// # Errors
/// The first rule that is broken.
pub fn check(snapshot: &Snapshot, plan: &Plan) -> Result<(), String> {
    let seen = node::Snapshot {
        // Only what the check looks at.
        step: node::StepInfo {
            token_budget: snapshot.step.token_budget,
            max_running: snapshot.step.max_running,
            kv_free: snapshot.step.kv_free,
            mixes_adapters: snapshot.step.mixes_adapters,
            last_adapter: AdapterId(snapshot.step.last_adapter),
            ..node::StepInfo::default()
        },
        waiting: node::Waiting {
            id: snapshot.waiting.id.clone(),
            prompt_left: snapshot.waiting.prompt_left.clone(),
            cached: snapshot.waiting.cached.clone(),
            kv_need: snapshot.waiting.kv_need.clone(),
            adapter: snapshot.waiting.adapter.iter().copied().map(AdapterId).collect(),
            ..node::Waiting::default()
        },
        running: node::Running {
            id: snapshot.running.id.clone(),
            prompt_left: snapshot.running.prompt_left.clone(),
            kv: snapshot.running.kv.clone(),
            adapter: snapshot.running.adapter.iter().copied().map(AdapterId).collect(),
            ..node::Running::default()
        },
    };
    let judged = node::Plan {
        admit: plan.admit.clone(),
        admit_chunk: plan.admit_chunk.clone(),
        preempt: plan.preempt.clone(),
        running_chunk: plan.running_chunk.clone(),
        adapter: plan.adapter.map(AdapterId),
        hold_steps: plan.hold_steps,
    };
    node::check(&seen, &judged).map_err(|error| error.to_string())
}

/// Asks a policy for a plan and holds it against the rules.
///
/// # Panics
/// When the policy has no opinion, fails, or breaks a rule.
pub fn plan_of(policy: &mut impl SchedulerPolicy, snapshot: &Snapshot) -> Plan {
    let plan = policy.plan(&snapshot.step, &snapshot.waiting, &snapshot.running);
    let plan = plan.expect("the policy failed").expect("the policy had no opinion");
    if let Err(rule) = check(snapshot, &plan) {
        panic!("{rule}: {plan:?} for {snapshot:?}");
    }
    plan
}
