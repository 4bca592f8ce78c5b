//! What tests of kernels share.
#![allow(dead_code, reason = "each test file uses a part")]

use quern_shaders::Device;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Numbers between -1 and 1 that depend on the seed alone.
pub fn floats(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| random.random_range(-1.0..1.0)).collect()
}

/// The value of the axis of that name that fits a device.
pub fn subgroups(device: &Device) -> &'static str {
    if device.profile().subgroup_size.is_some() { "1" } else { "0" }
}
