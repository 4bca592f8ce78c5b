//! Which values clash, where their types cannot say it.

use super::{Config, EngineKind, Speculation};
use crate::adapters;

impl Config {
    /// What types cannot say: which values clash. Each with its key.
    pub(super) fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Vec::new();
        let mut refuse = |when: bool, key: &str, why: &str| {
            if when {
                wrong.push((key.to_owned(), why.to_owned()));
            }
        };
        refuse(self.model.name.is_empty(), "model.name", "it is empty");
        for (idx, policy) in self.policy.iter().enumerate() {
            if let Err((field, why)) = policy.to_place() {
                refuse(true, &format!("policy[{idx}].{field}"), &why);
            }
            let twice = self.policy[..idx].iter().any(|other| other.name() == policy.name());
            refuse(twice, &format!("policy[{idx}].name"), "another place has this name");
        }
        for (idx, classifier) in self.classifier.iter().enumerate() {
            if let Err((field, why)) = classifier.check() {
                refuse(true, &format!("classifier[{idx}].{field}"), &why);
            }
            let twice = self.classifier[..idx].iter().any(|other| other.name == classifier.name);
            refuse(twice, &format!("classifier[{idx}].name"), "another classifier has this name");
        }
        refuse(self.recording.goes_nowhere(), "recording.from_start", "recording.folder is not set");
        for (idx, adapter) in self.adapter.iter().enumerate() {
            let key = |field: &str| format!("adapter[{idx}].{field}");
            if let Err(why) = adapters::check_name(&adapter.name) {
                refuse(true, &key("name"), &why.to_string());
            }
            let twice = self.adapter[..idx].iter().any(|other| other.name == adapter.name);
            refuse(twice, &key("name"), "another adapter has this name");
            refuse(adapter.path.as_os_str().is_empty(), &key("path"), "it is empty");
        }
        let sections = self.workers.check().into_iter().chain(self.autoscale.check());
        for (key, why) in sections.chain(self.adapters.check()) {
            refuse(true, key, why);
        }
        refuse(self.model.id.as_deref() == Some(""), "model.id", "it is empty");
        let wgsl = self.engine.kind == EngineKind::Wgsl;
        let same = self.http.listen == self.admin.listen && self.http.listen.port() != 0;
        refuse(same, "admin.listen", "it is the address of http.listen");
        refuse(
            self.tls.cert.is_some() && self.tls.key.is_none(),
            "tls.key",
            "tls.cert is set, and this is not",
        );
        refuse(
            self.tls.key.is_some() && self.tls.cert.is_none(),
            "tls.cert",
            "tls.key is set, and this is not",
        );
        let draft = self.scheduler.speculation == Speculation::Draft;
        let missing = "speculation = \"draft\" needs a model to draft with";
        refuse(draft && self.scheduler.draft_model.is_none(), "scheduler.draft_model", missing);
        let llama = self.engine.kind == EngineKind::Llama;
        refuse(draft && !llama, "scheduler.speculation", "\"draft\" needs engine.kind = \"llama\"");
        let unused = "it is only used with speculation = \"draft\"";
        refuse(!draft && self.scheduler.draft_model.is_some(), "scheduler.draft_model", unused);
        for (key, value) in [
            ("scheduler.max_queued", self.scheduler.max_queued),
            ("scheduler.max_running", self.scheduler.max_running),
            ("scheduler.token_budget", self.scheduler.token_budget),
            ("http.max_connections", self.http.max_connections),
            ("http.max_header_bytes", self.http.max_header_bytes.0),
            ("http.max_body_bytes", self.http.max_body_bytes.0),
            ("limits.max_n", self.limits.max_n as usize),
            ("limits.max_prompts", self.limits.max_prompts),
            ("limits.max_texts", self.limits.max_texts),
            ("engine.fake.kv_capacity", self.engine.fake.kv_capacity),
            ("engine.fake.max_sequences", self.engine.fake.max_sequences),
            ("engine.fake.max_sequence_len", self.engine.fake.max_sequence_len),
            ("engine.fake.max_rows", self.engine.fake.max_rows),
        ] {
            refuse(value == 0, key, "it must be at least 1");
        }
        let g = &self.generation;
        refuse(!(0.0..=2.0).contains(&g.temperature), "generation.temperature", "it must be from 0 to 2");
        refuse(!(g.top_p > 0.0 && g.top_p <= 1.0), "generation.top_p", "it must be above 0 and at most 1");
        refuse(!(0.0..=1.0).contains(&g.min_p), "generation.min_p", "it must be from 0 to 1");
        refuse(
            g.repetition_penalty.is_nan() || g.repetition_penalty <= 0.0,
            "generation.repetition_penalty",
            "it must be above 0",
        );
        refuse(g.max_tokens == Some(0), "generation.max_tokens", "it must be at least 1");
        if let Err(e) = crate::logging::filter(&self.logging.level) {
            refuse(true, "logging.level", &e.to_string());
        }
        if let Err(e) = self.engine.llama.to_engine().validate() {
            refuse(self.engine.kind == EngineKind::Llama, &super::convert::llama_key(&e), &e.to_string());
        }
        if let Err(e) = self.engine.wgsl.to_engine().validate() {
            refuse(wgsl, &format!("engine.wgsl.{}", e.key), &e.to_string());
        }
        wrong
    }
}
