//! First come, first served.
//!
//! Whoever arrived first starts first and keeps its place: nobody overtakes for
//! being smaller. What a sequence is worth in state and time plays no part, so
//! this is what other policies are measured against.
#![deny(missing_docs)]

use std::cmp::Reverse;

use quern_policy_sdk::prelude::*;

/// See the module's text.
#[derive(Debug, Default)]
pub struct Fcfs {
    turns: AdapterTurns,
    ignores_priority: bool,
}

impl Policy for Fcfs {
    fn init(&mut self, _saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.ignores_priority = !settings.flag("priorities", true);
        self.turns = AdapterTurns::with_quantum(settings.number("quantum-steps", 16, 1..=100_000));
        settings.done()
    }
}

impl SchedulerPolicy for Fcfs {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        let flat = self.ignores_priority;
        // Sequences are numbered in order of arrival, paused ones included. Both in
        // one number, for that is compared faster than a pair.
        let key = |priority: u8, id: u64| if flat { id } else { u64::from(u8::MAX - priority) << 56 | id };
        Ok(Some(self.turns.plan(step, waiting, running, |plan| {
            let blocked = plan.serve(
                |row| key(running.priority[row], running.id[row]),
                |row| key(waiting.priority[row], waiting.id[row]),
            );
            if let (Some(row), false) = (blocked, flat) {
                make_way(plan, waiting.priority[row], running);
            }
        })))
    }
}

/// Pauses the youngest of the least urgent who run, if the one who found no room
/// is more urgent.
fn make_way(plan: &mut PlanBuilder<'_>, priority: u8, running: &Running) {
    let less_urgent = (0..running.len()).filter(|&row| running.priority[row] < priority);
    let victim = less_urgent.max_by_key(|&row| (Reverse(running.priority[row]), running.id[row]));
    if let Some(row) = victim {
        plan.pause(row);
    }
}

export_policy!(Fcfs: scheduler);
