//! The contract as Rust types: the only place that reads the WIT package.
//!
//! Lists are lent to guests, not copied first. Host imports answer with values
//! of the contract and never with a host error, since that would be a trap.
#![allow(missing_docs)]

wasmtime::component::bindgen!({
    path: "../wit",
    world: "suite",
    ownership: Borrowing { duplicate_if_necessary: true },
});
