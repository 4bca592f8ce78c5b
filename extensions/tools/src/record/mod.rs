//! Recorded steps: what a planner saw, what it planned, how long the step took.
//!
//! [`Recorder`] stands before a planner and keeps what passes; [`Tap`] does so on
//! demand, while a node serves; [`Writer`] and [`Reader`] are the file. The format is described in
//! `format.rs`. Recordings hold counts, times and numbers of tenants; never
//! tokens or text.

mod format;
mod reader;
mod recorder;
mod tap;

use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::{Plan, PlanError, Planner as _, Snapshot, StepInfo};

use crate::costs::Sample;

pub use format::Writer;
pub use reader::{ReadError, Reader};
pub use recorder::{Limits, Recorder, RecorderCounts};
pub use tap::{Recording, StartError, Tap, Tapped};

/// What became of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Judged {
    /// Nobody said.
    #[default]
    Unknown,
    /// It was in force.
    InForce,
    /// It broke a rule, and the built-in policy planned.
    Refused,
}

/// One step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Step {
    /// What the planner saw.
    pub snapshot: Snapshot,
    /// What it planned; nothing if it had no opinion.
    pub plan: Option<Plan>,
    /// What became of that.
    pub judged: Judged,
    /// How long the step took, where the next snapshot tells.
    pub took_us: Option<u32>,
}

impl Step {
    /// A step that is yet to run.
    #[must_use]
    pub fn new(snapshot: Snapshot, plan: Option<Plan>) -> Step {
        Step { snapshot, plan, judged: Judged::Unknown, took_us: None }
    }

    pub(crate) fn judge(&mut self, judgement: Option<Result<(), PlanError>>) {
        self.judged = match judgement {
            None => Judged::Unknown,
            Some(Ok(())) => Judged::InForce,
            Some(Err(_)) => Judged::Refused,
        };
    }

    /// Learns from the next step how long this one took. A step that ran nothing
    /// or failed has no successor in the count.
    pub(crate) fn took(&mut self, next: &StepInfo) {
        if next.seq == self.snapshot.step.seq + 1 {
            self.took_us = Some(next.last_step_us);
        }
    }

    /// The plan in force: the recorded one, or what the built-in policy says.
    pub(crate) fn in_force(&self, builtin: &mut BuiltinPlanner) -> Plan {
        let instead = builtin.plan(&self.snapshot).expect("the built-in policy always has an opinion");
        match (&self.plan, self.judged) {
            (Some(plan), Judged::InForce | Judged::Unknown) => plan.clone(),
            _ => instead,
        }
    }

    /// Rows and outputs of the step, as far as its plan tells them: guesses ahead
    /// are not part of a plan. `None` where the plan leaves chunks to the node.
    pub(crate) fn sample(&self, plan: &Plan) -> Option<Sample> {
        let took_us = f64::from(self.took_us?);
        let (waiting, running) = (&self.snapshot.waiting, &self.snapshot.running);
        if plan.running_chunk.len() != running.id.len() || plan.admit_chunk.len() != plan.admit.len() {
            return None;
        }
        let (mut rows, mut outputs) = (0u32, 0u32);
        let mut add = |chunk: u32, left: u32| {
            let len = chunk.min(left);
            rows = rows.saturating_add(len);
            outputs += u32::from(len == left && len > 0);
        };
        for (&chunk, &left) in plan.running_chunk.iter().zip(&running.prompt_left) {
            add(chunk, left);
        }
        for (&chunk, &row) in plan.admit_chunk.iter().zip(&plan.admit) {
            let row = row as usize;
            add(chunk, waiting.prompt_left[row] - waiting.cached[row].min(waiting.prompt_left[row]));
        }
        (rows > 0).then_some(Sample { rows, outputs, took_us })
    }
}
