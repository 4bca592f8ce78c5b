//! From sections of the configuration to what the crates take, and their
//! defaults, so that a default stands in one place only.

use std::path::PathBuf;

use quern_llama::LlamaConfig;
use quern_scheduler::SchedulerConfig;
use quern_scheduler::request::Pooling as Pooled;
use quern_wgsl::WgslConfig;

use super::{
    Admin, Backend, Bytes, Config, FlashAttention, Generation, Http, KvType, Limits, Llama, Policy, Pooling,
    Preemption, Scheduler, Span, Speculation, Split, Wgsl,
};
use crate::http::{RequestLimits, Settings, TlsFiles};
use crate::policies::Place;
use crate::serving::Defaults;

impl Default for Llama {
    fn default() -> Self {
        let c = LlamaConfig::default();
        Llama {
            max_sequence_len: c.max_sequence_len,
            kv_capacity: c.kv_capacity,
            max_sequences: c.max_sequences,
            max_rows: c.max_rows,
            micro_batch_rows: c.micro_batch_rows,
            max_outputs: c.max_outputs,
            threads: c.threads,
            threads_prefill: c.threads_prefill,
            gpu_layers: c.gpu_layers,
            split: match c.split {
                quern_llama::Split::None => Split::None,
                quern_llama::Split::Layer => Split::Layer,
                quern_llama::Split::Row => Split::Row,
            },
            main_gpu: c.main_gpu,
            tensor_split: c.tensor_split,
            kv_type: match c.kv_type {
                quern_llama::KvType::F32 => KvType::F32,
                quern_llama::KvType::F16 => KvType::F16,
                quern_llama::KvType::Q8_0 => KvType::Q8,
                quern_llama::KvType::Q4_0 => KvType::Q4,
            },
            flash_attention: match c.flash_attention {
                quern_llama::FlashAttention::Auto => FlashAttention::Auto,
                quern_llama::FlashAttention::On => FlashAttention::On,
                quern_llama::FlashAttention::Off => FlashAttention::Off,
            },
            mmap: c.mmap,
            mlock: c.mlock,
            repack: c.repack,
        }
    }
}

impl Llama {
    /// As the engine takes it.
    #[must_use]
    pub fn to_engine(&self) -> LlamaConfig {
        LlamaConfig {
            max_sequence_len: self.max_sequence_len,
            kv_capacity: self.kv_capacity,
            max_sequences: self.max_sequences,
            max_rows: self.max_rows,
            micro_batch_rows: self.micro_batch_rows,
            max_outputs: self.max_outputs,
            threads: self.threads,
            threads_prefill: self.threads_prefill,
            gpu_layers: self.gpu_layers,
            split: match self.split {
                Split::None => quern_llama::Split::None,
                Split::Layer => quern_llama::Split::Layer,
                Split::Row => quern_llama::Split::Row,
            },
            main_gpu: self.main_gpu,
            tensor_split: self.tensor_split.clone(),
            kv_type: self.kv_type.to_engine(),
            flash_attention: match self.flash_attention {
                FlashAttention::Auto => quern_llama::FlashAttention::Auto,
                FlashAttention::On => quern_llama::FlashAttention::On,
                FlashAttention::Off => quern_llama::FlashAttention::Off,
            },
            mmap: self.mmap,
            mlock: self.mlock,
            repack: self.repack,
        }
    }
}

impl KvType {
    /// As the engine takes it.
    #[must_use]
    pub fn to_engine(self) -> quern_llama::KvType {
        match self {
            KvType::F32 => quern_llama::KvType::F32,
            KvType::F16 => quern_llama::KvType::F16,
            KvType::Q8 => quern_llama::KvType::Q8_0,
            KvType::Q4 => quern_llama::KvType::Q4_0,
        }
    }
}

impl Default for Wgsl {
    fn default() -> Self {
        let c = WgslConfig::default();
        Wgsl {
            device: c.device.adapter,
            backend: match c.device.backend {
                quern_wgsl::Backend::Any => Backend::Any,
                quern_wgsl::Backend::Vulkan => Backend::Vulkan,
                quern_wgsl::Backend::Metal => Backend::Metal,
                quern_wgsl::Backend::Dx12 => Backend::Dx12,
            },
            max_sequence_len: c.max_sequence_len,
            kv_capacity: c.kv_capacity,
            max_sequences: c.max_sequences,
            max_rows: c.max_rows,
            max_outputs: c.max_outputs,
            adapter_slots: c.adapter_slots,
            sample_on_device: c.sample_on_device,
            cooperative_matrices: c.device.cooperative_matrices,
        }
    }
}

impl Wgsl {
    /// As the engine takes it.
    #[must_use]
    pub fn to_engine(&self) -> WgslConfig {
        let device = quern_wgsl::DeviceOptions {
            adapter: self.device.clone(),
            backend: match self.backend {
                Backend::Any => quern_wgsl::Backend::Any,
                Backend::Vulkan => quern_wgsl::Backend::Vulkan,
                Backend::Metal => quern_wgsl::Backend::Metal,
                Backend::Dx12 => quern_wgsl::Backend::Dx12,
            },
            cooperative_matrices: self.cooperative_matrices,
            ..quern_wgsl::DeviceOptions::default()
        };
        WgslConfig {
            device,
            max_sequence_len: self.max_sequence_len,
            kv_capacity: self.kv_capacity,
            max_sequences: self.max_sequences,
            max_rows: self.max_rows,
            max_outputs: self.max_outputs,
            adapter_slots: self.adapter_slots,
            sample_on_device: self.sample_on_device,
        }
    }
}

/// The key of what the engine does not accept.
pub(super) fn llama_key(error: &quern_llama::ConfigError) -> String {
    let field = match error {
        quern_llama::ConfigError::OutOfRange { key, .. } => key,
        quern_llama::ConfigError::QuantisedKvNeedsFlashAttention(_)
        | quern_llama::ConfigError::FlashAttentionRoundsF32 => "kv_type",
        quern_llama::ConfigError::BadTensorSplit => "tensor_split",
    };
    format!("engine.llama.{field}")
}

impl Config {
    /// The places for policies; a single empty one where none is configured, so
    /// that an operator can load a policy into a node that serves.
    #[must_use]
    pub fn places(&self) -> Vec<Place> {
        let none = [Policy::default()];
        let policies = if self.policy.is_empty() { &none[..] } else { &self.policy };
        // Each was checked when the configuration was read.
        policies.iter().filter_map(|policy| policy.to_place().ok()).collect()
    }
}

impl Default for Scheduler {
    fn default() -> Self {
        let c = SchedulerConfig::default();
        Scheduler {
            max_queued: c.max_queued,
            max_running: c.max_running,
            token_budget: c.token_budget,
            target_step: Span(c.target_step),
            wait_window: Span(c.wait_window),
            prefix_cache: c.prefix_cache,
            max_cached: c.max_cached,
            max_unshared: c.max_unshared,
            preemption: match c.preemption {
                quern_scheduler::Preemption::Recompute => Preemption::Recompute,
                quern_scheduler::Preemption::Host => Preemption::Host,
            },
            host_state_bytes: Bytes(c.host_state_bytes),
            speculation: Speculation::Off,
            draft_model: None,
            max_draft: c.max_draft,
            check_invariants: c.check_invariants,
        }
    }
}

impl Scheduler {
    /// As the scheduler takes it.
    #[must_use]
    pub fn to_scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            max_queued: self.max_queued,
            max_running: self.max_running,
            token_budget: self.token_budget,
            target_step: self.target_step.0,
            wait_window: self.wait_window.0,
            prefix_cache: self.prefix_cache,
            max_cached: self.max_cached,
            max_unshared: self.max_unshared,
            preemption: match self.preemption {
                Preemption::Recompute => quern_scheduler::Preemption::Recompute,
                Preemption::Host => quern_scheduler::Preemption::Host,
            },
            host_state_bytes: self.host_state_bytes.0,
            max_draft: self.max_draft,
            check_invariants: self.check_invariants,
            // Adapters have a section of their own.
            ..SchedulerConfig::default()
        }
    }
}

impl Default for Generation {
    fn default() -> Self {
        let d = Defaults::default();
        Generation {
            temperature: d.temperature,
            top_p: d.top_p,
            top_k: d.top_k,
            min_p: d.min_p,
            repetition_penalty: d.repetition_penalty,
            max_tokens: d.max_new,
            pooling: match d.pooling {
                Pooled::Last => Pooling::Last,
                Pooled::Mean => Pooling::Mean,
            },
        }
    }
}

impl Generation {
    /// As requests take it.
    #[must_use]
    pub fn to_defaults(&self, speculate: bool) -> Defaults {
        Defaults {
            temperature: self.temperature,
            top_p: self.top_p,
            top_k: self.top_k,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            max_new: self.max_tokens,
            pooling: match self.pooling {
                Pooling::Last => Pooled::Last,
                Pooling::Mean => Pooled::Mean,
            },
            speculate,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        let s = Settings::default();
        Http {
            listen: ([127, 0, 0, 1], 8080).into(),
            max_connections: s.max_connections,
            max_header_bytes: Bytes(s.max_header_bytes),
            max_body_bytes: Bytes(s.max_body_bytes),
            max_buffered_bytes: Bytes(s.max_buffered_bytes),
            header_timeout: Span(s.header_timeout),
            body_timeout: Span(s.body_timeout),
            idle_timeout: Span(s.idle_timeout),
            write_timeout: Span(s.write_timeout),
            server_header: s.server_header,
            policy_headers: s.policy_headers,
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Admin { listen: ([127, 0, 0, 1], 8081).into(), stuck_after: Span(Settings::default().stuck_after) }
    }
}

impl Default for Limits {
    fn default() -> Self {
        let l = RequestLimits::default();
        Limits {
            max_n: l.max_n,
            max_stop_strings: l.max_stop_strings,
            max_stop_bytes: Bytes(l.max_stop_bytes),
            max_logit_bias: l.max_logit_bias,
            max_prompts: l.max_prompts,
            max_texts: l.max_texts,
        }
    }
}

impl Config {
    /// As the listeners take it.
    #[must_use]
    pub fn to_http(&self) -> Settings {
        let (http, limits) = (&self.http, &self.limits);
        let tls: Option<(&PathBuf, &PathBuf)> = self.tls.cert.as_ref().zip(self.tls.key.as_ref());
        Settings {
            max_connections: http.max_connections,
            max_header_bytes: http.max_header_bytes.0,
            max_body_bytes: http.max_body_bytes.0,
            max_buffered_bytes: http.max_buffered_bytes.0,
            header_timeout: http.header_timeout.0,
            body_timeout: http.body_timeout.0,
            idle_timeout: http.idle_timeout.0,
            write_timeout: http.write_timeout.0,
            limits: RequestLimits {
                max_n: limits.max_n,
                max_stop_strings: limits.max_stop_strings,
                max_stop_bytes: limits.max_stop_bytes.0,
                max_logit_bias: limits.max_logit_bias,
                max_prompts: limits.max_prompts,
                max_texts: limits.max_texts,
            },
            tls: tls.map(|(cert, key)| TlsFiles { cert: cert.clone(), key: key.clone() }),
            api_keys_file: self.auth.api_keys_file.clone(),
            stuck_after: self.admin.stuck_after.0,
            server_header: http.server_header.clone(),
            policy_headers: http.policy_headers.clone(),
        }
    }
}
