//! The earliest deadline first, with preemption.
//!
//! Whoever has the least time left goes first, unless it cannot be in time any
//! more: what is late already steps back behind those who can still make it, for
//! otherwise a node with too much to do is late for everybody. A request without
//! a deadline counts as if it had one far off, so that it is not forgotten.
//! Where an urgent request finds no room and would be late by waiting for it,
//! whoever can best afford it is paused.
#![deny(missing_docs)]

use quern_policy_sdk::prelude::*;
use quern_policy_sdk::wire::{Reader, Writer};

mod estimate;

use estimate::{Estimate, Pace};

/// What `save` writes: this policy's first format.
const FORMAT: u32 = 0x6564_6601;

/// The part of what is new in the learned length of answers: one in this many.
const MEMORY: f64 = 32.0;

/// See the module's text.
#[derive(Debug)]
pub struct Edf {
    turns: AdapterTurns,
    arrivals: Arrivals,
    covers_answer: bool,
    background_us: i64,
    margin_us: i64,
    /// Learned: how long answers are, in tokens.
    mean_new: f64,
    pace: Pace,
    preempted: metrics::Counter,
}

impl Default for Edf {
    fn default() -> Self {
        Edf {
            turns: AdapterTurns::default(),
            arrivals: Arrivals::default(),
            covers_answer: true,
            background_us: 30_000_000,
            margin_us: 20_000,
            mean_new: 0.0,
            pace: Pace::default(),
            preempted: metrics::Counter::default(),
        }
    }
}

impl Policy for Edf {
    fn init(&mut self, saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.covers_answer = settings.flag("deadline-covers-answer", self.covers_answer);
        self.background_us = 1000 * settings.number("background-deadline-ms", 30_000, 1..=3_600_000);
        self.margin_us = 1000 * settings.number("preempt-margin-ms", 20, 0..=3_600_000);
        self.turns = AdapterTurns::with_quantum(settings.number("quantum-steps", 16, 1..=100_000));
        settings.done()?;
        self.preempted = metrics::Counter::define("edf_preempted_total")?;
        if let Some(mean) = saved.and_then(|saved| Reader::new(saved, FORMAT)).and_then(|mut it| it.number())
        {
            self.mean_new = f64::from(mean.min(1_000_000) as u32);
        }
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        let mut saved = Writer::new(FORMAT);
        saved.number(self.mean_new as u64);
        saved.done()
    }
}

/// Added to the time that is left to who will be late anyway: more than any other
/// has, so that they come after all others. One number is compared faster than a pair.
const LATE_US: i64 = 1 << 40;

fn urgency(slack_us: i32, needed_us: i64) -> i64 {
    let slack_us = i64::from(slack_us);
    if slack_us < needed_us { slack_us + LATE_US } else { slack_us }
}

impl SchedulerPolicy for Edf {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        let new_tokens = if self.covers_answer { self.mean_new as u32 } else { 0 };
        self.pace.note(step);
        let estimate = Estimate::new(step, running.len(), &self.pace, new_tokens);
        let arrivals = &self.arrivals;
        // Who waits without a deadline has one in the background's time.
        let of_waiting = |row: usize| match waiting.slack_us[row] {
            NO_DEADLINE => self.background_us - i64::from(waiting.age_us[row]),
            slack_us => urgency(slack_us, estimate.waiting_us(waiting, row)),
        };
        let of_running = |row: usize| match running.slack_us[row] {
            NO_DEADLINE => self.background_us - arrivals.age_us(step, running, row).unwrap_or(0) as i64,
            slack_us => urgency(slack_us, estimate.running_us(running, row)),
        };
        let (margin_us, preempted) = (self.margin_us, self.preempted);
        let plan = self.turns.plan(step, waiting, running, |plan| {
            if let Some(row) = plan.serve(of_running, of_waiting)
                && is_pressed(&estimate, waiting, running, row)
                && let Some(victim) = last_in_order(plan, running, of_running)
                && can_afford(&estimate, running, victim, estimate.waiting_us(waiting, row) + margin_us)
            {
                plan.pause(victim);
                plan.try_start(row);
                preempted.add(1.0);
            }
        });
        self.arrivals.note(step, waiting, running, &plan);
        Ok(Some(plan))
    }
}

/// Whether a row has a deadline that it meets, but not by waiting until somebody
/// is done.
fn is_pressed(estimate: &Estimate, waiting: &Waiting, running: &Running, row: usize) -> bool {
    let spare = i64::from(waiting.slack_us[row]) - estimate.waiting_us(waiting, row);
    let first_done = (0..running.len()).map(|row| estimate.running_us(running, row)).min();
    waiting.slack_us[row] != NO_DEADLINE && spare >= 0 && spare < first_done.unwrap_or(0).max(1)
}

fn last_in_order(plan: &PlanBuilder<'_>, running: &Running, urgency: impl Fn(usize) -> i64) -> Option<usize> {
    (0..running.len()).filter(|&row| !plan.is_paused(row)).max_by_key(|&row| urgency(row))
}

/// Whether a running row loses nothing by making way for so long: it has no
/// deadline, is late anyway, or is in time even if it begins again after that.
fn can_afford(estimate: &Estimate, running: &Running, row: usize, for_us: i64) -> bool {
    let slack_us = i64::from(running.slack_us[row]);
    running.slack_us[row] == NO_DEADLINE
        || slack_us < estimate.running_us(running, row)
        || slack_us >= for_us + estimate.again_us(running, row)
}

impl FeedbackPolicy for Edf {
    fn observe(&mut self, completed: &Completed) {
        let rows = completed.outcome.iter().zip(&completed.new_tokens);
        for (_, &new) in rows.filter(|&(&outcome, _)| outcome == Outcome::Finished) {
            let new = f64::from(new);
            let part = if self.mean_new == 0.0 { 1.0 } else { 1.0 / MEMORY };
            self.mean_new += (new - self.mean_new) * part;
        }
    }
}

export_policy!(Edf: scheduler, feedback);
