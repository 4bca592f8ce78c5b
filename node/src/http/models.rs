//! `GET /v1/models` and `GET /v1/models/{id}`.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};

use super::openai::{List, ModelObject};
use super::reply::Problem;
use super::route::Front;
use crate::serving::Model;

pub(super) async fn list(State(front): State<Arc<Front>>) -> Json<List<ModelObject>> {
    let data = front.node.models().iter().map(|model| object(model)).collect();
    Json(List { object: "list", data })
}

pub(super) async fn one(
    State(front): State<Arc<Front>>,
    Path(id): Path<String>,
) -> Result<Json<ModelObject>, Problem> {
    front.model(Some(&id)).map(|model| Json(object(model)))
}

fn object(model: &Model) -> ModelObject {
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
