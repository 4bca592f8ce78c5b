//! How fast the loop goes, written by the step thread and read by anybody: the
//! last steps' times, the work done, and the limits in force.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// Steps that are remembered.
const KEPT: usize = 256;

/// What steps may hold and how long they may take; see
/// [`SchedulerConfig`](crate::SchedulerConfig) for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rows in a step; the engine's own limit holds too.
    pub token_budget: usize,
    /// Sequences that may run at once; the engine's own limit holds too.
    pub max_running: usize,
    /// How long a step should take at most while sequences decode; zero is no limit.
    pub target_step: Duration,
    /// How long a step may wait for requests that follow on finished answers.
    pub wait_window: Duration,
}

/// How fast the loop goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Steps since the start.
    pub num_steps: u64,
    /// Time spent in steps since the start.
    pub busy: Duration,
    /// Half of the recent steps took at most this; zero before the first.
    pub step_p50: Duration,
    /// All but a hundredth of the recent steps took at most this.
    pub step_p99: Duration,
    /// Prompt tokens of sequences that wait.
    pub waiting_tokens: u64,
    /// The limits in force.
    pub limits: Limits,
}

/// What the step thread writes.
#[derive(Debug)]
pub(crate) struct Pulse {
    num_steps: AtomicU64,
    busy_us: AtomicU64,
    recent_us: [AtomicU32; KEPT],
    pub(crate) waiting_tokens: AtomicU64,
    token_budget: AtomicUsize,
    max_running: AtomicUsize,
    target_step_us: AtomicU64,
    wait_window_us: AtomicU64,
}

impl Pulse {
    pub(crate) fn new(limits: Limits) -> Pulse {
        let pulse = Pulse {
            num_steps: AtomicU64::new(0),
            busy_us: AtomicU64::new(0),
            recent_us: [const { AtomicU32::new(0) }; KEPT],
            waiting_tokens: AtomicU64::new(0),
            token_budget: AtomicUsize::new(0),
            max_running: AtomicUsize::new(0),
            target_step_us: AtomicU64::new(0),
            wait_window_us: AtomicU64::new(0),
        };
        pulse.set_limits(limits);
        pulse
    }

    pub(crate) fn set_limits(&self, limits: Limits) {
        self.token_budget.store(limits.token_budget, Ordering::Relaxed);
        self.max_running.store(limits.max_running, Ordering::Relaxed);
        self.target_step_us.store(limits.target_step.as_micros() as u64, Ordering::Relaxed);
        self.wait_window_us.store(limits.wait_window.as_micros() as u64, Ordering::Relaxed);
    }

    pub(crate) fn step(&self, took: Duration) {
        let took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let idx = self.num_steps.fetch_add(1, Ordering::Relaxed) as usize % KEPT;
        self.recent_us[idx].store(took_us, Ordering::Relaxed);
        self.busy_us.fetch_add(u64::from(took_us), Ordering::Relaxed);
    }

    pub(crate) fn busy(&self) -> Duration {
        Duration::from_micros(self.busy_us.load(Ordering::Relaxed))
    }

    pub(crate) fn read(&self) -> Pace {
        let num_steps = self.num_steps.load(Ordering::Relaxed);
        let num_kept = KEPT.min(num_steps as usize);
        let mut recent: Vec<u32> =
            self.recent_us[..num_kept].iter().map(|us| us.load(Ordering::Relaxed)).collect();
        recent.sort_unstable();
        let at = |part: usize| {
            let us = recent.get((num_kept * part / 100).min(num_kept.saturating_sub(1))).copied();
            Duration::from_micros(us.unwrap_or(0).into())
        };
        let micros = |value: &AtomicU64| Duration::from_micros(value.load(Ordering::Relaxed));
        Pace {
            num_steps,
            busy: self.busy(),
            step_p50: at(50),
            step_p99: at(99),
            waiting_tokens: self.waiting_tokens.load(Ordering::Relaxed),
            limits: Limits {
                token_budget: self.token_budget.load(Ordering::Relaxed),
                max_running: self.max_running.load(Ordering::Relaxed),
                target_step: micros(&self.target_step_us),
                wait_window: micros(&self.wait_window_us),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_last_steps_and_counts_all() {
        let limits = Limits {
            token_budget: 512,
            max_running: 8,
            target_step: Duration::from_millis(400),
            wait_window: Duration::from_millis(10),
        };
        let pulse = Pulse::new(limits);
        assert_eq!((pulse.read().step_p50, pulse.read().limits), (Duration::ZERO, limits));
        // Slow ones that are forgotten, then as many as are kept.
        (0..100).for_each(|_| pulse.step(Duration::from_secs(1)));
        (1..=KEPT as u64).for_each(|us| pulse.step(Duration::from_micros(us)));
        let pace = pulse.read();
        assert_eq!(pace.num_steps, 100 + KEPT as u64);
        assert_eq!((pace.step_p50.as_micros(), pace.step_p99.as_micros()), (129, 254));
        assert_eq!(pace.busy, Duration::from_secs(100) + Duration::from_micros((1..=KEPT as u64).sum()));
    }
}
