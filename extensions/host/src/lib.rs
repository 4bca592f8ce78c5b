//! The host of policies: sandboxed WebAssembly components that the node asks at
//! every step, request and interval.
//!
//! Read `slot.rs` first: a [`Slot`] is a place where a policy serves. It loads
//! versions (`load.rs`), seats an instance for each step loop and each other
//! hook (`seat.rs`), and swaps them between two calls (`slot/change.rs`). A
//! call goes from `planner.rs` or `hooks.rs` through the seat into an instance
//! (`instance.rs`), which may ask back for little (`host.rs`). What becomes of it
//! is a [`Verdict`]; faults add up in `health.rs`.
//!
//! Whatever a policy does, its caller gets an answer or `None` within the hook's
//! deadline. This crate must not know HTTP, text or an async runtime; loading is
//! a function that blocks, to be called from a thread that may.
#![deny(missing_docs)]

mod aot;
mod bindings;
mod engine;
mod health;
mod hooks;
mod host;
pub mod inspect;
mod instance;
mod latency;
mod load;
mod planner;
mod seat;
mod settings;
mod shadow;
mod shared;
mod slot;
pub mod status;
mod ticker;
pub mod trust;
mod verdict;
mod version;
pub mod watch;
mod worker;

pub use engine::{EngineError, PolicyEngine};
pub use hooks::{
    AdmissionRequest, Completed, Decision, NodeLoad, Outcome, Reason, Replicas, StepLimits, Target, Window,
};
pub use inspect::componentize;
pub use load::{LoadError, Source};
pub use planner::SlotPlanner;
pub use settings::{Cache, Deadlines, EngineSettings, Profile, Quarantine, Settings, Trial, Trust};
pub use slot::{Slot, SlotError};
pub use verdict::{Fault, Hook, HookSet, Verdict};

/// Locks, even after a panic elsewhere: what is behind our locks is whole
/// between two statements.
fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
