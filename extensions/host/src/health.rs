//! Whether a version is fit to decide.
//!
//! ```text
//! Serving     => Quarantined  too many faults in the window
//! Quarantined => Rehearsing   its back-off is over
//! Rehearsing  => Serving      all rehearsals went well
//! Rehearsing  => Quarantined  one did not; the back-off doubles
//! any         => Condemned    too many faults in its trial; never left
//! ```
//! Reading the state costs one load, so that calls without faults cost nothing.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::lock;
use crate::settings::{Quarantine, Trial};

/// What a call is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Permit {
    /// Its answer counts.
    Decide,
    /// Its answer is thrown away.
    Rehearse,
    /// It is not made.
    Refused,
}

/// What follows from a call's outcome.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Consequence {
    Nothing,
    /// It is no longer asked for this long.
    Quarantined(Duration),
    /// It decides again.
    Readmitted,
    /// It passed its trial.
    TrialPassed,
    /// It failed its trial and is not asked again.
    Condemned,
}

const SERVING: u8 = 0;
const QUARANTINED: u8 = 1;
const REHEARSING: u8 = 2;
const CONDEMNED: u8 = 3;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Health {
    state: AtomicU8,
    calls: AtomicU64,
    trial_left: AtomicU32,
    /// End of the quarantine, on the engine's clock.
    until_us: AtomicU64,
    book: Mutex<Book>,
    quarantine: Quarantine,
}

#[derive(Debug, Default)]
struct Book {
    /// Number of the call, and when, of the last faults.
    faults: VecDeque<(u64, u64)>,
    forgiven_left: u32,
    rehearsals_left: u32,
    back_off: Duration,
    /// Calls that had been made when it was last readmitted.
    readmitted_at: u64,
    times: u32,
}

/// For operators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HealthView {
    pub(crate) state: &'static str,
    pub(crate) trial_left: u32,
    pub(crate) times_quarantined: u32,
    pub(crate) until_us: u64,
}

impl Health {
    pub(crate) fn new(quarantine: Quarantine, trial: Trial) -> Health {
        Health {
            state: AtomicU8::new(SERVING),
            calls: AtomicU64::new(0),
            trial_left: AtomicU32::new(trial.calls),
            until_us: AtomicU64::new(0),
            book: Mutex::new(Book { forgiven_left: trial.forgiven, ..Book::default() }),
            quarantine,
        }
    }

    /// Whether to make a call now. `now_us` is asked only in quarantine.
    pub(crate) fn permit(&self, now_us: impl FnOnce() -> u64) -> Permit {
        match self.state.load(Ordering::Acquire) {
            SERVING => Permit::Decide,
            REHEARSING => Permit::Rehearse,
            QUARANTINED if now_us() >= self.until_us.load(Ordering::Acquire) => {
                lock(&self.book).rehearsals_left = self.quarantine.rehearsals;
                self.state.store(REHEARSING, Ordering::Release);
                Permit::Rehearse
            }
            _ => Permit::Refused,
        }
    }

    /// A call went well.
    pub(crate) fn well(&self) -> Consequence {
        let calls = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        if self.state.load(Ordering::Acquire) == REHEARSING {
            let mut book = lock(&self.book);
            book.rehearsals_left = book.rehearsals_left.saturating_sub(1);
            if book.rehearsals_left > 0 {
                return Consequence::Nothing;
            }
            book.readmitted_at = calls;
            book.faults.clear();
            self.state.store(SERVING, Ordering::Release);
            return Consequence::Readmitted;
        }
        self.trial_step()
    }

    fn trial_step(&self) -> Consequence {
        if self.trial_left.load(Ordering::Relaxed) == 0 {
            return Consequence::Nothing;
        }
        match self.trial_left.fetch_update(Ordering::AcqRel, Ordering::Relaxed, |left| left.checked_sub(1)) {
            Ok(1) => Consequence::TrialPassed,
            _ => Consequence::Nothing,
        }
    }

    /// A call did not go well.
    pub(crate) fn fault(&self, now_us: u64) -> Consequence {
        let call = self.calls.fetch_add(1, Ordering::Relaxed) + 1;
        let mut book = lock(&self.book);
        match self.state.load(Ordering::Acquire) {
            SERVING => {}
            REHEARSING => return self.shut_out(&mut book, call, now_us),
            _ => return Consequence::Nothing,
        }
        if self.trial_left.load(Ordering::Relaxed) > 0 {
            if book.forgiven_left == 0 {
                self.state.store(CONDEMNED, Ordering::Release);
                return Consequence::Condemned;
            }
            book.forgiven_left -= 1;
            return self.trial_step();
        }
        book.faults.push_back((call, now_us));
        let Quarantine { max_faults, window_calls, window, .. } = self.quarantine;
        let window_us = window.as_micros() as u64;
        let old = |&(at_call, at_us): &(u64, u64)| {
            at_call + window_calls <= call || at_us.saturating_add(window_us) < now_us
        };
        while book.faults.front().is_some_and(old) {
            book.faults.pop_front();
        }
        if book.faults.len() < max_faults as usize {
            return Consequence::Nothing;
        }
        self.shut_out(&mut book, call, now_us)
    }

    fn shut_out(&self, book: &mut Book, call: u64, now_us: u64) -> Consequence {
        let Quarantine { back_off, max_back_off, window_calls, .. } = self.quarantine;
        let rehearsing = self.state.load(Ordering::Acquire) == REHEARSING;
        let soon = rehearsing || book.times > 0 && call < book.readmitted_at + window_calls;
        book.back_off = if soon { (2 * book.back_off).min(max_back_off) } else { back_off };
        book.times += 1;
        book.faults.clear();
        self.until_us.store(now_us.saturating_add(book.back_off.as_micros() as u64), Ordering::Release);
        self.state.store(QUARANTINED, Ordering::Release);
        Consequence::Quarantined(book.back_off)
    }

    /// Ends the trial, for a version that is put back.
    pub(crate) fn end_trial(&self) {
        self.trial_left.store(0, Ordering::Release);
    }

    pub(crate) fn is_condemned(&self) -> bool {
        self.state.load(Ordering::Acquire) == CONDEMNED
    }

    pub(crate) fn view(&self) -> HealthView {
        let trial_left = self.trial_left.load(Ordering::Acquire);
        let state = match self.state.load(Ordering::Acquire) {
            SERVING if trial_left > 0 => "trial",
            SERVING => "serving",
            QUARANTINED => "quarantined",
            REHEARSING => "rehearsing",
            _ => "condemned",
        };
        let times_quarantined = lock(&self.book).times;
        HealthView { state, trial_left, times_quarantined, until_us: self.until_us.load(Ordering::Acquire) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Quarantine = Quarantine {
        max_faults: 3,
        window_calls: 10,
        window: Duration::from_secs(1),
        back_off: Duration::from_secs(10),
        max_back_off: Duration::from_secs(25),
        rehearsals: 2,
    };

    fn untried() -> Health {
        Health::new(RULES, Trial { calls: 0, forgiven: 0 })
    }

    #[test]
    fn faults_close_together_quarantine_and_others_do_not() {
        let health = untried();
        for round in 0..20u64 {
            // One fault in five calls, two seconds apart.
            assert_eq!(health.fault(round * 2_000_000), Consequence::Nothing);
            (0..4).for_each(|_| assert_eq!(health.well(), Consequence::Nothing));
        }
        let health = untried();
        for _ in 0..20 {
            // Two faults at the same moment, but many calls before the next.
            assert_eq!(health.fault(5), Consequence::Nothing);
            assert_eq!(health.fault(5), Consequence::Nothing);
            (0..10).for_each(|_| assert_eq!(health.well(), Consequence::Nothing));
        }
        let health = untried();
        assert_eq!(health.fault(5), Consequence::Nothing);
        assert_eq!(health.fault(6), Consequence::Nothing);
        assert_eq!(health.fault(7), Consequence::Quarantined(Duration::from_secs(10)));
        assert_eq!(health.permit(|| 8), Permit::Refused);
    }

    #[test]
    fn it_comes_back_through_rehearsals_and_the_back_off_doubles() {
        let health = untried();
        for _ in 0..3 {
            health.fault(0);
        }
        let mut now = 10_000_000;
        assert_eq!(health.permit(|| now - 1), Permit::Refused);
        for back_off in [20, 25, 25] {
            assert_eq!(health.permit(|| now), Permit::Rehearse);
            assert_eq!(health.well(), Consequence::Nothing);
            assert_eq!(health.fault(now), Consequence::Quarantined(Duration::from_secs(back_off)));
            now += back_off * 1_000_000;
        }
        assert_eq!(health.permit(|| now), Permit::Rehearse);
        assert_eq!(health.well(), Consequence::Nothing);
        assert_eq!(health.well(), Consequence::Readmitted);
        assert_eq!(health.permit(|| now), Permit::Decide);
        // After a long time without faults the back-off begins anew.
        for _ in 0..10 {
            health.well();
        }
        assert_eq!((0..3).map(|_| health.fault(now)).last(), Some(Consequence::Quarantined(RULES.back_off)));
    }

    #[test]
    fn a_trial_forgives_what_it_was_told_to_and_ends() {
        let health = Health::new(RULES, Trial { calls: 3, forgiven: 1 });
        assert_eq!(health.view().state, "trial");
        assert_eq!(health.well(), Consequence::Nothing);
        assert_eq!(health.fault(0), Consequence::Nothing);
        assert_eq!(health.well(), Consequence::TrialPassed);
        assert_eq!(health.view().state, "serving");

        let health = Health::new(RULES, Trial { calls: 3, forgiven: 1 });
        assert_eq!(health.fault(0), Consequence::Nothing);
        assert_eq!(health.fault(0), Consequence::Condemned);
        assert_eq!(health.permit(|| u64::MAX), Permit::Refused);
        assert_eq!(health.fault(0), Consequence::Nothing);
    }
}
