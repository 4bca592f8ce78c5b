//! Several places with the scheduler's hook, asked one after the other.

use quern_extensions::SlotPlanner;
use quern_scheduler::plan::{Plan, PlanError, Planner, Snapshot};

/// The first place that has an opinion plans the step.
pub(super) struct Chain {
    planners: Vec<SlotPlanner>,
    /// Whose plan is in force, so that it hears what became of it.
    planned: Option<usize>,
}

impl Chain {
    pub(super) fn new(planners: Vec<SlotPlanner>) -> Chain {
        Chain { planners, planned: None }
    }
}

impl Planner for Chain {
    fn name(&self) -> &str {
        self.planned.map_or("policies", |idx| self.planners[idx].name())
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        self.planned = None;
        for (idx, planner) in self.planners.iter_mut().enumerate() {
            if let Some(plan) = planner.plan(snapshot) {
                self.planned = Some(idx);
                return Some(plan);
            }
        }
        None
    }

    fn stands(&self) -> bool {
        self.planned.is_some_and(|idx| self.planners[idx].stands())
    }

    fn judged(&mut self, judgement: Result<(), PlanError>) {
        if let Some(idx) = self.planned {
            self.planners[idx].judged(judgement);
        }
    }
}
