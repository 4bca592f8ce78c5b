//! Which adapter is served where a step cannot mix them.

use crate::plan::PlanBuilder;
use crate::tables::{Plan, Running, Step, Waiting};

/// Steps that one adapter is served in a row while others have work.
const QUANTUM: u32 = 16;

/// Turns of a bounded number of steps: the present adapter for a quantum, then
/// whoever was served longest ago. No adapter with work starves.
#[derive(Debug)]
pub struct AdapterTurns {
    quantum: u32,
    /// Steps that the present adapter was served in a row.
    turn: u32,
    /// The step in which each adapter was last served; those without work are forgotten.
    served: Vec<(u32, u64)>,
}

impl Default for AdapterTurns {
    fn default() -> Self {
        AdapterTurns::with_quantum(QUANTUM)
    }
}

impl AdapterTurns {
    /// Turns of `quantum` steps.
    pub fn with_quantum(quantum: u32) -> AdapterTurns {
        AdapterTurns { quantum: quantum.max(1), turn: 0, served: Vec::new() }
    }

    /// Plans a step: `fill` says whom to run and whom to start, and is asked once
    /// where adapters mix, and otherwise for one adapter after the other until
    /// one of them has something to compute.
    pub fn plan(
        &mut self,
        step: &Step,
        waiting: &Waiting,
        running: &Running,
        fill: impl FnMut(&mut PlanBuilder<'_>),
    ) -> Plan {
        if step.mixes_adapters {
            return first_busy([0], step, waiting, running, fill);
        }
        let order = self.order(step, waiting, running);
        let plan = first_busy(order, step, waiting, running, fill);
        self.note(step, plan.adapter);
        plan
    }

    /// Adapters with work, the one to serve first.
    fn order(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Vec<u32> {
        let Some(&first) = running.adapter.first().or(waiting.adapter.first()) else { return Vec::new() };
        // Differing bits rather than an early end: most often there is one adapter.
        let differ =
            |adapters: &[u32]| adapters.iter().fold(0, |bits, adapter| bits | (adapter ^ first)) != 0;
        if !differ(&running.adapter) && !differ(&waiting.adapter) {
            self.served.retain(|&(adapter, _)| adapter == first);
            return vec![first];
        }
        let mut adapters: Vec<u32> = running.adapter.iter().chain(&waiting.adapter).copied().collect();
        adapters.sort_unstable();
        adapters.dedup();
        self.served.retain(|(adapter, _)| adapters.binary_search(adapter).is_ok());
        let served = |adapter| self.served.iter().find(|&&(other, _)| other == adapter).map(|&(_, seq)| seq);
        let is_over = self.turn >= self.quantum;
        adapters.sort_by_key(|&adapter| ((adapter == step.last_adapter) == is_over, served(adapter)));
        adapters
    }

    fn note(&mut self, step: &Step, adapter: Option<u32>) {
        let Some(adapter) = adapter else { return };
        self.turn = if adapter == step.last_adapter { self.turn.saturating_add(1) } else { 1 };
        match self.served.iter_mut().find(|(other, _)| *other == adapter) {
            Some((_, seq)) => *seq = step.seq,
            None => self.served.push((adapter, step.seq)),
        }
    }
}

/// The plan of the first adapter in `order` that has something to compute, so
/// that one whose rows all lack room costs the others no step. Where adapters
/// mix, the first is as good as any.
pub fn first_busy(
    order: impl IntoIterator<Item = u32>,
    step: &Step,
    waiting: &Waiting,
    running: &Running,
    mut fill: impl FnMut(&mut PlanBuilder<'_>),
) -> Plan {
    for adapter in order {
        let mut builder = PlanBuilder::new(step, waiting, running, Some(adapter));
        fill(&mut builder);
        if !builder.is_idle() || step.mixes_adapters {
            return builder.finish();
        }
    }
    Plan::default()
}
