//! Who runs next, for how many tokens, and what comes out.
//!
//! One thread owns an engine and its scheduler. Requests come in through a
//! [`Handle`], events go out through a [`request::Sink`] for each sequence, and
//! between them one loop runs: ingest, plan, run, sample, commit. The scheduler
//! knows token numbers; it must not know text, HTTP or an async runtime.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod constraint;
mod handle;
pub mod plan;
pub mod request;
pub mod sampler;

pub use handle::{Handle, Load, Permit, Refused};
