//! The twin of `wgsl/embed.wgsl`.

use super::Group;
use crate::weights::format::{Format, Planes};

/// `out[r]`: the row of `W` that `tokens[r]` names.
#[must_use]
pub fn embed(format: Format, num_groups: usize, planes: &Planes, tokens: &[u32]) -> Vec<f32> {
    let row = |token: &u32| {
        let token = *token as usize;
        (0..num_groups)
            .flat_map(move |group_idx| Group::read(format, num_groups, planes, token, group_idx).values())
    };
    tokens.iter().flat_map(row).collect()
}
