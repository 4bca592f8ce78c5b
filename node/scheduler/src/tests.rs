//! The scheduler on the fake engine: what it must do, and what must never be.

mod adapters;
mod cache;
mod harness;
mod hold;
mod offload;
mod property;
mod runs;
mod sampled;
mod score;
