//! What can be chosen when a model is loaded, checked before a device sees it.

use quern_shaders::DeviceOptions;
use quern_shaders::pages::PAGE_TOKENS;

/// How a model is loaded and how large its buffers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WgslConfig {
    /// Which adapter to compute on.
    pub device: DeviceOptions,
    /// Longest sequence in tokens; 0 takes what the model was trained for. In either case it is at most
    /// [`WgslConfig::kv_capacity`].
    pub max_sequence_len: u32,
    /// Tokens of key-value state over all sequences, rounded up to whole pages of [`PAGE_TOKENS`].
    pub kv_capacity: u32,
    /// Sequences at once.
    pub max_sequences: u32,
    /// Rows in one step.
    pub max_rows: u32,
    /// Rows with an output in one step. Each costs two rows of logits in memory.
    pub max_outputs: u32,
    /// Adapters that can be loaded at once, with ranks up to 8, 16, 32 and 64. Each slot takes its room on
    /// the device from the start: 17.6 MB for rank 16 and a model of 0.5B.
    pub adapter_slots: [u32; 4],
    /// Draw tokens on the device, in the step that makes their logits. `None` draws there unless the device
    /// is a CPU: that has the logits at hand, and the scheduler's sampler does on it in a fraction of a
    /// millisecond what kernels made for thousands of threads take many for.
    pub sample_on_device: Option<bool>,
}

impl Default for WgslConfig {
    fn default() -> Self {
        Self {
            device: DeviceOptions::default(),
            max_sequence_len: 0,
            kv_capacity: 16_384,
            max_sequences: 64,
            max_rows: 512,
            max_outputs: 64,
            adapter_slots: [0, 4, 0, 0],
            sample_on_device: None,
        }
    }
}

/// Why a [`WgslConfig`] cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} is {value}, but must be from {min} to {max}")]
pub struct ConfigError {
    /// The field.
    pub key: &'static str,
    /// What it holds.
    pub value: u32,
    /// Smallest value allowed.
    pub min: u32,
    /// Largest value allowed.
    pub max: u32,
}

impl WgslConfig {
    /// Checks what can be checked without a model or a device.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_range = |key, value, min, max| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(ConfigError { key, value, min, max }) }
        };
        // A grid of workgroups has at most 65,535 in a direction; the rest keeps products below 2^32.
        in_range("kv_capacity", self.kv_capacity, PAGE_TOKENS, 1 << 26)?;
        in_range("max_sequence_len", self.max_sequence_len, 0, self.kv_capacity)?;
        in_range("max_sequences", self.max_sequences, 1, 1 << 16)?;
        in_range("max_rows", self.max_rows, 1, 1 << 15)?;
        in_range("max_outputs", self.max_outputs, 1, self.max_rows)?;
        self.adapter_slots.iter().try_for_each(|count| in_range("adapter_slots", *count, 0, 1024))
    }

    /// Pages for [`WgslConfig::kv_capacity`].
    pub(crate) fn num_pages(&self) -> u32 {
        self.kv_capacity.div_ceil(PAGE_TOKENS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut WgslConfig), expected: Result<(), &str>) {
        let mut config = WgslConfig::default();
        change(&mut config);
        assert_eq!(config.validate().map_err(|error| error.to_string()), expected.map_err(String::from));
    }

    #[test]
    fn fields_out_of_range_are_named() {
        check(|_| (), Ok(()));
        check(|c| c.kv_capacity = 31, Err("kv_capacity is 31, but must be from 32 to 67108864"));
        check(|c| c.max_outputs = 513, Err("max_outputs is 513, but must be from 1 to 512"));
        check(|c| c.adapter_slots[2] = 2000, Err("adapter_slots is 2000, but must be from 0 to 1024"));
        check(|c| c.max_sequence_len = 20_000, Err("max_sequence_len is 20000, but must be from 0 to 16384"));
    }

    #[test]
    fn room_is_whole_pages() {
        assert_eq!(WgslConfig { kv_capacity: 33, ..WgslConfig::default() }.num_pages(), 2);
    }
}
