//! Steps of all sorts, the same for the same seed.
//!
//! They keep what the node promises (unique ids, no more cached than there is)
//! and nothing else: columns hold extremes, room is scarce, tables are empty or
//! have a thousand rows.

use quern_engine::AdapterId;
use quern_scheduler::plan::{NO_DEADLINE, Snapshot};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

/// Rows of the largest tables.
pub(crate) const MAX_ROWS: usize = 1024;

/// Tables that every run holds, whatever the seed: waiting and running rows.
const ALWAYS: [(usize, usize); 7] =
    [(0, 0), (1, 0), (0, 1), (1, 1), (MAX_ROWS, 0), (0, MAX_ROWS), (MAX_ROWS, MAX_ROWS)];

/// Makes steps without end.
pub(crate) struct Fuzz {
    random: ChaCha8Rng,
    num_made: usize,
    now_us: u64,
}

impl Fuzz {
    pub(crate) fn new(seed: u64) -> Fuzz {
        Fuzz { random: ChaCha8Rng::seed_from_u64(seed), num_made: 0, now_us: 0 }
    }

    /// The next step. Time goes on; rows have nothing to do with those before.
    pub(crate) fn next(&mut self) -> Snapshot {
        let (waiting, running) = match ALWAYS.get(self.num_made) {
            Some(&rows) => rows,
            None => (self.rows(), self.rows()),
        };
        self.now_us += self.random.random_range(1..1_000_000);
        let mut snapshot = Snapshot::default();
        self.fill_step(&mut snapshot, running);
        self.fill_waiting(&mut snapshot, waiting);
        self.fill_running(&mut snapshot, running);
        self.num_made += 1;
        snapshot
    }

    /// Few rows more often than many.
    fn rows(&mut self) -> usize {
        let most = [0, 3, 16, 64, 256][self.random.random_range(0..5)];
        self.random.random_range(0..=most)
    }

    fn fill_step(&mut self, snapshot: &mut Snapshot, running: usize) {
        let random = &mut self.random;
        let step = &mut snapshot.step;
        step.seq = self.num_made as u64;
        step.now_us = self.now_us;
        step.token_budget = one_of(random, &[1, 2, 64, 512, 8192]);
        // A lowered limit leaves more running than may run.
        step.max_running = one_of(random, &[1, 8, 64, 2 * MAX_ROWS as u32]).max(running as u32 / 2);
        step.kv_free = one_of(random, &[0, 1, 100, 10_000, 1_000_000]);
        step.kv_page = 1;
        let known = self.num_made > 0;
        if known {
            step.last_step_us = one_of(random, &[0, 1, 2_000, 400_000, u32::MAX]);
            step.fixed_us = one_of(random, &[0, 1_000, 100_000]);
            step.row_us = one_of(random, &[1, 10, 6_000]);
            step.output_us = one_of(random, &[0, 10, 6_000]);
        }
        step.target_step_us = one_of(random, &[0, 1, 50_000, 400_000]);
        step.row_tile = one_of(random, &[1, 64]);
        step.mixes_adapters = random.random_bool(0.5);
        step.last_adapter = AdapterId(random.random_range(0..4));
    }

    fn fill_waiting(&mut self, snapshot: &mut Snapshot, rows: usize) {
        let random = &mut self.random;
        let table = &mut snapshot.waiting;
        let mut id = 0;
        for _ in 0..rows {
            // Odd numbers wait and even ones run, so that none does both.
            id += 2 * random.random_range(1..5) - u64::from(id == 0);
            let left = one_of(random, &[1, 2, 17, 500, 30_000]);
            let pending = random.random_range(0..left);
            let cached = random.random_range(0..=pending);
            table.id.push(id);
            table.age_us.push(one_of(random, &[0, 1_000, 2_000_000, u32::MAX]));
            table.prompt_left.push(left);
            table.cached.push(cached);
            table.pending.push(pending);
            table.kv_need.push(random.random_range(left - cached..=left));
            table.max_new.push(one_of(random, &[1, 64, u32::MAX]));
            table.slack_us.push(slack(random));
            table.priority.push(random.random());
            table.tenant.push(one_of(random, &[0, 1, 2, 3, u32::MAX]));
            table.adapter.push(AdapterId(random.random_range(0..4)));
            table.adapter_tier.push(random.random_range(0..3));
        }
    }

    fn fill_running(&mut self, snapshot: &mut Snapshot, rows: usize) {
        let random = &mut self.random;
        let table = &mut snapshot.running;
        let mut id = 0;
        for _ in 0..rows {
            id += 2 * random.random_range(1..5);
            let left = if random.random_bool(0.7) { 1 } else { one_of(random, &[2, 17, 500, 30_000]) };
            let max_new = one_of(random, &[1, 64, u32::MAX]);
            table.id.push(id);
            table.prompt_left.push(left);
            table.generated.push(random.random_range(0..max_new));
            table.max_new.push(max_new);
            table.kv.push(one_of(random, &[0, 1, 100, 30_000]));
            table.slack_us.push(slack(random));
            table.priority.push(random.random());
            table.tenant.push(one_of(random, &[0, 1, 2, 3, u32::MAX]));
            table.adapter.push(AdapterId(random.random_range(0..4)));
        }
    }
}

fn one_of<T: Copy>(random: &mut ChaCha8Rng, values: &[T]) -> T {
    values[random.random_range(0..values.len())]
}

fn slack(random: &mut ChaCha8Rng) -> i32 {
    one_of(random, &[NO_DEADLINE, NO_DEADLINE - 1, 1_000_000, 1, 0, -1, -1_000_000, i32::MIN])
}

#[cfg(test)]
mod tests {
    use quern_scheduler::builtin::BuiltinPlanner;
    use quern_scheduler::plan::{Planner as _, check};

    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_steps() {
        let (mut one, mut other) = (Fuzz::new(7), Fuzz::new(7));
        for _ in 0..20 {
            assert_eq!(one.next(), other.next());
        }
        assert_ne!(Fuzz::new(8).next().step, Fuzz::new(9).next().step);
    }

    #[test]
    fn the_built_in_policy_plans_them_all() {
        let (mut fuzz, mut planner) = (Fuzz::new(1), BuiltinPlanner::default());
        for _ in 0..300 {
            let snapshot = fuzz.next();
            let mut ids: Vec<u64> = [&snapshot.waiting.id[..], &snapshot.running.id[..]].concat();
            ids.sort_unstable();
            ids.dedup();
            assert_eq!(ids.len(), snapshot.waiting.id.len() + snapshot.running.id.len());
            let plan = planner.plan(&snapshot).unwrap();
            assert_eq!(check(&snapshot, &plan), Ok(()));
        }
    }
}
