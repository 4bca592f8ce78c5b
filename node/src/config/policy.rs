//! `[[policy]]`: places where policies serve.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quern_extensions::{Deadlines, Hook, HookSet, Profile, Settings, Trust};
use serde::{Deserialize, Serialize};

use super::Span;
use crate::policies::Place;

/// `[[policy]]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// The place's name, in logs, metrics and for operators; the file's stem where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What serves there from the start; empty until an operator loads something where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Load the file again when it changes.
    pub watch: bool,
    /// Hooks that may be asked here; all that the policy has where empty.
    pub hooks: Vec<String>,
    /// How much it may take.
    pub profile: PolicyProfile,
    /// The file's SHA-256 in hexadecimal, if only this one may load.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Ed25519 keys in hexadecimal, of which one must have signed FILE.sig.
    pub public_keys: Vec<String>,
    /// Refuse a file without a signature.
    pub require_signature: bool,
    /// How long a plan may take.
    pub scheduler_deadline: Span,
    /// How long new limits may take.
    pub batcher_deadline: Span,
    /// How long a decision on a request may take.
    pub admission_deadline: Span,
    /// How long a wish for workers may take.
    pub autoscaler_deadline: Span,
    /// What the policy reads as its configuration.
    pub settings: BTreeMap<String, String>,
}

/// How much a policy may take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PolicyProfile {
    /// Compiled from Rust, C and the like: 8 MiB.
    #[default]
    Native,
    /// With a language's run time inside, such as JavaScript or Python: 64 MiB.
    Scripted,
}

impl Default for Policy {
    fn default() -> Self {
        let deadlines = Deadlines::default();
        Policy {
            name: None,
            file: None,
            watch: true,
            hooks: Vec::new(),
            profile: PolicyProfile::Native,
            sha256: None,
            public_keys: Vec::new(),
            require_signature: false,
            scheduler_deadline: Span(deadlines.scheduler),
            batcher_deadline: Span(deadlines.batcher),
            admission_deadline: Span(deadlines.admission),
            autoscaler_deadline: Span(deadlines.autoscaler),
            settings: BTreeMap::new(),
        }
    }
}

impl Policy {
    /// The place that `--policy PATH` stands for.
    #[must_use]
    pub fn of_file(path: &Path) -> Policy {
        Policy { file: Some(path.to_owned()), ..Policy::default() }
    }

    /// What the place is called.
    #[must_use]
    pub fn name(&self) -> String {
        let stem =
            self.file.as_deref().and_then(Path::file_stem).map(|stem| stem.to_string_lossy().into_owned());
        self.name.clone().or(stem).unwrap_or_else(|| "policy".to_owned())
    }

    /// As the host takes it.
    ///
    /// # Errors
    /// The field and what is wrong with it.
    pub fn to_place(&self) -> Result<Place, (&'static str, String)> {
        let mut settings = Settings::named(&self.name());
        settings.hooks = self.hook_set()?;
        settings.profile = match self.profile {
            PolicyProfile::Native => Profile::Native,
            PolicyProfile::Scripted => Profile::Scripted,
        };
        settings.deadlines = Deadlines {
            scheduler: self.scheduler_deadline.0,
            batcher: self.batcher_deadline.0,
            admission: self.admission_deadline.0,
            autoscaler: self.autoscaler_deadline.0,
            ..settings.deadlines
        };
        let keys: Option<Vec<[u8; 32]>> = self.public_keys.iter().map(|key| hex_32(key)).collect();
        let wrong = || "it is not 64 hexadecimal digits".to_owned();
        settings.trust = Trust {
            sha256: match &self.sha256 {
                None => None,
                Some(text) => Some(hex_32(text).ok_or_else(|| ("sha256", wrong()))?),
            },
            public_keys: keys.ok_or_else(|| ("public_keys", wrong()))?,
            require_signature: self.require_signature,
        };
        if self.require_signature && self.public_keys.is_empty() {
            return Err(("require_signature", "it needs public_keys to check a signature with".to_owned()));
        }
        settings.config = self.settings.clone();
        Ok(Place { settings, file: self.file.clone(), watch: self.watch })
    }

    fn hook_set(&self) -> Result<HookSet, (&'static str, String)> {
        if self.hooks.is_empty() {
            return Ok(HookSet::ALL);
        }
        self.hooks.iter().try_fold(HookSet::NONE, |set, name| {
            let hook = Hook::ALL.into_iter().find(|hook| hook.name() == name);
            hook.map(|hook| set.with(hook)).ok_or_else(|| {
                let known = Hook::ALL.map(Hook::name).join(", ");
                ("hooks", format!("`{name}` is none of {known}"))
            })
        })
    }
}

fn hex_32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_its_file() {
        assert_eq!(Policy::of_file(Path::new("/a/edf.wasm")).name(), "edf");
        assert_eq!(Policy::default().name(), "policy");
        let named = Policy { name: Some("main".into()), ..Policy::of_file(Path::new("/a/edf.wasm")) };
        assert_eq!(named.to_place().unwrap().settings.name, "main");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |policy: Policy| policy.to_place().err().map(|(field, _)| field);
        assert_eq!(wrong(Policy { hooks: vec!["planner".into()], ..Policy::default() }), Some("hooks"));
        assert_eq!(wrong(Policy { sha256: Some("12".into()), ..Policy::default() }), Some("sha256"));
        assert_eq!(
            wrong(Policy { public_keys: vec!["zz".repeat(32)], ..Policy::default() }),
            Some("public_keys")
        );
        assert_eq!(wrong(Policy { require_signature: true, ..Policy::default() }), Some("require_signature"));
        let good =
            Policy { hooks: vec!["batcher".into()], sha256: Some("ab".repeat(32)), ..Policy::default() };
        let place = good.to_place().unwrap();
        assert_eq!(place.settings.trust.sha256, Some([0xab; 32]));
        assert!(place.settings.hooks.has(Hook::Batcher) && !place.settings.hooks.has(Hook::Scheduler));
    }
}
