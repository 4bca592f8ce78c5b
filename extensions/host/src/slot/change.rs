//! How one version takes another's place: install, trial, roll back, unload.

use std::sync::Arc;
use std::time::SystemTime;

use super::{KEPT_HISTORY, KEPT_VERSIONS, Ledger, Parts, Past, SlotCore, SlotError, belongs, occupant_parts};
use crate::load::{Code, LoadError};
use crate::lock;
use crate::seat::{self, Occupant, Seat};
use crate::version::Version;

/// A seat, and what is to sit in it.
type Seating = (Arc<Seat>, Option<Occupant>);

impl SlotCore {
    /// Starts a version in all seats, then puts it in everywhere.
    pub(super) fn install(&self, code: Arc<Code>, why: &str) -> Result<Arc<Version>, LoadError> {
        let _turn = lock(&self.turn);
        let mut started: Vec<(Arc<Seat>, Option<Parts>)> = Vec::new();
        for seat in self.seats() {
            let parts = belongs(seat.hook, code.hooks).then(|| occupant_parts(self, &code, &seat));
            started.push((seat, parts.transpose()?));
        }
        let named = match started.iter().find_map(|(_, parts)| parts.as_ref()) {
            Some(parts) => (parts.live.name.clone(), parts.live.version.clone()),
            // Nobody asks yet. It has to start all the same, or is refused.
            None => {
                let probe = seat::start(&self.engine, &code, &self.shared, &self.settings, None);
                let probe = probe.map_err(LoadError::Start)?;
                (probe.name.clone(), probe.version.clone())
            }
        };
        let version = Arc::new(Version::new(self.next_number(), code, named, &self.settings));
        if self.settings.trial.calls == 0 {
            version.health.end_trial();
        }
        for (seat, parts) in started {
            let next = parts.map(|parts| self.occupant(&version, parts));
            seat.place(&self.engine, next, self.settings.trial.calls > 0);
        }
        tracing::info!(
            policy = self.settings.name,
            name = version.name,
            version = version.version,
            digest = %version.code.digest,
            number = version.number,
            "policy serves"
        );
        let mut ledger = lock(&self.ledger);
        let old = ledger.serving.replace(Arc::clone(&version));
        old.into_iter().for_each(|old| {
            // What failed its trial a moment ago is not worth going back to.
            let fit = !old.health.is_condemned();
            ledger.leave(old, why, fit);
        });
        Ok(version)
    }

    fn occupant(&self, version: &Arc<Version>, parts: Parts) -> Occupant {
        let Parts { live, spare, saved } = parts;
        Occupant::new(Arc::clone(version), Arc::clone(&self.shared), live, spare, saved)
    }

    /// Gives a new step loop's seat an instance, if a version serves.
    pub(super) fn add_step_loop(&self, seat: &Arc<Seat>) {
        let _turn = lock(&self.turn);
        lock(&self.step_loops).push(Arc::downgrade(seat));
        let Some(version) = self.serving() else { return };
        if !belongs(seat.hook, version.code.hooks) {
            return;
        }
        match occupant_parts(self, &version.code, seat) {
            Ok(parts) => seat.place(&self.engine, Some(self.occupant(&version, parts)), false),
            Err(error) => {
                tracing::warn!(policy = self.settings.name, error = %error, "a step loop goes without its policy");
            }
        }
    }

    /// Puts the version before back, because the operator wants it.
    pub(super) fn roll_back(&self, why: &str) -> Result<Arc<Version>, SlotError> {
        let _turn = lock(&self.turn);
        let target = lock(&self.ledger).past.last().cloned().ok_or(SlotError::NothingBefore)?;
        let mut seating = Vec::new();
        for seat in self.seats() {
            let next = self.again(&seat, &target)?;
            seating.push((seat, next));
        }
        self.seat_all(seating);
        self.write_back(Some(Arc::clone(&target)), why);
        Ok(target)
    }

    /// Puts the version before back, or nobody, because this one failed its
    /// trial. Does nothing if another serves by now.
    pub(crate) fn roll_back_from(&self, number: u64, why: &str) {
        let _turn = lock(&self.turn);
        let target = {
            let ledger = lock(&self.ledger);
            if ledger.serving.as_ref().is_none_or(|serving| serving.number != number) {
                return;
            }
            ledger.past.last().cloned()
        };
        let mut seating: Vec<Seating> = Vec::new();
        for seat in self.seats() {
            let next = target.as_ref().and_then(|target| match self.again(&seat, target) {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(policy = self.settings.name, error = %error, "the version before does not start");
                    None
                }
            });
            seating.push((seat, next));
        }
        self.seat_all(seating);
        let name = target.as_ref().map_or("built-in", |target| &target.name);
        tracing::warn!(policy = self.settings.name, to = name, why, "policy rolled back");
        metrics::counter!("quern_policy_rollbacks_total", "policy" => self.settings.name.clone())
            .increment(1);
        self.write_back(target, why);
    }

    /// A version's place in a seat once more: the instance that was kept, or
    /// a new one with what its successor saves.
    fn again(&self, seat: &Arc<Seat>, target: &Arc<Version>) -> Result<Option<Occupant>, LoadError> {
        if !belongs(seat.hook, target.code.hooks) {
            return Ok(None);
        }
        if let Some(kept) = seat.take_before(target.number) {
            return Ok(Some(kept));
        }
        let parts = occupant_parts(self, &target.code, seat)?;
        Ok(Some(self.occupant(target, parts)))
    }

    fn seat_all(&self, seating: Vec<Seating>) {
        for (seat, next) in seating {
            seat.place(&self.engine, next, false);
        }
    }

    /// Writes down that the serving version left for the one before.
    fn write_back(&self, target: Option<Arc<Version>>, why: &str) {
        if let Some(target) = &target {
            target.health.end_trial();
        }
        let mut ledger = lock(&self.ledger);
        if target.is_some() {
            ledger.past.pop();
        }
        let old = std::mem::replace(&mut ledger.serving, target);
        old.into_iter().for_each(|old| ledger.leave(old, why, false));
    }

    pub(super) fn unload(&self, why: &str) -> bool {
        let _turn = lock(&self.turn);
        self.seat_all(self.seats().into_iter().map(|seat| (seat, None)).collect());
        let mut ledger = lock(&self.ledger);
        let old = ledger.serving.take();
        let was_there = old.is_some();
        old.into_iter().for_each(|old| ledger.leave(old, why, true));
        was_there
    }

    /// Lets go of what was kept in case the trial would fail.
    pub(crate) fn trial_passed(&self, number: u64) {
        let _turn = lock(&self.turn);
        let Some(serving) = self.serving().filter(|serving| serving.number == number) else { return };
        tracing::info!(policy = self.settings.name, name = serving.name, "policy passed its trial");
        self.seats().iter().for_each(|seat| seat.forget_before(&self.engine));
    }
}

impl Ledger {
    fn leave(&mut self, old: Arc<Version>, why: &str, can_return: bool) {
        self.history.push_back(Past {
            number: old.number,
            name: old.name.clone(),
            version: old.version.clone(),
            digest: old.code.digest,
            loaded_at: old.loaded_at,
            left_at: SystemTime::now(),
            why: why.to_owned(),
        });
        if self.history.len() > KEPT_HISTORY {
            self.history.pop_front();
        }
        if can_return {
            self.past.push(old);
        }
        if self.past.len() > KEPT_VERSIONS {
            self.past.remove(0);
        }
    }
}
