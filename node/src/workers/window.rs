//! What happened lately, in the rows that an autoscaler sees.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use quern_extensions::Window;

use super::Workers;
use super::pool::Phase;
use crate::serving::Recent;

/// Requests since the last row.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    arrived: AtomicU32,
    refused: AtomicU32,
}

impl Arrivals {
    pub(super) fn arrived(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether anybody came since the last row.
    pub(super) fn any(&self) -> bool {
        self.arrived.load(Ordering::Relaxed) > 0
    }
}

/// One interval.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) arrivals: u32,
    pub(super) rejected: u32,
    pub(super) waiting: u32,
    pub(super) running: u32,
    pub(super) busy_permille: u32,
    pub(super) kv_used_permille: u32,
    pub(super) ttft_p95_ms: u32,
    pub(super) tpot_p95_us: u32,
}

impl Workers {
    /// The row of an interval that has just ended and took so long.
    pub(super) fn row(&self, recent: &Recent, took: Duration) -> Row {
        let load = self.load();
        let (mut busy, mut num_ready) = (Duration::ZERO, 0);
        let mut state = self.pool.lock();
        let mut num_inside = state.pending.len();
        for worker in &mut state.workers {
            num_inside += worker.handle.backlog().requests;
            let total = worker.handle.busy();
            let since_last = total.saturating_sub(std::mem::replace(&mut worker.busy_seen, total));
            if worker.phase == Phase::Ready {
                busy += since_last;
                num_ready += 1;
            }
        }
        drop(state);
        let arrivals = &self.pool.arrivals;
        Row {
            arrivals: arrivals.arrived.swap(0, Ordering::Relaxed),
            rejected: arrivals.refused.swap(0, Ordering::Relaxed),
            waiting: number(num_inside.saturating_sub(load.running)),
            running: number(load.running),
            busy_permille: permille(busy.as_micros(), took.as_micros() * num_ready),
            kv_used_permille: permille(load.kv_live as u128, load.kv_capacity as u128),
            ttft_p95_ms: number(recent.first_token_p95().as_millis() as usize),
            tpot_p95_us: number(recent.between_tokens_p95().as_micros() as usize),
        }
    }
}

/// The last intervals, oldest first.
#[derive(Debug)]
pub(super) struct History {
    interval: Duration,
    max_rows: usize,
    rows: VecDeque<Row>,
}

impl History {
    pub(super) fn new(interval: Duration, max_rows: usize) -> History {
        History { interval, max_rows: max_rows.max(1), rows: VecDeque::new() }
    }

    pub(super) fn push(&mut self, row: Row) {
        if self.rows.len() == self.max_rows {
            self.rows.pop_front();
        }
        self.rows.push_back(row);
    }

    /// As policies see it.
    pub(super) fn window(&self) -> Window {
        let column = |value: fn(&Row) -> u32| self.rows.iter().map(value).collect();
        Window {
            interval_ms: number(self.interval.as_millis() as usize),
            arrivals: column(|row| row.arrivals),
            rejected: column(|row| row.rejected),
            waiting: column(|row| row.waiting),
            running: column(|row| row.running),
            busy_permille: column(|row| row.busy_permille),
            kv_used_permille: column(|row| row.kv_used_permille),
            ttft_p95_ms: column(|row| row.ttft_p95_ms),
            tpot_p95_us: column(|row| row.tpot_p95_us),
            // No engine tells it.
            power_mw: column(|_| 0),
        }
    }
}

fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// Thousandths, 1000 at most: a step's time counts where the step ends.
fn permille(part: u128, whole: u128) -> u32 {
    (part * 1000).checked_div(whole).unwrap_or(0).min(1000) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_is_bounded_and_in_order() {
        let mut history = History::new(Duration::from_secs(5), 3);
        (1..=5).for_each(|arrivals| history.push(Row { arrivals, ..Row::default() }));
        let window = history.window();
        assert_eq!((window.interval_ms, window.arrivals), (5000, vec![3, 4, 5]));
        assert_eq!((window.power_mw.len(), window.busy_permille.len()), (3, 3));
    }

    #[test]
    fn shares_are_bounded_and_never_of_nothing() {
        assert_eq!(permille(1, 2), 500);
        assert_eq!(permille(3, 2), 1000);
        assert_eq!(permille(3, 0), 0);
    }
}
