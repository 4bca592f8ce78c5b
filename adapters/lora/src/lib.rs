//! LoRA adapters and model files: reading, checking, converting, merging, quantising, pruning.
//!
//! [`Adapter::open`] reads a PEFT folder or a GGUF LoRA and refuses what cannot be served, with the
//! reason. [`rewrite`] streams a model (a GGUF file, or a folder of Hugging Face's) row by row through a
//! [`Change`] into a new GGUF file; merging and pruning are changes, quantising is the types it writes.
//!
//! Every file is taken as hostile: sizes are held against the file before anything is allocated, and data
//! is read with positioned reads, so a file that is cut or replaced while in use gives an error.
//!
//! This crate must not know engines, requests or HTTP, and must not link llama.cpp: block formats that it
//! cannot encode itself come from outside through [`Codec`].
//!
//! Where next: `adapter.rs` for what an adapter is, `rewrite.rs` for the pipeline, `cli/` for commands.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod adapter;
mod base;
mod calibration;
pub mod cli;
mod codec;
mod config;
mod convert;
mod decode;
mod error;
mod head;
mod hf;
mod importance;
mod lora_gguf;
mod merge;
mod mix;
mod names;
mod peft;
mod prune;
mod rewrite;
mod safe_file;
mod source;

pub use adapter::{Adapter, Format, Module, Task};
pub use base::{Mismatch, check_base};
pub use calibration::{Calibration, Fitted, fit_temperature};
pub use codec::{Codec, CodecError, Plain, check_numbers, check_sizes};
pub use config::PeftConfig;
pub use convert::{Converted, architecture_of, convert, convert_into};
pub use error::{AdapterError, Fault, PipelineError};
pub use head::{Head, labels_in, labels_of};
pub use importance::{Importance, Measured};
pub use merge::{Merge, Part};
pub use mix::{FileType, Shape, types_for};
pub use prune::{Prune, Scope};
pub use rewrite::{Change, Progress, RowChange, Summary, Types, Unchanged, rewrite};
pub use safe_file::{Layout, SafeFile};
pub use source::{Source, open_source};
