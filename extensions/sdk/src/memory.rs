//! What guests allocate from.
//!
//! A step's columns come as some twenty lists, and each is allocated and freed in
//! every call; so what an allocation costs is a good part of what a call costs.

use talc::wasm::{WasmDynamicTalc, new_wasm_dynamic_allocator};

#[global_allocator]
static ALLOCATOR: WasmDynamicTalc = new_wasm_dynamic_allocator();
