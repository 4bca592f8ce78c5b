//! The program as its users meet it: words, exit codes, signals, and a node that
//! serves over real sockets. The engine is the fake one, on a tiny random model,
//! but where a test says otherwise.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, helpers included")]

mod adapters;
mod classify;
mod eval;
mod eval_real;
mod killed;
mod life;
mod node;
mod portable;
mod profile;
mod recorded;
mod speculation;
mod usage;

#[path = "../http/peft.rs"]
#[allow(dead_code, reason = "written for the front end's tests, which use more of it")]
mod peft;

#[path = "../../models/tests/hub/mod.rs"]
#[allow(dead_code, reason = "written for the tests of quern-models, which use more of it")]
mod hub;
