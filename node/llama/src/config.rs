//! What can be chosen when a model is loaded, checked before llama.cpp sees it.
//!
//! Plain values: this file knows neither files nor C. The node's configuration
//! fills a [`LlamaConfig`]; [`LlamaConfig::validate`] refuses what llama.cpp
//! would abort the process for.

/// Sequences that llama.cpp can tell apart in one context.
pub const MAX_SEQUENCES: u32 = 256;

/// How a model is loaded and how large its buffers are.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig {
    /// Longest sequence in tokens; 0 takes what the model was trained for. In
    /// either case it is at most [`LlamaConfig::kv_capacity`].
    pub max_sequence_len: u32,
    /// Tokens of key-value state over all sequences, rounded up to a multiple of 256.
    pub kv_capacity: u32,
    /// Sequences at once, at most [`MAX_SEQUENCES`]. Each costs one row of
    /// logits in two buffers (1.2 MB with a vocabulary of 152,000).
    pub max_sequences: u32,
    /// Rows in one step.
    pub max_rows: u32,
    /// Rows that are computed at once; a larger step is cut into such pieces.
    /// The compute buffer grows with it.
    pub micro_batch_rows: u32,
    /// Rows with an output in one step. Each costs two rows of logits in
    /// memory, as a sequence does; the larger of both numbers counts.
    pub max_outputs: u32,
    /// Threads for a step of one row; 0 takes the number of physical cores.
    pub threads: u32,
    /// Threads for a step of several rows; 0 takes the number of physical cores.
    pub threads_prefill: u32,
    /// Layers on the GPU; `None` puts all there. Without a GPU plug-in all
    /// layers stay on the CPU.
    pub gpu_layers: Option<u32>,
    /// How a model is spread over several GPUs.
    pub split: Split,
    /// The GPU to use with [`Split::None`].
    pub main_gpu: u32,
    /// Share of each GPU, in any unit; empty divides by free memory.
    pub tensor_split: Vec<f32>,
    /// Format of keys and values.
    pub kv_type: KvType,
    /// Whether attention is computed in one fused operation.
    pub flash_attention: FlashAttention,
    /// Map the file instead of reading it.
    pub mmap: bool,
    /// Keep the model's pages in memory.
    pub mlock: bool,
    /// Rearrange weights for the CPU's matrix kernels while loading: K formats
    /// and Q4_0 are interleaved, and where no layer is on a GPU, Q5_0 is widened
    /// to Q8_0. No value changes. Rearranged weights live in memory of their own
    /// instead of the mapped file; widened ones take 1.5 times their room.
    pub repack: bool,
}

impl Default for LlamaConfig {
    fn default() -> Self {
        Self {
            max_sequence_len: 0,
            kv_capacity: 16_384,
            max_sequences: 64,
            max_rows: 512,
            micro_batch_rows: 256,
            max_outputs: 64,
            threads: 0,
            threads_prefill: 0,
            gpu_layers: None,
            split: Split::default(),
            main_gpu: 0,
            tensor_split: Vec::new(),
            kv_type: KvType::default(),
            flash_attention: FlashAttention::default(),
            mmap: true,
            mlock: false,
            repack: true,
        }
    }
}

/// How a model is spread over several GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Split {
    /// One GPU holds everything.
    None,
    /// Each GPU holds some of the layers.
    #[default]
    Layer,
    /// Each GPU holds some rows of every matrix.
    Row,
}

/// Format of keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvType {
    /// 32 bits a value: nothing is rounded, so that answers depend least on how rows were batched. Attention
    /// is not fused then, because llama.cpp's fused one rounds to 16 bits.
    F32,
    /// 16 bits a value.
    #[default]
    F16,
    /// 8.5 bits a value.
    Q8_0,
    /// 4.5 bits a value.
    Q4_0,
}

/// Whether attention is computed in one fused operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlashAttention {
    /// On where the device can, but not with keys and values in 32 bits.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Why a [`LlamaConfig`] cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A value outside its range.
    #[error("{key} is {value}, but must be from {min} to {max}")]
    OutOfRange {
        /// The field.
        key: &'static str,
        /// What it holds.
        value: u64,
        /// Smallest value allowed.
        min: u64,
        /// Largest value allowed.
        max: u64,
    },
    /// Quantised values can only be read by fused attention.
    #[error("kv_type {0:?} needs flash_attention, which is off")]
    QuantisedKvNeedsFlashAttention(KvType),
    /// Fused attention would round what shall not be rounded.
    #[error("kv_type F32 needs flash_attention to be auto or off: fused attention rounds to 16 bits")]
    FlashAttentionRoundsF32,
    /// A share that is negative or not a number, or shares that sum up to nothing.
    #[error("tensor_split must be finite shares of 0 or more that do not sum up to 0")]
    BadTensorSplit,
}

impl LlamaConfig {
    /// Checks what can be checked without a model or a device.
    ///
    /// # Errors
    /// The first field that cannot be used.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let in_range = |key, value: u32, min: u32, max: u32| {
            if (min..=max).contains(&value) {
                return Ok(());
            }
            Err(ConfigError::OutOfRange { key, value: value.into(), min: min.into(), max: max.into() })
        };
        // The upper bounds keep every product below what 32-bit counts in C can hold.
        in_range("kv_capacity", self.kv_capacity, 256, 1 << 26)?;
        in_range("max_sequence_len", self.max_sequence_len, 0, self.kv_capacity)?;
        in_range("max_sequences", self.max_sequences, 1, MAX_SEQUENCES)?;
        in_range("max_rows", self.max_rows, 1, 1 << 16)?;
        in_range("micro_batch_rows", self.micro_batch_rows, 1, self.max_rows)?;
        in_range("max_outputs", self.max_outputs, 1, self.max_rows)?;
        in_range("threads", self.threads, 0, 512)?;
        in_range("threads_prefill", self.threads_prefill, 0, 512)?;
        in_range("gpu_layers", self.gpu_layers.unwrap_or(0), 0, 1 << 16)?;
        in_range("main_gpu", self.main_gpu, 0, 255)?;
        let quantised = matches!(self.kv_type, KvType::Q8_0 | KvType::Q4_0);
        if quantised && self.flash_attention == FlashAttention::Off {
            return Err(ConfigError::QuantisedKvNeedsFlashAttention(self.kv_type));
        }
        if self.kv_type == KvType::F32 && self.flash_attention == FlashAttention::On {
            return Err(ConfigError::FlashAttentionRoundsF32);
        }
        let shares = &self.tensor_split;
        let usable = shares.iter().all(|share| share.is_finite() && *share >= 0.0);
        if !usable || (!shares.is_empty() && shares.iter().sum::<f32>() <= 0.0) {
            return Err(ConfigError::BadTensorSplit);
        }
        Ok(())
    }
}

/// Cores that this process may use, counting threads of one core once.
#[must_use]
pub fn physical_cores() -> u32 {
    let usable = std::thread::available_parallelism().map_or(1, usize::from);
    let siblings = (0..usable).map_while(|cpu| {
        std::fs::read_to_string(format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"))
            .ok()
    });
    let cores = siblings.collect::<std::collections::BTreeSet<_>>().len();
    let cores = if cores == 0 { usable } else { cores };
    u32::try_from(cores).unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(change: impl FnOnce(&mut LlamaConfig), expected: Result<(), &str>) {
        let mut config = LlamaConfig::default();
        change(&mut config);
        let message = config.validate().map_err(|error| error.to_string());
        assert_eq!(message, expected.map_err(String::from));
    }

    #[test]
    fn refuses_what_llama_cpp_would_abort_for() {
        check(|_| (), Ok(()));
        check(|c| c.max_sequences = 257, Err("max_sequences is 257, but must be from 1 to 256"));
        check(|c| c.micro_batch_rows = 513, Err("micro_batch_rows is 513, but must be from 1 to 512"));
        check(|c| c.max_rows = 0, Err("max_rows is 0, but must be from 1 to 65536"));
        check(|c| c.max_sequence_len = 20_000, Err("max_sequence_len is 20000, but must be from 0 to 16384"));
        check(
            |c| c.tensor_split = vec![1.0, -1.0],
            Err("tensor_split must be finite shares of 0 or more that do not sum up to 0"),
        );
        check(
            |c| c.tensor_split = vec![0.0],
            Err("tensor_split must be finite shares of 0 or more that do not sum up to 0"),
        );
        check(|c| c.tensor_split = vec![3.0, 1.0], Ok(()));
    }

    #[test]
    fn quantised_values_need_flash_attention() {
        let quantise =
            |c: &mut LlamaConfig| (c.kv_type, c.flash_attention) = (KvType::Q8_0, FlashAttention::Off);
        check(quantise, Err("kv_type Q8_0 needs flash_attention, which is off"));
        check(|c| (c.kv_type, c.flash_attention) = (KvType::F32, FlashAttention::Off), Ok(()));
        check(|c| c.kv_type = KvType::F32, Ok(()));
        let fused = |c: &mut LlamaConfig| (c.kv_type, c.flash_attention) = (KvType::F32, FlashAttention::On);
        check(
            fused,
            Err("kv_type F32 needs flash_attention to be auto or off: fused attention rounds to 16 bits"),
        );
        check(|c| c.kv_type = KvType::Q4_0, Ok(()));
    }

    #[test]
    fn there_is_a_core() {
        assert!(physical_cores() >= 1);
    }
}
