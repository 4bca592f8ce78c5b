//! Reads what a file is and what it wants, before anything is compiled.

use wasmparser::{Encoding, Parser, Payload};
use wit_component::ComponentEncoder;

use crate::verdict::{Hook, HookSet};

/// The contract's package, without its version.
pub const PACKAGE: &str = "quern:policy";

/// The version of the contract that this host serves.
pub const VERSION: &str = "0.1.0";

/// Interfaces that a policy may import.
const IMPORTS: [&str; 6] = ["types", "log", "metrics", "config", "clock", "kv"];

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A component: can be loaded.
    Component,
    /// A core module: has to be made a component first.
    Module,
}

/// Why a file is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPolicy {
    /// Not WebAssembly, or not all of it.
    #[error("the file is not WebAssembly, or is cut off: {0}")]
    Malformed(String),
    /// A core module that cannot be made a component.
    #[error("the core module does not fit the contract: {0}")]
    Encoding(String),
    /// It wants what policies do not get.
    #[error("it imports {}, which policies do not get", .0.join(", "))]
    Imports(Vec<String>),
    /// It was made for another version of the contract.
    #[error("it was made for {PACKAGE}@{found}; this node serves {PACKAGE}@{VERSION}")]
    OtherVersion {
        /// The version that it names.
        found: String,
    },
    /// It has no `lifecycle`.
    #[error("it does not export {PACKAGE}/lifecycle@{VERSION}")]
    NoLifecycle,
    /// It has none of the hooks.
    #[error("it exports no hook of {PACKAGE}@{VERSION}")]
    NoHook,
}

/// What a component says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    /// The hooks that it has.
    pub hooks: HookSet,
    /// What it imports: its whole authority.
    pub imports: Vec<String>,
}

/// Tells components from core modules.
///
/// # Errors
/// [`NotAPolicy::Malformed`] when it is neither.
pub fn kind(bytes: &[u8]) -> Result<Kind, NotAPolicy> {
    match Parser::new(0).parse_all(bytes).next() {
        Some(Ok(Payload::Version { encoding: Encoding::Component, .. })) => Ok(Kind::Component),
        Some(Ok(Payload::Version { encoding: Encoding::Module, .. })) => Ok(Kind::Module),
        Some(Err(error)) => Err(NotAPolicy::Malformed(error.message().to_owned())),
        _ => Err(NotAPolicy::Malformed("it is empty".to_owned())),
    }
}

/// Makes a component of a core module that was built against the contract.
/// Takes milliseconds.
///
/// # Errors
/// [`NotAPolicy::Malformed`], or [`NotAPolicy::Encoding`] with what does not fit,
/// such as an import of something that the contract does not have.
pub fn componentize(module: &[u8]) -> Result<Vec<u8>, NotAPolicy> {
    let encoder = ComponentEncoder::default().validate(true).module(module);
    let encoded = encoder.and_then(|mut encoder| encoder.encode());
    encoded.map_err(|error| NotAPolicy::Encoding(format!("{error:#}")))
}

/// Reads a component's outermost imports and exports, and checks them against
/// the contract.
///
/// # Errors
/// [`NotAPolicy`], with what is wrong.
pub fn outline(component: &[u8]) -> Result<Outline, NotAPolicy> {
    let (imports, exports) = names(component)?;
    if let Some(found) = other_version(&imports, &exports) {
        return Err(NotAPolicy::OtherVersion { found });
    }
    let foreign: Vec<String> = imports.iter().filter(|name| !may_import(name)).cloned().collect();
    if !foreign.is_empty() {
        return Err(NotAPolicy::Imports(foreign));
    }
    let has = |interface: &str| exports.iter().any(|name| ours(name) == Some((interface, VERSION)));
    if !has("lifecycle") {
        return Err(NotAPolicy::NoLifecycle);
    }
    let found = Hook::ALL.into_iter().filter(|hook| has(hook.name()));
    let hooks = found.fold(HookSet::NONE, HookSet::with);
    if hooks.is_empty() {
        return Err(NotAPolicy::NoHook);
    }
    Ok(Outline { hooks, imports })
}

/// Imports and exports of the outermost component. Those of what is nested in
/// it are its own matter: nothing but the outermost imports comes from us.
fn names(component: &[u8]) -> Result<(Vec<String>, Vec<String>), NotAPolicy> {
    let malformed = |error: wasmparser::BinaryReaderError| NotAPolicy::Malformed(error.message().to_owned());
    let (mut imports, mut exports) = (Vec::new(), Vec::new());
    let mut depth = 0u32;
    for payload in Parser::new(0).parse_all(component) {
        match payload.map_err(malformed)? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentImportSection(section) if depth == 0 => {
                for import in section {
                    imports.push(import.map_err(malformed)?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) if depth == 0 => {
                for export in section {
                    exports.push(export.map_err(malformed)?.name.name.to_owned());
                }
            }
            _ => {}
        }
    }
    Ok((imports, exports))
}

/// Splits `quern:policy/log@0.1.0` into `log` and `0.1.0`.
fn ours(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE)?.strip_prefix('/')?.split_once('@')
}

fn other_version(imports: &[String], exports: &[String]) -> Option<String> {
    let versions = imports.iter().chain(exports).filter_map(|name| ours(name));
    versions.map(|(_, version)| version).find(|&version| version != VERSION).map(str::to_owned)
}

fn may_import(name: &str) -> bool {
    ours(name).is_some_and(|(interface, _)| IMPORTS.contains(&interface))
}
