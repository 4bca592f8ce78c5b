//! What a policy for a Quern node is written with.
//!
//! A policy is one type in one file: it implements [`Policy`] and the hooks it
//! has, and [`export_policy!`] makes a WebAssembly guest of it. Natively the same
//! crate is an ordinary library, and the node's side is an in-memory stand-in
//! ([`stand_in`]), so that policies are tested with `cargo test`.
//!
//! ```
//! use quern_policy_sdk::prelude::*;
//!
//! /// Starts whoever has the shortest prompt.
//! #[derive(Default)]
//! struct Shortest {
//!     turns: AdapterTurns,
//! }
//!
//! impl Policy for Shortest {}
//!
//! impl SchedulerPolicy for Shortest {
//!     fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
//!         Ok(Some(self.turns.plan(step, waiting, running, |plan| {
//!             // Those who run and those who wait, the smallest key first.
//!             plan.serve(|row| running.prompt_left[row], |row| waiting.prompt_left[row]);
//!         })))
//!     }
//! }
//!
//! export_policy!(Shortest: scheduler);
//! ```
//!
//! The contract that this wraps is `extensions/wit/policy.wit`. This crate knows
//! tables and plans; it must not know engines, text or the node's own types.
//! `guest.rs` holds all that is generated, and exists only on wasm32.
#![deny(missing_docs)]

mod export;
#[cfg(target_arch = "wasm32")]
#[doc(hidden)]
pub mod guest;
mod hooks;
pub mod host;
pub mod plan;
pub mod settings;
#[cfg(not(target_arch = "wasm32"))]
pub mod stand_in;
pub mod tables;
pub mod wire;

/// What nearly every policy uses.
pub mod prelude {
    pub use crate::export_policy;
    pub use crate::hooks::{
        AdmissionPolicy, Answer, AutoscalerPolicy, BatcherPolicy, FeedbackPolicy, Policy, SchedulerPolicy,
    };
    pub use crate::host::{clock, config, kv, log, metrics};
    pub use crate::plan::{AdapterTurns, Arrivals, PlanBuilder, Start};
    pub use crate::settings::Settings;
    pub use crate::tables::{
        Completed, Decision, Grant, Limits, NO_DEADLINE, NodeLoad, Outcome, Plan, Reason, Refusal, Replicas,
        Request, Running, Step, Target, Waiting, Window,
    };
}

pub use hooks::{
    AdmissionPolicy, Answer, AutoscalerPolicy, BatcherPolicy, FeedbackPolicy, Policy, SchedulerPolicy,
};
