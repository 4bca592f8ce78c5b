//! Which values clash, where their types cannot say it.

use super::{Config, EngineKind, Speculation};
use crate::adapters;

/// What was found, each with its key.
#[derive(Default)]
struct Wrong(Vec<(String, String)>);

impl Wrong {
    fn refuse(&mut self, when: bool, key: &str, why: &str) {
        if when {
            self.0.push((key.to_owned(), why.to_owned()));
        }
    }
}

impl Config {
    /// What types cannot say: which values clash. Each with its key.
    pub(super) fn check(&self) -> Vec<(String, String)> {
        let mut wrong = Wrong::default();
        wrong.refuse(self.model.name.is_empty(), "model.name", "it is empty");
        wrong.refuse(self.model.id.as_deref() == Some(""), "model.id", "it is empty");
        self.check_lists(&mut wrong);
        wrong.refuse(self.recording.goes_nowhere(), "recording.from_start", "recording.folder is not set");
        let sections = self.workers.check().into_iter().chain(self.autoscale.check());
        for (key, why) in sections.chain(self.adapters.check()) {
            wrong.refuse(true, key, why);
        }
        self.check_listeners(&mut wrong);
        self.check_speculation(&mut wrong);
        self.check_counts(&mut wrong);
        self.check_generation(&mut wrong);
        if let Err(e) = crate::logging::filter(&self.logging.level) {
            wrong.refuse(true, "logging.level", &e.to_string());
        }
        self.check_engines(&mut wrong);
        wrong.0
    }

    /// Policies, classifiers and adapters: what each says, and that no two have one name.
    fn check_lists(&self, wrong: &mut Wrong) {
        for (idx, policy) in self.policy.iter().enumerate() {
            if let Err((field, why)) = policy.to_place() {
                wrong.refuse(true, &format!("policy[{idx}].{field}"), &why);
            }
            let twice = self.policy[..idx].iter().any(|other| other.name() == policy.name());
            wrong.refuse(twice, &format!("policy[{idx}].name"), "another place has this name");
        }
        for (idx, classifier) in self.classifier.iter().enumerate() {
            if let Err((field, why)) = classifier.check() {
                wrong.refuse(true, &format!("classifier[{idx}].{field}"), &why);
            }
            let twice = self.classifier[..idx].iter().any(|other| other.name == classifier.name);
            wrong.refuse(twice, &format!("classifier[{idx}].name"), "another classifier has this name");
        }
        for (idx, adapter) in self.adapter.iter().enumerate() {
            let key = |field: &str| format!("adapter[{idx}].{field}");
            if let Err(why) = adapters::check_name(&adapter.name) {
                wrong.refuse(true, &key("name"), &why.to_string());
            }
            let twice = self.adapter[..idx].iter().any(|other| other.name == adapter.name);
            wrong.refuse(twice, &key("name"), "another adapter has this name");
            wrong.refuse(adapter.path.as_os_str().is_empty(), &key("path"), "it is empty");
        }
    }

    fn check_listeners(&self, wrong: &mut Wrong) {
        let same = self.http.listen == self.admin.listen && self.http.listen.port() != 0;
        wrong.refuse(same, "admin.listen", "it is the address of http.listen");
        let (cert, key) = (self.tls.cert.is_some(), self.tls.key.is_some());
        wrong.refuse(cert && !key, "tls.key", "tls.cert is set, and this is not");
        wrong.refuse(key && !cert, "tls.cert", "tls.key is set, and this is not");
    }

    fn check_speculation(&self, wrong: &mut Wrong) {
        let draft = self.scheduler.speculation == Speculation::Draft;
        let has_model = self.scheduler.draft_model.is_some();
        let missing = "speculation = \"draft\" needs a model to draft with";
        wrong.refuse(draft && !has_model, "scheduler.draft_model", missing);
        let llama = self.engine.kind == EngineKind::Llama;
        wrong.refuse(draft && !llama, "scheduler.speculation", "\"draft\" needs engine.kind = \"llama\"");
        let unused = "it is only used with speculation = \"draft\"";
        wrong.refuse(!draft && has_model, "scheduler.draft_model", unused);
    }

    fn check_counts(&self, wrong: &mut Wrong) {
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
            wrong.refuse(value == 0, key, "it must be at least 1");
        }
    }

    fn check_generation(&self, wrong: &mut Wrong) {
        let g = &self.generation;
        let is_temperature = (0.0..=2.0).contains(&g.temperature);
        wrong.refuse(!is_temperature, "generation.temperature", "it must be from 0 to 2");
        let is_top_p = g.top_p > 0.0 && g.top_p <= 1.0;
        wrong.refuse(!is_top_p, "generation.top_p", "it must be above 0 and at most 1");
        wrong.refuse(!(0.0..=1.0).contains(&g.min_p), "generation.min_p", "it must be from 0 to 1");
        let is_penalty = g.repetition_penalty > 0.0;
        wrong.refuse(!is_penalty, "generation.repetition_penalty", "it must be above 0");
        wrong.refuse(g.max_tokens == Some(0), "generation.max_tokens", "it must be at least 1");
    }

    fn check_engines(&self, wrong: &mut Wrong) {
        let kind = self.engine.kind;
        if let Err(e) = self.engine.llama.to_engine().validate() {
            wrong.refuse(kind == EngineKind::Llama, &super::convert::llama_key(&e), &e.to_string());
        }
        if let Err(e) = self.engine.wgsl.to_engine().validate() {
            wrong.refuse(kind == EngineKind::Wgsl, &format!("engine.wgsl.{}", e.key), &e.to_string());
        }
    }
}
