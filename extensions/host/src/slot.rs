//! A place where a policy serves: which version does, what was before, and how
//! one takes another's place.
//!
//! Operators call `load`, `roll_back` and so on from threads that may wait; the
//! serving threads only ever meet their own seat (`seat.rs`). A change builds
//! all instances first and puts them in after that, each between two calls, so
//! that a version that does not start changes nothing.

mod change;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::SystemTime;

use arc_swap::ArcSwapOption;

use crate::engine::PolicyEngine;
use crate::hooks::{AdmissionRequest, Completed, Decision, NodeLoad, Replicas, StepLimits, Target, Window};
use crate::load::{self, Code, LoadError, Source};
use crate::lock;
use crate::planner::SlotPlanner;
use crate::seat::{Asked, Seat};
use crate::settings::Settings;
use crate::shadow::Shadow;
use crate::shared::Shared;
use crate::status::{Loaded, SlotStatus};
use crate::trust::Digest;
use crate::verdict::{Hook, HookSet};
use crate::version::Version;

/// Versions that are remembered by name after they left.
const KEPT_HISTORY: usize = 16;

/// Versions that can be rolled back to, one after the other: their code is kept.
const KEPT_VERSIONS: usize = 4;

/// See the module's text. Cheap to clone, and all clones are the same place.
#[derive(Clone)]
pub struct Slot {
    core: Arc<SlotCore>,
}

/// Why an operator's wish is not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// There is no version before.
    #[error("no version before this one is kept")]
    NothingBefore,
    /// Nothing runs beside the serving version.
    #[error("there is no candidate")]
    NoCandidate,
    /// It does not start any more.
    #[error(transparent)]
    Load(#[from] LoadError),
}

pub(crate) struct SlotCore {
    pub(crate) engine: PolicyEngine,
    pub(crate) settings: Settings,
    pub(crate) shared: Arc<Shared>,
    /// The seats of the hooks that are not a step loop's.
    fixed: [Arc<Seat>; 4],
    step_loops: Mutex<Vec<Weak<Seat>>>,
    /// Held during a change, so that changes take turns.
    turn: Mutex<()>,
    pub(crate) ledger: Mutex<Ledger>,
    pub(crate) shadow: ArcSwapOption<Shadow>,
    next_number: AtomicU64,
}

/// Who serves and who did.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) serving: Option<Arc<Version>>,
    /// Newest last.
    pub(crate) past: Vec<Arc<Version>>,
    /// Newest last.
    pub(crate) history: VecDeque<Past>,
}

/// A version that left.
#[derive(Debug, Clone)]
pub(crate) struct Past {
    pub(crate) number: u64,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) digest: Digest,
    pub(crate) loaded_at: SystemTime,
    pub(crate) left_at: SystemTime,
    pub(crate) why: String,
}

impl Slot {
    /// An empty place: every question is answered by the node itself.
    #[must_use]
    pub fn new(engine: &PolicyEngine, settings: Settings) -> Slot {
        let shared = Shared::new(&settings.name, settings.config.clone(), engine.worker().clone());
        let core = Arc::new_cyclic(|core: &Weak<SlotCore>| SlotCore {
            engine: engine.clone(),
            settings,
            shared: Arc::new(shared),
            fixed: [Hook::Batcher, Hook::Admission, Hook::Autoscaler, Hook::Feedback]
                .map(|hook| Seat::new(hook, Weak::clone(core))),
            step_loops: Mutex::default(),
            turn: Mutex::default(),
            ledger: Mutex::default(),
            shadow: ArcSwapOption::empty(),
            next_number: AtomicU64::new(1),
        });
        Slot { core }
    }

    /// Loads a policy and lets it take over at the next call of each hook; what
    /// serves now is asked to `save` for it. Blocks while it is read, compiled
    /// and started.
    ///
    /// # Errors
    /// [`LoadError`]; what served before still serves.
    pub fn load(&self, source: &Source) -> Result<Loaded, LoadError> {
        let code = load::load(&self.core.engine, source, &self.core.settings)?;
        let version = self.core.install(Arc::new(code), "replaced")?;
        Ok(Loaded::of(&version))
    }

    /// Puts the version before back, with the state that its successor saves.
    /// Blocks while it is started.
    ///
    /// # Errors
    /// [`SlotError::NothingBefore`], or why it does not start any more.
    pub fn roll_back(&self) -> Result<Loaded, SlotError> {
        let version = self.core.roll_back("rolled back by the operator")?;
        Ok(Loaded::of(&version))
    }

    /// Empties the place. False if it was empty.
    pub fn unload(&self) -> bool {
        self.core.unload("unloaded")
    }

    /// A planner for one step loop, with an instance of its own. Blocks while
    /// that is made.
    #[must_use]
    pub fn planner(&self) -> SlotPlanner {
        let seat = Seat::new(Hook::Scheduler, Arc::downgrade(&self.core));
        self.core.add_step_loop(&seat);
        SlotPlanner::new(Arc::clone(&self.core), seat)
    }

    /// Whether a version that has this hook serves.
    #[must_use]
    pub fn serves(&self, hook: Hook) -> bool {
        self.core.serving().is_some_and(|version| version.code.hooks.has(hook))
    }

    /// The longest that a call of this hook may take.
    #[must_use]
    pub fn deadline(&self, hook: Hook) -> std::time::Duration {
        self.core.settings.deadlines.of(hook)
    }

    /// The number of the serving version.
    #[must_use]
    pub fn version(&self) -> Option<u64> {
        self.core.serving().map(|version| version.number)
    }

    /// The digest of the file that the serving version came from.
    #[must_use]
    pub fn digest(&self) -> Option<Digest> {
        self.core.serving().map(|version| version.code.digest)
    }

    /// The place's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.core.settings.name
    }

    pub(crate) fn max_file_bytes(&self) -> u64 {
        self.core.settings.profile.caps().file_bytes
    }

    /// How large steps may be; `None` leaves it to the node. Blocks for the
    /// hook's deadline at most, or twice that when calls meet.
    #[must_use]
    pub fn tune(&self, load: &NodeLoad) -> Option<StepLimits> {
        let core = &*self.core;
        let asked = core.ask(Hook::Batcher, load.now_us, |exports, store| match &exports.batcher {
            Some(hook) => hook.call_tune(store, load.lend()),
            None => Ok(Ok(None)),
        });
        core.take(Hook::Batcher, asked, StepLimits::take)
    }

    /// Whether to serve a request; `None` leaves it to the node. Blocks as
    /// [`Slot::tune`] does.
    #[must_use]
    pub fn decide(&self, request: &AdmissionRequest, load: &NodeLoad) -> Option<Decision> {
        self.decide_if(request, load, |_| Ok(()))
    }

    /// As [`Slot::decide`]; what `check` finds wrong counts as a fault of the
    /// policy, and is not used.
    #[must_use]
    pub fn decide_if(
        &self,
        request: &AdmissionRequest,
        load: &NodeLoad,
        check: impl FnOnce(&Decision) -> Result<(), String>,
    ) -> Option<Decision> {
        let core = &*self.core;
        let pairs = request.attributes.iter().map(|(name, value)| (&**name, &**value));
        let attributes: Vec<(&str, &str)> = pairs.collect();
        let asked = core.ask(Hook::Admission, load.now_us, |exports, store| match &exports.admission {
            Some(hook) => hook.call_decide(store, request.lend(&attributes), load.lend()),
            None => Ok(Ok(None)),
        });
        core.take(Hook::Admission, asked, |decision| {
            let decision = Decision::take(decision)?;
            check(&decision).map(|()| decision)
        })
    }

    /// How many workers there should be; `None` leaves it to the node. Blocks
    /// as [`Slot::tune`] does.
    #[must_use]
    pub fn evaluate(&self, window: &Window, replicas: Replicas) -> Option<Target> {
        let core = &*self.core;
        let now_us = core.engine.now_us();
        let asked = core.ask(Hook::Autoscaler, now_us, |exports, store| match &exports.autoscaler {
            Some(hook) => hook.call_evaluate(store, window.lend(), replicas.lend()),
            None => Ok(Ok(None)),
        });
        core.take(Hook::Autoscaler, asked, |target| Ok(Target::take(target)))
    }

    /// Shows finished requests to every instance that wants to see them, in
    /// turn with its other calls. Not for a serving thread: each call may take
    /// until its deadline.
    pub fn observe(&self, completed: &Completed) {
        let core = &*self.core;
        let outcomes = completed.outcomes();
        for seat in core.seats().into_iter().filter(|seat| seat.observes()) {
            // A step loop's clock is its own; its instances keep to it.
            let clock_us = (seat.hook != Hook::Scheduler).then(|| core.engine.now_us());
            let asked = seat.ask(&core.engine, &core.settings, Hook::Feedback, clock_us, |exports, store| {
                match &exports.feedback {
                    Some(hook) => hook.call_observe(store, completed.lend(&outcomes)).map(|()| Ok(Some(()))),
                    None => Ok(Ok(None)),
                }
            });
            if let Some(Asked { version, rehearsal, .. }) = asked {
                seat.judge(&core.engine, Hook::Feedback, &version, rehearsal, Ok(()));
            }
        }
    }

    /// Runs a candidate beside the serving version on a thread of its own. It
    /// needs the scheduler's hook, is shown what the step loops are shown, as far as it keeps up, and its
    /// plans are compared with those in force. Replaces a candidate before.
    /// Blocks while it is compiled and started.
    ///
    /// # Errors
    /// [`LoadError`]; nothing changed.
    pub fn shadow(&self, source: &Source) -> Result<Loaded, LoadError> {
        let core = &self.core;
        let code = Arc::new(load::load(&core.engine, source, &core.settings)?);
        if !code.hooks.has(Hook::Scheduler) {
            return Err(LoadError::NoWantedHook);
        }
        let number = core.next_number();
        let shadow = Shadow::start(&core.engine, &core.settings, &core.shared, code, number)?;
        let loaded = Loaded::of(&shadow.version);
        core.shadow.store(Some(Arc::new(shadow)));
        Ok(loaded)
    }

    /// Ends a candidate. False if there was none.
    pub fn stop_shadow(&self) -> bool {
        self.core.shadow.swap(None).is_some()
    }

    /// Lets the candidate take over, as [`Slot::load`] would.
    ///
    /// # Errors
    /// [`SlotError::NoCandidate`], or why it does not start.
    pub fn promote_shadow(&self) -> Result<Loaded, SlotError> {
        let shadow = self.core.shadow.load_full().ok_or(SlotError::NoCandidate)?;
        let version = self.core.install(Arc::clone(&shadow.version.code), "replaced by its candidate")?;
        self.core.shadow.store(None);
        Ok(Loaded::of(&version))
    }

    /// Everything that operators may want to see. Never makes a serving thread wait.
    #[must_use]
    pub fn status(&self) -> SlotStatus {
        SlotStatus::of(&self.core)
    }
}

impl SlotCore {
    pub(crate) fn serving(&self) -> Option<Arc<Version>> {
        lock(&self.ledger).serving.clone()
    }

    pub(crate) fn next_number(&self) -> u64 {
        self.next_number.fetch_add(1, Ordering::Relaxed)
    }

    fn seat(&self, hook: Hook) -> &Arc<Seat> {
        let found = self.fixed.iter().find(|seat| seat.hook == hook);
        found.expect("every hook but the step loops' has a seat")
    }

    /// All seats that exist now.
    fn seats(&self) -> Vec<Arc<Seat>> {
        let mut step_loops = lock(&self.step_loops);
        step_loops.retain(|seat| seat.strong_count() > 0);
        self.fixed.iter().cloned().chain(step_loops.iter().filter_map(Weak::upgrade)).collect()
    }

    fn ask<T>(
        &self,
        hook: Hook,
        clock_us: u64,
        f: impl FnOnce(
            &crate::instance::Exports,
            &mut wasmtime::Store<crate::host::Host>,
        ) -> wasmtime::Result<crate::instance::Reply<T>>,
    ) -> Option<Asked<T>> {
        self.seat(hook).ask(&self.engine, &self.settings, hook, Some(clock_us), f)
    }

    /// Judges an answer; what is wrong or only rehearsed is thrown away.
    fn take<T, U>(
        &self,
        hook: Hook,
        asked: Option<Asked<T>>,
        take: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        let Asked { answer, version, rehearsal } = asked?;
        let (taken, judgement) = match take(answer) {
            Ok(taken) => (Some(taken), Ok(())),
            Err(why) => (None, Err(why)),
        };
        self.seat(hook).judge(&self.engine, hook, &version, rehearsal, judgement);
        taken.filter(|_| !rehearsal)
    }
}

/// Whether a seat of this hook is taken by a version with these. What only
/// observes has a seat of its own; else feedback goes to the deciding instances.
fn belongs(hook: Hook, hooks: HookSet) -> bool {
    hooks.has(hook) && (hook != Hook::Feedback || hooks == HookSet::NONE.with(Hook::Feedback))
}

/// A version's code together with what its instances share.
fn occupant_parts(core: &SlotCore, code: &Code, seat: &Seat) -> Result<Parts, LoadError> {
    let saved = seat.save(&core.engine, &core.settings);
    let start = || crate::seat::start(&core.engine, code, &core.shared, &core.settings, saved.as_deref());
    let live = start().map_err(LoadError::Start)?;
    // Without a spare it can serve; one is built as soon as there is room.
    let spare = start().ok();
    Ok(Parts { live, spare, saved })
}

/// What becomes an occupant once there is a version.
struct Parts {
    live: crate::instance::Instance,
    spare: Option<crate::instance::Instance>,
    saved: Option<Arc<[u8]>>,
}
