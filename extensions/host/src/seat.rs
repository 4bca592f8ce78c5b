//! A place from which one hook is asked: an instance that serves, a spare that
//! stands ready, and during a trial the instance of the version before.
//!
//! Each step loop has a seat of its own, and each other hook has one. Calls of
//! one seat take turns, and so do swaps: an instance is only ever replaced
//! between two calls. The lock is held for one call at most, that is for its
//! deadline at worst; making instances happens outside of it.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use wasmtime::Store;

use crate::engine::PolicyEngine;
use crate::health::{Consequence, Permit};
use crate::host::Host;
use crate::instance::{Exports, Instance, Reply};
use crate::load::Code;
use crate::lock;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::slot::SlotCore;
use crate::verdict::{Fault, Hook, Verdict};
use crate::version::Version;
use crate::worker::Job;

/// See the module's text.
pub(crate) struct Seat {
    pub(crate) hook: Hook,
    slot: Weak<SlotCore>,
    me: Weak<Seat>,
    place: Mutex<Place>,
}

#[derive(Default)]
struct Place {
    now: Option<Occupant>,
    before: Option<Occupant>,
}

/// A version's presence in a seat.
pub(crate) struct Occupant {
    pub(crate) version: Arc<Version>,
    shared: Arc<Shared>,
    live: Option<Instance>,
    spare: Option<Instance>,
    /// A spare was ordered and is not there yet.
    ordered: bool,
    /// What the next instance is told in `init`.
    saved: Option<Arc<[u8]>>,
}

impl Occupant {
    pub(crate) fn new(
        version: Arc<Version>,
        shared: Arc<Shared>,
        live: Instance,
        spare: Option<Instance>,
        saved: Option<Arc<[u8]>>,
    ) -> Occupant {
        Occupant { version, shared, live: Some(live), spare, ordered: false, saved }
    }

    fn retire(self, engine: &PolicyEngine) {
        self.live.into_iter().chain(self.spare).for_each(|instance| engine.worker().retire(instance));
    }
}

/// What came of asking, when there is an answer.
pub(crate) struct Asked<T> {
    pub(crate) answer: T,
    /// Who answered; to be told what became of it.
    pub(crate) version: Arc<Version>,
    /// The answer must not be used, but still be judged.
    pub(crate) rehearsal: bool,
}

impl Seat {
    pub(crate) fn new(hook: Hook, slot: Weak<SlotCore>) -> Arc<Seat> {
        Arc::new_cyclic(|me| Seat { hook, slot, me: me.clone(), place: Mutex::default() })
    }

    /// Makes one call, and sees to what follows when it fails. An answer is not
    /// counted yet: whoever asked finds out whether it is good, and says so.
    pub(crate) fn ask<T>(
        &self,
        engine: &PolicyEngine,
        settings: &Settings,
        hook: Hook,
        clock_us: Option<u64>,
        f: impl FnOnce(&Exports, &mut Store<Host>) -> wasmtime::Result<Reply<T>>,
    ) -> Option<Asked<T>> {
        let mut place = lock(&self.place);
        let now = place.now.as_mut()?;
        let permit = now.version.health.permit(|| engine.now_us());
        if permit != Permit::Refused && now.live.is_none() {
            now.live = now.spare.take();
        }
        self.order_spare(engine, now, permit);
        let version = Arc::clone(&now.version);
        let stats = version.stats(hook);
        let Some(instance) = now.live.as_mut().filter(|_| permit != Permit::Refused) else {
            stats.skipped.fetch_add(1, Ordering::Relaxed);
            drop(place);
            if version.health.is_condemned() {
                self.follow(engine, &version, Consequence::Condemned);
            }
            return None;
        };
        let began = Instant::now();
        let reply = instance.call(engine, settings.deadlines.of(hook), clock_us, f);
        stats.took(began.elapsed());
        if engine.counts() {
            stats.instructions.fetch_add(instance.instructions().unwrap_or(0), Ordering::Relaxed);
        }
        let rehearsal = permit == Permit::Rehearse;
        let consequence = match reply {
            Ok(Ok(Some(answer))) => {
                drop(place);
                return Some(Asked { answer, version, rehearsal });
            }
            Ok(Ok(None)) => version.count(hook, Verdict::None, rehearsal),
            Ok(Err(reason)) => version.count_fault(engine, Some(hook), Fault::new(Verdict::Error, reason)),
            Err(fault) => {
                // The store must not be entered again.
                if let Some(broken) = now.live.take() {
                    engine.worker().retire(broken);
                }
                now.live = now.spare.take();
                self.order_spare(engine, now, permit);
                version.count_fault(engine, Some(hook), fault)
            }
        };
        drop(place);
        self.follow(engine, &version, consequence);
        None
    }

    /// Tells what became of an answer.
    pub(crate) fn judge(
        &self,
        engine: &PolicyEngine,
        hook: Hook,
        version: &Version,
        rehearsal: bool,
        judgement: Result<(), String>,
    ) {
        let consequence = match judgement {
            Ok(()) => version.count(hook, Verdict::Used, rehearsal),
            Err(why) => version.count_fault(engine, Some(hook), Fault::new(Verdict::Invalid, why)),
        };
        self.follow(engine, version, consequence);
    }

    /// Hands on what the whole place has to know. What the queue has no room
    /// for is handed on again: a roll-back at the next call, and the end of a
    /// trial, which only frees memory, with the next swap.
    fn follow(&self, engine: &PolicyEngine, version: &Version, consequence: Consequence) {
        let slot = Weak::clone(&self.slot);
        let ordered = &version.roll_back_ordered;
        match consequence {
            Consequence::Condemned if !ordered.load(Ordering::Relaxed) => {
                let job = Job::RollBack(slot, version.number, "faults in its trial".to_owned());
                ordered.store(engine.worker().give(job), Ordering::Relaxed);
            }
            Consequence::TrialPassed => {
                engine.worker().give(Job::TrialPassed(slot, version.number));
            }
            _ => {}
        }
    }

    fn order_spare(&self, engine: &PolicyEngine, now: &mut Occupant, permit: Permit) {
        if now.spare.is_some() || now.ordered || permit == Permit::Refused {
            return;
        }
        if let Some(me) = self.me.upgrade() {
            now.ordered = engine.worker().spare(&me, now.version.number);
        }
    }

    /// Builds a spare for this version if it still sits here; on the worker's
    /// thread. A failure counts as a fault, so that a version that cannot start
    /// any more ends in quarantine instead of being built for ever.
    pub(crate) fn build_spare(&self, version: u64) {
        let Some(slot) = self.slot.upgrade() else { return };
        let wanted = {
            let place = lock(&self.place);
            let now = place.now.as_ref().filter(|now| now.version.number == version && now.spare.is_none());
            now.map(|now| (Arc::clone(&now.version), Arc::clone(&now.shared), now.saved.clone()))
        };
        let Some((who, shared, saved)) = wanted else { return };
        let (engine, settings) = (&slot.engine, &slot.settings);
        let made = start(engine, &who.code, &shared, settings, saved.as_deref());

        let mut place = lock(&self.place);
        let Some(now) = place.now.as_mut().filter(|now| now.version.number == version) else { return };
        now.ordered = false;
        match made {
            Ok(instance) => now.spare = Some(instance),
            Err(fault) => {
                let consequence = who.count_fault(engine, None, fault);
                drop(place);
                self.follow(engine, &who, consequence);
            }
        }
    }

    /// What the serving instance wants its successor to know. An instance that
    /// fails at this is not used again.
    pub(crate) fn save(&self, engine: &PolicyEngine, settings: &Settings) -> Option<Arc<[u8]>> {
        let mut place = lock(&self.place);
        let now = place.now.as_mut()?;
        let instance = now.live.as_mut()?;
        match instance.save(engine, settings.deadlines.save) {
            Ok(saved) if saved.is_empty() => None,
            Ok(saved) => Some(saved.into()),
            Err(fault) => {
                if let Some(broken) = now.live.take() {
                    engine.worker().retire(broken);
                }
                now.live = now.spare.take();
                now.version.count_fault(engine, None, fault);
                None
            }
        }
    }

    /// Puts an occupant in at the next call's boundary; keeps the one before
    /// for a trial, without its spare.
    pub(crate) fn place(&self, engine: &PolicyEngine, next: Option<Occupant>, keep_before: bool) {
        let mut place = lock(&self.place);
        let mut old = std::mem::replace(&mut place.now, next);
        let mut gone = place.before.take();
        if keep_before && let Some(old) = old.as_mut() {
            old.spare.take().into_iter().for_each(|spare| engine.worker().retire(spare));
            old.ordered = false;
        }
        if keep_before {
            place.before = old.take();
        }
        drop(place);
        old.into_iter().chain(gone.take()).for_each(|occupant| occupant.retire(engine));
    }

    /// Takes out the instance that was kept of this version.
    pub(crate) fn take_before(&self, version: u64) -> Option<Occupant> {
        let mut place = lock(&self.place);
        let fits = place.before.as_ref().is_some_and(|before| before.version.number == version);
        if fits { place.before.take() } else { None }
    }

    /// Drops what was kept for a trial.
    pub(crate) fn forget_before(&self, engine: &PolicyEngine) {
        let before = lock(&self.place).before.take();
        before.into_iter().for_each(|occupant| occupant.retire(engine));
    }

    /// The number of the version that sits here.
    pub(crate) fn version(&self) -> Option<u64> {
        lock(&self.place).now.as_ref().map(|now| now.version.number)
    }

    /// Whether a version that observes sits here.
    pub(crate) fn observes(&self) -> bool {
        let place = lock(&self.place);
        place.now.as_ref().is_some_and(|now| now.version.code.hooks.has(Hook::Feedback))
    }
}

/// Makes an instance, with the state handed over if it can use it.
///
/// # Errors
/// The fault of an instance that was told nothing.
pub(crate) fn start(
    engine: &PolicyEngine,
    code: &Code,
    shared: &Arc<Shared>,
    settings: &Settings,
    saved: Option<&[u8]>,
) -> Result<Instance, Fault> {
    if saved.is_some() {
        match Instance::start(engine, code, shared, settings, saved) {
            Ok(instance) => return Ok(instance),
            // Another version's state may mean nothing to this one.
            Err(fault) => {
                tracing::info!(policy = settings.name, fault = %fault, "policy starts without the state handed over");
            }
        }
    }
    Instance::start(engine, code, shared, settings, None)
}
