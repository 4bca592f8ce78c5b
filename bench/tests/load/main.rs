//! Drives real servers on real sockets, good ones and every kind of bad one.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod cold_start;
mod connections;
mod faults;
mod files;
mod open;
mod server;
