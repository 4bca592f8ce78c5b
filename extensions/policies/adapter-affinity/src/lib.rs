//! Stays with an adapter for a quantum, and starves none.
//!
//! Where a step serves one adapter, changing it costs time, and a step with few
//! rows wastes the engine. So the present adapter keeps its turn for a quantum of
//! steps, and the next turn goes to whoever has the most rows to put in a step;
//! but an adapter that has waited longer than `patience-ms` comes first, the
//! longest waiting before the others. With n adapters nobody waits longer than
//! the patience and n turns. Where steps mix adapters, those that are on the device
//! or run already start first, until somebody's patience ends.
#![deny(missing_docs)]

use std::cmp::Reverse;

use quern_policy_sdk::plan::first_busy;
use quern_policy_sdk::prelude::*;

/// See the module's text.
#[derive(Debug)]
pub struct AdapterAffinity {
    quantum_steps: u32,
    patience_us: u64,
    /// Steps that the present adapter was served in a row.
    turn: u32,
    /// Since when adapters with work wait to be served.
    since: Vec<(u32, u64)>,
}

impl Default for AdapterAffinity {
    fn default() -> Self {
        AdapterAffinity { quantum_steps: 32, patience_us: 500_000, turn: 0, since: Vec::new() }
    }
}

impl Policy for AdapterAffinity {
    fn init(&mut self, _saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.quantum_steps = settings.number("quantum-steps", self.quantum_steps, 1..=100_000);
        self.patience_us = 1000 * settings.number("patience-ms", 500, 0..=3_600_000);
        settings.done()
    }
}

impl SchedulerPolicy for AdapterAffinity {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        if step.mixes_adapters {
            return Ok(Some(self.plan_mixed(step, waiting, running)));
        }
        let order = self.order(step, waiting, running);
        // Urgency, then arrival, in one number, for that is compared faster than a pair.
        let key = |priority: u8, id: u64| u64::from(u8::MAX - priority) << 56 | id;
        let plan = first_busy(order, step, waiting, running, |plan| {
            plan.serve(
                |row| key(running.priority[row], running.id[row]),
                |row| key(waiting.priority[row], waiting.id[row]),
            );
        });
        self.note(step, plan.adapter);
        Ok(Some(plan))
    }
}

/// An adapter with work.
#[derive(Debug)]
struct Candidate {
    adapter: u32,
    rows: u32,
    waited_us: u64,
}

impl AdapterAffinity {
    /// Adapters with work, the one to serve first.
    fn order(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Vec<u32> {
        let mut candidates = self.candidates(step, waiting, running);
        let stays = self.turn < self.quantum_steps;
        candidates.sort_by_key(|candidate| {
            let is_present = candidate.adapter == step.last_adapter;
            let waited = if candidate.waited_us > self.patience_us { candidate.waited_us } else { 0 };
            // At the end of its turn the present one comes last.
            (is_present != stays, Reverse(waited), Reverse(candidate.rows), candidate.adapter)
        });
        candidates.into_iter().map(|candidate| candidate.adapter).collect()
    }

    fn candidates(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Vec<Candidate> {
        let mut adapters: Vec<u32> = running.adapter.iter().chain(&waiting.adapter).copied().collect();
        adapters.sort_unstable();
        let mut candidates: Vec<Candidate> = Vec::new();
        for adapter in adapters {
            match candidates.last_mut() {
                Some(last) if last.adapter == adapter => last.rows += 1,
                _ => candidates.push(Candidate { adapter, rows: 1, waited_us: 0 }),
            }
        }
        self.since.retain(|(adapter, _)| candidates.iter().any(|candidate| candidate.adapter == *adapter));
        for candidate in &mut candidates {
            let known = self.since.iter().find(|(adapter, _)| *adapter == candidate.adapter);
            let since = known.map_or(step.now_us, |&(_, since)| since);
            if known.is_none() {
                self.since.push((candidate.adapter, since));
            }
            candidate.waited_us = step.now_us.saturating_sub(since);
        }
        candidates
    }

    fn note(&mut self, step: &Step, adapter: Option<u32>) {
        let Some(adapter) = adapter else { return };
        self.turn = if adapter == step.last_adapter { self.turn.saturating_add(1) } else { 1 };
        if let Some((_, since)) = self.since.iter_mut().find(|(other, _)| *other == adapter) {
            *since = step.now_us;
        }
    }

    fn plan_mixed(&self, step: &Step, waiting: &Waiting, running: &Running) -> Plan {
        let mut present = running.adapter.clone();
        present.sort_unstable();
        present.dedup();
        let key = |row: usize| {
            let is_patient = u64::from(waiting.age_us[row]) <= self.patience_us;
            let is_near =
                present.binary_search(&waiting.adapter[row]).is_ok() || waiting.adapter_tier[row] == 2;
            (Reverse(waiting.priority[row]), is_patient, is_patient && !is_near, waiting.id[row])
        };
        first_busy([step.last_adapter], step, waiting, running, |plan| {
            let begun = |row: usize| (Reverse(running.priority[row]), false, false, running.id[row]);
            plan.serve(begun, key);
        })
    }
}

export_policy!(AdapterAffinity: scheduler);
