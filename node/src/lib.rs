//! The serving node.
//!
//! [`http`] speaks to clients, [`serving`] is what lies between it and the
//! scheduler.
#![deny(unsafe_code)]

pub mod http;
pub mod serving;
