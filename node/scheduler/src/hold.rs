//! Repeating a plan's choices without asking, for as many steps as it allows.
//!
//! A plan speaks of rows, and rows move when it is carried out. So what is kept
//! is what it means for sequences: those that it started go on with the chunk
//! that they were given, those that it paused stay paused. The choices hold while
//! the sequences are those that the plan left behind, in the same order, and none
//! of them has begun to decode; whatever else happens, the planner is asked again.

use crate::plan::{Plan, Snapshot};

/// Steps for which choices are repeated at most, whatever a plan allows: a policy
/// that is rid of a mistake should not live with it for long.
pub const MAX_HOLD: u32 = 256;

/// Choices that are in force for some more steps.
#[derive(Debug)]
pub struct Hold {
    left: u32,
    /// Ids of running sequences, in order, and whether each decodes.
    running: Vec<(u64, bool)>,
    /// Ids of waiting sequences, in order.
    waiting: Vec<u64>,
    /// As the plan says it in each repeated step.
    plan: Plan,
}

impl Hold {
    /// What can be repeated of a plan that was checked against this snapshot.
    #[must_use]
    pub fn after(snapshot: &Snapshot, plan: &Plan) -> Option<Hold> {
        if plan.hold_steps == 0 {
            return None;
        }
        let num_running = snapshot.running.id.len();
        let open = plan.running_chunk.is_empty() && plan.admit_chunk.is_empty();
        let known = plan.running_chunk.len() == num_running && plan.admit_chunk.len() == plan.admit.len();
        // Chunks of some rows cannot be left to the node while those of others are not.
        if !open && !known {
            return None;
        }
        let stays = (0..num_running).filter(|&row| !plan.preempt.contains(&(row as u32)));
        let mut hold = Hold {
            left: plan.hold_steps.min(MAX_HOLD),
            running: Vec::with_capacity(num_running + plan.admit.len()),
            waiting: Vec::new(),
            plan: Plan { adapter: plan.adapter, ..Plan::default() },
        };
        for row in stays {
            let left = snapshot.running.prompt_left[row];
            hold.running.push((snapshot.running.id[row], left == 1));
            hold.plan.running_chunk.extend(plan.running_chunk.get(row));
        }
        for (idx, &row) in plan.admit.iter().enumerate() {
            // A start whose first token can be drawn at once is seen to decode by
            // the next snapshot, and ends this.
            hold.running.push((snapshot.waiting.id[row as usize], false));
            hold.plan.running_chunk.extend(plan.admit_chunk.get(idx));
        }
        let waits = (0..snapshot.waiting.id.len()).filter(|&row| !plan.admit.contains(&(row as u32)));
        hold.waiting.extend(waits.map(|row| snapshot.waiting.id[row]));
        hold.waiting.extend(plan.preempt.iter().map(|&row| snapshot.running.id[row as usize]));
        hold.waiting.sort_unstable();
        Some(hold)
    }

    /// The choices as a plan for this snapshot; `None` when they do not hold any more.
    pub fn repeat(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        self.left = self.left.checked_sub(1)?;
        let running = &snapshot.running;
        let now = running.id.iter().zip(&running.prompt_left).map(|(&id, &left)| (id, left == 1));
        let same = now.eq(self.running.iter().copied()) && self.waiting == snapshot.waiting.id;
        same.then(|| self.plan.clone())
    }
}
