//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::openai::{List, ModelObject};
use super::reply::Problem;
use super::route::Front;
use crate::adapters::Registry;
use crate::serving::Model;

pub(super) async fn list(State(front): State<Arc<Front>>) -> Json<List<ModelObject>> {
    Json(List { object: "list", data: front.node.models().iter().flat_map(|model| objects(model)).collect() })
}

pub(super) async fn one(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, Problem> {
    let mut all = front.node.models().iter().flat_map(|model| objects(model));
    all.find(|object| object.id == id).map(Json).ok_or(Problem::UnknownModel(id))
}

/// A model, the adapters on it, whose root is where they lie, and the ways to classify.
fn objects(model: &Model) -> Vec<ModelObject> {
    let adapters = model.adapters.iter().flat_map(Registry::list).map(|adapter| ModelObject {
        id: adapter.version.name.clone(),
        created: adapter.version.created,
        root: adapter.version.found.path.display().to_string(),
        parent: Some(model.id.clone()),
        ..base(model)
    });
    let classifiers = model.classifiers.iter().map(|classifier| ModelObject {
        id: classifier.name.clone(),
        parent: Some(classifier.adapter.clone().unwrap_or_else(|| model.id.clone())),
        ..base(model)
    });
    [base(model)].into_iter().chain(adapters).chain(classifiers).collect()
}

fn base(model: &Model) -> ModelObject {
    ModelObject {
        id: model.id.clone(),
        object: "model",
        created: model.created,
        owned_by: "quern",
        root: model.id.clone(),
        parent: None,
        max_model_len: model.max_sequence_len,
    }
}
