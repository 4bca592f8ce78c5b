//! Policies in a node: real guests and made-up ones, asked by the real scheduler
//! and the real front end through real sockets, on the fake engine.
#![allow(clippy::unwrap_used, reason = "a test may panic where it stands")]

mod admission;
mod batcher;
mod feedback;
mod hostile;
mod load;
mod recording;
mod scheduler;
mod setting;
mod swap;

#[path = "../http/support.rs"]
#[allow(dead_code, reason = "written for the front end's tests, which use more of it")]
mod support;

#[path = "../http/peft.rs"]
#[allow(dead_code, reason = "written for the front end's tests, which use more of it")]
mod peft;

#[path = "../../../extensions/host/tests/common/mod.rs"]
mod guests;
