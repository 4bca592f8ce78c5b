//! The serving node: configuration, HTTP front end, and how the parts are put
//! together.
//!
//! Start with [`app`], which builds a node from a configuration and runs it.
//! Only [`http`] knows hyper, JSON and status codes; [`serving`] lies between an
//! endpoint and the scheduler. [`record`] is a client of a node, and no part of one;
//! [`eval`] judges models and [`profile`] times their operations, both offline.
#![deny(unsafe_code)]

pub mod adapters;
pub mod app;
pub mod cli;
pub mod config;
pub mod eval;
pub mod http;
pub mod logging;
pub mod metrics;
pub mod policies;
pub mod profile;
pub mod record;
pub mod serving;
pub mod workers;
