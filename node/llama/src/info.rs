//! What a loaded model is and what it takes, for logs, metrics and endpoints.

use crate::ffi::{self, Session};
use crate::log::Captured;

/// A loaded model and the resources that it takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// The name in the file's metadata, where it has one.
    pub name: Option<String>,
    /// The architecture in the file's metadata, such as `qwen2`.
    pub architecture: String,
    /// Kind, size and format in a few words, such as `qwen2 1B Q4_K - Medium`.
    pub description: String,
    /// Weights.
    pub num_params: u64,
    /// Bytes of all tensors.
    pub size_bytes: u64,
    /// Layers.
    pub num_layers: u32,
    /// Longest sequence that the model was trained for, in tokens.
    pub trained_context: u32,
    /// Length of a hidden state.
    pub hidden_size: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Devices that ggml found; a GPU among them is used as the configuration says.
    pub devices: Vec<Device>,
    /// Version of llama.cpp.
    pub llama_cpp_version: String,
    /// Instruction sets and options of the loaded backends.
    pub system_info: String,
    /// Bytes by which the tensors in memory are larger than in the file, since
    /// [`LlamaConfig::repack`](crate::LlamaConfig::repack) widened some.
    pub widened_bytes: u64,
    /// Bytes of keys and values, as llama.cpp reported them.
    pub kv_bytes: Option<u64>,
    /// Bytes for intermediate results, as llama.cpp reported them.
    pub compute_bytes: Option<u64>,
    /// Bytes for outputs, as llama.cpp reported them.
    pub output_bytes: Option<u64>,
    /// Threads for a step of one row.
    pub threads: u32,
    /// Threads for a step of several rows.
    pub threads_prefill: u32,
}

/// A device that ggml can compute on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// ggml's name, such as `CUDA0` or `CPU`.
    pub name: String,
    /// The maker's name.
    pub description: String,
    /// Whether it is a GPU.
    pub is_gpu: bool,
    /// Memory that was free when the model had been loaded, in bytes.
    pub free_bytes: u64,
    /// All of its memory, in bytes.
    pub total_bytes: u64,
}

impl ModelInfo {
    /// Reads everything once, after the context of `session` has been created
    /// with `log` as the lines that llama.cpp wrote.
    pub(crate) fn read(session: &Session, log: &Captured, threads: (u32, u32), widened_bytes: u64) -> Self {
        let model = session.model();
        let device = |(name, description, is_gpu, free_bytes, total_bytes)| Device {
            name,
            description,
            is_gpu,
            free_bytes,
            total_bytes,
        };
        Self {
            name: model.metadata("general.name").filter(|name| !name.is_empty()),
            architecture: model.metadata("general.architecture").unwrap_or_default(),
            description: model.description(),
            num_params: model.num_params(),
            size_bytes: model.size_bytes(),
            num_layers: model.num_layers(),
            trained_context: model.trained_context(),
            hidden_size: model.hidden_size(),
            vocab_size: model.vocab_size(),
            devices: ffi::devices().into_iter().map(device).collect(),
            llama_cpp_version: ffi::version(),
            system_info: ffi::system_info(),
            widened_bytes,
            kv_bytes: log.sum_mib("KV buffer size"),
            compute_bytes: log.sum_mib("compute buffer size"),
            output_bytes: log.sum_mib("output buffer size"),
            threads: threads.0,
            threads_prefill: threads.1,
        }
    }
}
