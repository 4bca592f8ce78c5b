//! What tests of kernels share.
#![allow(dead_code, reason = "each test file uses a part")]

use half::{bf16, f16};
use quern_gguf::TensorType;
use quern_shaders::{Device, DeviceError, DeviceOptions};
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

/// Random rows as a file of that type has them: every bit of the numbers, and scales of a sensible size.
pub fn rows(kind: TensorType, seed: u64, num_rows: usize, num_columns: usize) -> Vec<u8> {
    let num_blocks = num_rows * num_columns / kind.block_elements() as usize;
    let mut bytes = vec![0; num_blocks * kind.block_bytes() as usize];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.fill(bytes.as_mut_slice());
    // Where f16 numbers stand that any bits may not be put into.
    let halves: &[usize] = match kind {
        TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 | TensorType::F16 => &[0],
        TensorType::Q4_1 | TensorType::Q5_1 | TensorType::Q4_K | TensorType::Q5_K => &[0, 2],
        TensorType::Q6_K => &[208],
        _ => &[],
    };
    for block in bytes.chunks_exact_mut(kind.block_bytes() as usize) {
        for &at in halves {
            let value = f16::from_f32(random.random_range(-0.1..0.1));
            block[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        let plain: f32 = random.random_range(-1.0..1.0);
        match kind {
            TensorType::F32 => block.copy_from_slice(&plain.to_le_bytes()),
            TensorType::BF16 => block.copy_from_slice(&bf16::from_f32(plain).to_le_bytes()),
            _ => {}
        }
    }
    bytes
}

/// As [`subgroups`], for kernels that need subgroups of eight threads.
pub fn share(device: &Device) -> &'static str {
    if device.profile().subgroup_size == Some(8) { "1" } else { "0" }
}

/// The value of the axis `TEXELS` that fits a device.
pub fn texels(device: &Device) -> &'static str {
    if device.profile().reads_texels { "1" } else { "0" }
}

/// A device that multiplies by cooperative matrices; `None`, and a word of it, where no adapter has them.
pub fn cooperative() -> Option<Device> {
    let options = DeviceOptions { cooperative_matrices: true, ..DeviceOptions::default() };
    match Device::open(&options) {
        Ok(device) => Some(device),
        Err(error @ DeviceError::NoAdapter { .. }) => {
            eprintln!("cooperative matrices are not tested: {error}");
            None
        }
        Err(error) => panic!("a device with cooperative matrices: {error}"),
    }
}
