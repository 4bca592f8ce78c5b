//! Holds a target for the time between tokens.
//!
//! A stream's next token takes as long as the step that computes it, and prefill of
//! others is what makes steps long. So the batcher moves one thing, the longest
//! step while sequences decode, as congestion control moves a window: up by a
//! little while the measured time between tokens is under the target, down by a
//! part at once when it is over. Where even steps without prefill to speak of take
//! too long, there are too many streams, and it lowers their number the same way.
#![deny(missing_docs)]

use quern_policy_sdk::prelude::*;

/// The longest step is lowered to this part of itself, in percent.
const DECREASE_PERCENT: u32 = 75;

/// Raised by this part of the target.
const INCREASE_PART: u32 = 16;

/// Under this part of the target there is room to raise, in percent.
const ROOM_PERCENT: u32 = 90;

/// The longest step, at most and at least, in percent of the target. More than
/// the target itself is right where few of a stream's steps have prefill.
const MOST_PERCENT: u32 = 200;
const LEAST_PERCENT: u32 = 25;

/// Calls until a change shows in what is measured.
const SETTLE: u32 = 4;

/// See the module's text.
#[derive(Debug)]
pub struct TbtTarget {
    target_us: u32,
    hold_ms: u32,
    /// The longest step, as set; 0 before the first call.
    step_us: u32,
    /// Sequences at once, as set; none leaves it as the node has it.
    max_running: Option<u32>,
    /// What the node had when it was first lowered.
    ceiling: u32,
    /// Calls that a lowering has still to settle.
    settling: u32,
    longest: metrics::Gauge,
}

impl Default for TbtTarget {
    fn default() -> Self {
        TbtTarget {
            target_us: 100_000,
            hold_ms: 250,
            step_us: 0,
            max_running: None,
            ceiling: 0,
            settling: 0,
            longest: metrics::Gauge::default(),
        }
    }
}

impl Policy for TbtTarget {
    fn init(&mut self, _saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.target_us = 1000 * settings.number("target-ms", 100, 1..=60_000);
        self.hold_ms = settings.number("hold-ms", self.hold_ms, 10..=60_000);
        settings.done()?;
        self.longest = metrics::Gauge::define("tbt_target_longest_step_us")?;
        Ok(())
    }
}

impl BatcherPolicy for TbtTarget {
    fn tune(&mut self, load: &NodeLoad) -> Answer<Limits> {
        if self.step_us == 0 {
            self.step_us = self.target_us;
        }
        let measured = load.tpot_p95_us;
        self.settling = self.settling.saturating_sub(1);
        if measured > self.target_us && self.settling == 0 {
            self.lower(load);
            self.settling = SETTLE;
        } else if measured > 0 && measured < percent(self.target_us, ROOM_PERCENT) {
            self.raise(load);
        }
        self.longest.set(f64::from(self.step_us));
        Ok(Some(Limits {
            token_budget: load.token_budget,
            max_running: self.max_running.unwrap_or(load.max_running),
            wait_window_us: load.wait_window_us,
            target_step_us: self.step_us,
            hold_ms: self.hold_ms,
        }))
    }
}

fn percent(value: u32, percent: u32) -> u32 {
    (u64::from(value) * u64::from(percent) / 100) as u32
}

impl TbtTarget {
    fn lower(&mut self, load: &NodeLoad) {
        let least = percent(self.target_us, LEAST_PERCENT).max(1);
        if self.step_us > least {
            self.step_us = percent(self.step_us, DECREASE_PERCENT).max(least);
            return;
        }
        // What runs now is too much, whatever was allowed.
        let now = self.max_running.unwrap_or(load.max_running);
        self.ceiling = self.ceiling.max(now);
        let fewer = percent(now.min(load.running.max(1)), DECREASE_PERCENT);
        self.max_running = Some(fewer.max(1));
    }

    fn raise(&mut self, load: &NodeLoad) {
        // Streams come back first: refusing to start is worse than slow prefill.
        if let Some(max_running) = self.max_running {
            // One more only tells something once all places are taken.
            if load.running >= max_running || load.waiting == 0 {
                self.max_running = Some(max_running + 1).filter(|&more| more < self.ceiling);
            }
            return;
        }
        // Without prefill to do, nothing would show that the step was too long.
        if load.waiting_tokens > 0 {
            let most = u64::from(self.target_us) * u64::from(MOST_PERCENT) / 100;
            let raised = self.step_us.saturating_add((self.target_us / INCREASE_PART).max(1));
            self.step_us = raised.min(u32::try_from(most).unwrap_or(u32::MAX));
        }
    }
}

export_policy!(TbtTarget: batcher);
