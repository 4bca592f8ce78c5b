//! What the tests with a real model share.

use std::path::PathBuf;

const FILE: &str = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf";

/// The default model, if it is on this machine; says so loudly if it is not.
pub fn real_model() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("QUERN_TEST_MODEL") {
        return Some(path.into());
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    let path = cache.map(|cache| cache.join("quern/models").join(FILE));
    let path = path.filter(|path| path.exists());
    if path.is_none() {
        eprintln!("SKIPPED: {FILE} is not in the cache and QUERN_TEST_MODEL names no file");
    }
    path
}
