//! Tracks a target, with hysteresis and scale to zero.
//!
//! How many workers are wanted is the largest of what three signals say, each a
//! proportion: the share of time that workers compute, sequences in the node for
//! each worker, and, where a target for it is set, the time to first token. Up goes
//! at once, for queues hurt; down only when the whole window up to `down-after-ms`
//! agrees, and not for a small difference, so that the number does not flutter. With
//! nothing to do for `zero-after-ms` no worker is wanted at all, and the first
//! arrival brings one back. Where the node's window is shorter than these times, the
//! policy remembers since when it has seen the same; without that memory it only
//! waits longer.
#![deny(missing_docs)]

use quern_policy_sdk::prelude::*;

/// See the module's text.
#[derive(Debug)]
pub struct TargetTracking {
    busy_permille: u32,
    per_worker: u32,
    ttft_ms: u32,
    tolerance_percent: u32,
    down_after_ms: u32,
    zero_after_ms: u32,
    hold_ms: u32,
    /// Since when, on the node's clock, fewer workers would do.
    low_since_us: Option<u64>,
    /// Since when nothing was there to do.
    quiet_since_us: Option<u64>,
}

impl Default for TargetTracking {
    fn default() -> Self {
        TargetTracking {
            busy_permille: 700,
            per_worker: 16,
            ttft_ms: 0,
            tolerance_percent: 10,
            down_after_ms: 120_000,
            zero_after_ms: 600_000,
            hold_ms: 2000,
            low_since_us: None,
            quiet_since_us: None,
        }
    }
}

impl Policy for TargetTracking {
    fn init(&mut self, _saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.busy_permille = settings.number("target-busy-permille", self.busy_permille, 1..=1000);
        self.per_worker = settings.number("target-sequences", self.per_worker, 1..=100_000);
        self.ttft_ms = settings.number("target-ttft-ms", self.ttft_ms, 0..=3_600_000);
        self.tolerance_percent = settings.number("tolerance-percent", self.tolerance_percent, 0..=90);
        self.down_after_ms = settings.number("down-after-ms", self.down_after_ms, 0..=86_400_000);
        self.zero_after_ms = settings.number("zero-after-ms", self.zero_after_ms, 0..=86_400_000);
        self.hold_ms = settings.number("hold-ms", self.hold_ms, 100..=3_600_000);
        settings.done()
    }
}

impl AutoscalerPolicy for TargetTracking {
    fn evaluate(&mut self, window: &Window, replicas: &Replicas) -> Answer<Target> {
        let rows = window.arrivals.len();
        if rows == 0 {
            return Ok(None);
        }
        let (desired, reason) = self.desired(window, replicas);
        let desired = desired.clamp(replicas.min, replicas.max.max(replicas.min));
        Ok(Some(Target { desired, reason, hold_ms: self.hold_ms }))
    }
}

/// Workers that one interval asks for, and what asks for them.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Wish {
    /// In whole workers and parts.
    workers: f64,
    because: &'static str,
}

impl TargetTracking {
    fn desired(&mut self, window: &Window, replicas: &Replicas) -> (u32, String) {
        let last = window.arrivals.len() - 1;
        // Workers that start are counted: asking for them again would be too much.
        let present = replicas.ready + replicas.starting;
        if self.is_idle(window) {
            return (0, format!("nothing to do for {} s", self.zero_after_ms / 1000));
        }
        if present == 0 {
            let is_wanted = !is_quiet(window, last);
            let reason = if is_wanted { "requests wait for a worker" } else { "no worker, no requests" };
            return (u32::from(is_wanted), reason.into());
        }
        let now = self.wish(window, last, replicas);
        let reason = |wish: Wish, when: &str| {
            format!("{}: {when}{:.1} workers' worth for {present}", wish.because, wish.workers)
        };
        if now.workers > f64::from(present) * (1.0 + self.tolerance()) {
            self.low_since_us = None;
            return (whole(now.workers), reason(now, ""));
        }
        // The most that any interval asked for while going down has to wait.
        let needed = intervals(window, self.down_after_ms);
        let recent = (0..=last).rev().take(needed);
        let peak = recent.map(|row| self.wish(window, row, replicas)).reduce(larger).unwrap_or(now);
        let down = whole(peak.workers * (1.0 + self.tolerance()));
        let is_low = down < present;
        if lasts(&mut self.low_since_us, is_low, self.down_after_ms) || is_low && last + 1 >= needed {
            return (down, reason(peak, "at most "));
        }
        (present, reason(now, ""))
    }

    /// Whether nothing was there to do for long enough.
    fn is_idle(&mut self, window: &Window) -> bool {
        let needed = intervals(window, self.zero_after_ms);
        let rows = window.arrivals.len();
        let quiet = (rows - needed.min(rows)..rows).all(|row| is_quiet(window, row));
        let lasts = lasts(&mut self.quiet_since_us, quiet, self.zero_after_ms);
        self.zero_after_ms > 0 && (lasts || quiet && rows >= needed)
    }

    fn tolerance(&self) -> f64 {
        f64::from(self.tolerance_percent) / 100.0
    }

    /// What an interval asks for. Shares are of the workers that are ready now.
    fn wish(&self, window: &Window, row: usize, replicas: &Replicas) -> Wish {
        let ready = f64::from(replicas.ready.max(1));
        let share = |value: u32, target: u32| f64::from(value) / f64::from(target);
        let sequences = window.waiting[row].saturating_add(window.running[row]);
        let busy =
            Wish { workers: ready * share(window.busy_permille[row], self.busy_permille), because: "busy" };
        let queue = Wish { workers: share(sequences, self.per_worker), because: "sequences" };
        let wish = larger(busy, queue);
        if self.ttft_ms == 0 || window.waiting[row] == 0 {
            return wish;
        }
        // A latency does not fall in proportion; half more at a time is enough.
        let late = share(window.ttft_p95_ms[row], self.ttft_ms).min(1.5);
        larger(wish, Wish { workers: ready * late, because: "time to first token" })
    }
}

/// Intervals that a time takes, at least one.
fn intervals(window: &Window, ms: u32) -> usize {
    ms.div_ceil(window.interval_ms.max(1)).max(1) as usize
}

/// Notes since when something holds; whether that is long enough by now.
fn lasts(since_us: &mut Option<u64>, holds: bool, ms: u32) -> bool {
    let now_us = clock::now_us();
    *since_us = holds.then(|| since_us.unwrap_or(now_us));
    since_us.is_some_and(|since_us| now_us.saturating_sub(since_us) >= u64::from(ms) * 1000)
}

fn is_quiet(window: &Window, row: usize) -> bool {
    let came = window.arrivals[row].saturating_add(window.rejected[row]);
    came == 0 && window.waiting[row] == 0 && window.running[row] == 0
}

/// Whole workers for so many, at least one.
fn whole(workers: f64) -> u32 {
    workers.ceil().max(1.0) as u32
}

fn larger(one: Wish, other: Wish) -> Wish {
    if other.workers > one.workers { other } else { one }
}

export_policy!(TargetTracking: autoscaler);
