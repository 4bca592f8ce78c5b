//! The catalogue of models, and how they come to this machine.
//!
//! [`catalog`] says which models have a name, [`resolve`] turns a name or a path
//! into a file on this machine, and [`pull`] fetches what is missing. This crate
//! must not know engines or HTTP serving: it ends where a checked file lies in
//! the cache folder.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod cache;
mod catalog;
mod error;
mod part;
mod progress;
mod pull;
mod resolve;
mod source;

pub use cache::cache_dir;
pub use catalog::{Catalog, CatalogError, Entry, Source, catalog};
pub use error::{PullError, SourceError};
pub use progress::{Progress, Silent, Terminal};
pub use pull::{PullOptions, pull};
pub use resolve::{ResolveError, ResolvedModel, resolve};
