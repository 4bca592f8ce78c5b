//! Asking policies whether, and how, a request is served.

use axum::http::HeaderMap;
use quern_extensions::{AdmissionRequest, Decision};

use super::reply::Problem;
use super::route::Front;
use crate::policies;
use crate::serving::{Model, Served, Terms};

/// Bytes of a body that make a token, roughly: English and JSON around it.
const BYTES_PER_TOKEN: usize = 4;

/// What a request asks for, as far as a policy may change it.
pub(super) struct Wish<'a> {
    pub(super) body_bytes: usize,
    /// `None` is as much as fits.
    pub(super) max_new: Option<u32>,
    pub(super) headers: &'a HeaderMap,
}

/// A policy that grants what the node does not have is at fault, not the request.
fn can_be_followed(model: &Model, decision: &Decision) -> Result<(), String> {
    let Decision::Accept { adapter: Some(adapter), .. } = decision else { return Ok(()) };
    let has = model.adapters.as_ref().is_some_and(|adapters| adapters.has(adapter));
    if has || *adapter == model.id {
        return Ok(());
    }
    Err(format!("it chose the adapter `{adapter}`, which this node does not have"))
}

impl Front {
    /// Lets policies accept, change or refuse a request; gives back how many new
    /// tokens it may have. Nothing is changed where nobody has an opinion. A policy
    /// that names no adapter leaves the request's; the model's own name means none.
    pub(super) async fn admit(
        &self,
        model: &mut Served,
        terms: &mut Terms,
        wish: &Wish<'_>,
    ) -> Result<Option<u32>, Problem> {
        let Some(policies) = self.node.policies().filter(|policies| policies.admits()) else {
            return Ok(wish.max_new);
        };
        let most = u32::try_from(model.max_sequence_len).unwrap_or(u32::MAX);
        let request = AdmissionRequest {
            id: terms.first_id,
            tenant: self.node.tenants().name(terms.tenant).map_or_else(String::new, |name| name.to_string()),
            model: model.id.clone(),
            adapter: model.adapter().map(str::to_owned),
            prompt_tokens: u32::try_from(wish.body_bytes / BYTES_PER_TOKEN).unwrap_or(u32::MAX),
            max_new: wish.max_new.or(model.defaults.max_new).unwrap_or(most),
            priority: terms.priority,
            deadline_ms: terms.deadline.map(|at| {
                let left = at.saturating_duration_since(terms.arrived).as_millis();
                u32::try_from(left).unwrap_or(u32::MAX)
            }),
            attributes: self.attributes(wish.headers),
        };
        let load = policies::node_load(&model.workers, &model.recent, self.node.started());
        let asked_for = request.max_new;
        let checks = Served::base(model);
        let check = move |decision: &Decision| can_be_followed(&checks, decision);
        match policies.decide(request, load, check).await {
            None => Ok(wish.max_new),
            Some(Decision::Accept { priority, max_new, adapter }) => {
                terms.priority = priority;
                if let Some(adapter) = adapter.filter(|adapter| adapter != model.model_id()) {
                    *model = self.model(Some(&adapter)).await?;
                }
                // What was not limited stays so unless the policy limits it.
                Ok(if max_new == asked_for { wish.max_new } else { Some(max_new) })
            }
            Some(Decision::Reject { reason, retry_after, message }) => {
                model.workers.note_refused();
                Err(Problem::NotAdmitted { reason, retry_after, message })
            }
        }
    }

    /// The headers that the operator lets policies see.
    fn attributes(&self, headers: &HeaderMap) -> Vec<(String, String)> {
        let seen = self.policy_headers.iter().filter_map(|name| {
            let value = headers.get(name.as_str())?.to_str().ok()?;
            Some((name.clone(), value.to_owned()))
        });
        seen.collect()
    }
}
