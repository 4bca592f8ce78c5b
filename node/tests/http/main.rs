//! The front end through real sockets, on the fake engine and a tiny vocabulary.
#![allow(clippy::unwrap_used, reason = "a test may panic where it stands")]

mod adapters;
mod admin;
mod chat;
mod classify;
mod completions;
mod embeddings;
mod golden;
mod hostile;
mod life;
mod mutated;
mod peft;
mod refusals;
mod streams;
mod structured;
mod support;
mod tls;
mod workers;
