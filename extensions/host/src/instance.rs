//! One instance of a policy in a store of its own: how it is made, called and
//! told apart from the broken.
//!
//! A store is never used again after an error from the engine: whoever gets a
//! [`Fault`] from here drops the instance.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::InstancePre;
use wasmtime::{Store, Trap, WasmBacktrace};

use crate::bindings::exports::quern::policy::{
    admission, autoscaler, batcher, feedback, lifecycle, scheduler,
};
use crate::engine::PolicyEngine;
use crate::host::Host;
use crate::load::Code;
use crate::settings::Settings;
use crate::shared::Shared;
use crate::ticker::ticks;
use crate::verdict::{Fault, Hook, HookSet, Verdict, cut};

/// Longest name and version that are kept.
const MAX_NAME: usize = 64;

/// Functions that are named of those that were on the stack.
const MAX_FRAMES: usize = 4;

/// Where a component keeps its functions.
pub(crate) struct Indices {
    lifecycle: lifecycle::GuestIndices,
    scheduler: Option<scheduler::GuestIndices>,
    batcher: Option<batcher::GuestIndices>,
    admission: Option<admission::GuestIndices>,
    autoscaler: Option<autoscaler::GuestIndices>,
    feedback: Option<feedback::GuestIndices>,
}

impl Indices {
    /// # Errors
    /// When the component lacks a function of one of the `hooks`.
    pub(crate) fn new(pre: &InstancePre<Host>, hooks: HookSet) -> wasmtime::Result<Indices> {
        let has = |hook| hooks.has(hook);
        Ok(Indices {
            lifecycle: lifecycle::GuestIndices::new(pre)?,
            scheduler: has(Hook::Scheduler).then(|| scheduler::GuestIndices::new(pre)).transpose()?,
            batcher: has(Hook::Batcher).then(|| batcher::GuestIndices::new(pre)).transpose()?,
            admission: has(Hook::Admission).then(|| admission::GuestIndices::new(pre)).transpose()?,
            autoscaler: has(Hook::Autoscaler).then(|| autoscaler::GuestIndices::new(pre)).transpose()?,
            feedback: has(Hook::Feedback).then(|| feedback::GuestIndices::new(pre)).transpose()?,
        })
    }
}

/// An instance's functions; those of hooks that it does not serve are absent.
pub(crate) struct Exports {
    lifecycle: lifecycle::Guest,
    pub(crate) scheduler: Option<scheduler::Guest>,
    pub(crate) batcher: Option<batcher::Guest>,
    pub(crate) admission: Option<admission::Guest>,
    pub(crate) autoscaler: Option<autoscaler::Guest>,
    pub(crate) feedback: Option<feedback::Guest>,
}

/// What a guest answers: its answer, no opinion, or an error of its own.
pub(crate) type Reply<T> = Result<Option<T>, String>;

/// See the module's text.
pub(crate) struct Instance {
    store: Store<Host>,
    exports: Exports,
    pub(crate) name: String,
    pub(crate) version: String,
}

impl Instance {
    /// Makes an instance and calls `init`, within the deadline of `init`.
    ///
    /// # Errors
    /// [`Fault`] of whichever step failed.
    pub(crate) fn start(
        engine: &PolicyEngine,
        code: &Code,
        shared: &Arc<Shared>,
        settings: &Settings,
        saved: Option<&[u8]>,
    ) -> Result<Instance, Fault> {
        let caps = settings.profile.caps();
        let host = Host::new(&caps, Arc::clone(shared), Arc::clone(&code.memory_peak));
        let mut store = Store::new(engine.wasm(), host);
        store.limiter(|host| &mut host.limits);
        store.set_hostcall_fuel(caps.hostcall_bytes);
        store.set_max_component_handles(caps.handles);
        store.epoch_deadline_trap();
        store.set_epoch_deadline(ticks(settings.deadlines.init));
        store.data_mut().begin_call(engine.now_us());
        refuel(engine, &mut store);

        let _in_flight = engine.in_flight();
        let made = code.pre.instantiate(&mut store);
        let instance = made.map_err(|error| fault_of(&error))?;
        let exports = exports(&mut store, &code.indices, &instance).map_err(|error| fault_of(&error))?;
        let info = exports.lifecycle.call_init(&mut store, saved);
        let info = info.map_err(|error| fault_of(&error))?;
        let lifecycle::Info { mut name, mut version } =
            info.map_err(|reason| Fault::new(Verdict::Error, reason))?;
        cut(&mut name, MAX_NAME);
        cut(&mut version, MAX_NAME);
        store.data_mut().end_init();
        Ok(Instance { store, exports, name, version })
    }

    /// Makes one call, which is stopped at its deadline.
    ///
    /// # Errors
    /// [`Fault`]; the instance must not be used again.
    pub(crate) fn call<T>(
        &mut self,
        engine: &PolicyEngine,
        limit: Duration,
        clock_us: Option<u64>,
        f: impl FnOnce(&Exports, &mut Store<Host>) -> wasmtime::Result<Reply<T>>,
    ) -> Result<Reply<T>, Fault> {
        let clock_us = clock_us.unwrap_or(self.store.data().clock_us());
        self.store.data_mut().begin_call(clock_us);
        self.store.set_epoch_deadline(ticks(limit));
        refuel(engine, &mut self.store);
        let _in_flight = engine.in_flight();
        f(&self.exports, &mut self.store).map_err(|error| fault_of(&error))
    }

    /// Instructions of the last call, where the engine counts them.
    pub(crate) fn instructions(&self) -> Option<u64> {
        self.store.get_fuel().ok().map(|left| u64::MAX - left)
    }

    /// What the next instance should know. It is no longer than what one call
    /// may hand over to the host.
    ///
    /// # Errors
    /// As for [`Instance::call`].
    pub(crate) fn save(&mut self, engine: &PolicyEngine, limit: Duration) -> Result<Vec<u8>, Fault> {
        let reply = self.call(engine, limit, None, |exports, store| {
            exports.lifecycle.call_save(store).map(|saved| Ok(Some(saved)))
        })?;
        Ok(reply.ok().flatten().unwrap_or_default())
    }
}

/// Fuel only counts here; deadlines are what stops a guest.
fn refuel(engine: &PolicyEngine, store: &mut Store<Host>) {
    if engine.counts() {
        store.set_fuel(u64::MAX).expect("an engine that counts takes fuel");
    }
}

fn exports(
    store: &mut Store<Host>,
    indices: &Indices,
    instance: &wasmtime::component::Instance,
) -> wasmtime::Result<Exports> {
    let mut store = store;
    Ok(Exports {
        lifecycle: indices.lifecycle.load(&mut store, instance)?,
        scheduler: indices.scheduler.as_ref().map(|hook| hook.load(&mut store, instance)).transpose()?,
        batcher: indices.batcher.as_ref().map(|hook| hook.load(&mut store, instance)).transpose()?,
        admission: indices.admission.as_ref().map(|hook| hook.load(&mut store, instance)).transpose()?,
        autoscaler: indices.autoscaler.as_ref().map(|hook| hook.load(&mut store, instance)).transpose()?,
        feedback: indices.feedback.as_ref().map(|hook| hook.load(&mut store, instance)).transpose()?,
    })
}

/// Tells what missed its deadline from what broke, and says where.
fn fault_of(error: &wasmtime::Error) -> Fault {
    let verdict = match error.downcast_ref::<Trap>() {
        Some(Trap::Interrupt) => return Fault::new(Verdict::Late, "it missed its deadline".to_owned()),
        _ => Verdict::Trapped,
    };
    let mut reason = error.root_cause().to_string();
    let frames = error.downcast_ref::<WasmBacktrace>().map_or(&[][..], WasmBacktrace::frames);
    for name in frames.iter().filter_map(|frame| frame.func_name()).take(MAX_FRAMES) {
        reason.push_str(" < ");
        reason.push_str(name);
    }
    Fault::new(verdict, reason)
}
