//! What a request is served with: a model, and at times an adapter on it.

use std::ops::Deref;
use std::sync::Arc;

use quern_adapters::Head;
use quern_engine::AdapterId;

use super::{Error, Model};
use crate::adapters::Lease;

/// A model, alone or with an adapter that stays as long as this or a clone of it.
#[derive(Clone)]
pub struct Served {
    model: Arc<Model>,
    lease: Option<Arc<Lease>>,
}

impl Served {
    /// The model alone.
    #[must_use]
    pub fn base(model: &Arc<Model>) -> Served {
        Served { model: Arc::clone(model), lease: None }
    }

    /// What a request names: a model, or an adapter of one. `None` is neither. Waits
    /// while an adapter's content is brought to memory.
    ///
    /// # Errors
    /// [`Error::Adapter`] when its files are not what they were.
    pub async fn find(models: &[Arc<Model>], name: &str) -> Result<Option<Served>, Error> {
        if let Some(model) = models.iter().find(|model| model.id == name) {
            return Ok(Some(Served::base(model)));
        }
        for model in models {
            let Some(adapters) = &model.adapters else { continue };
            if let Some(lease) = adapters.lease(name).await? {
                return Ok(Some(Served { model: Arc::clone(model), lease: Some(Arc::new(lease)) }));
            }
        }
        Ok(None)
    }

    /// What clients call it: the adapter where there is one, else the model.
    #[must_use]
    pub fn model_id(&self) -> &str {
        self.lease.as_ref().map_or(&self.model.id, |lease| lease.name())
    }

    /// The adapter's name.
    #[must_use]
    pub fn adapter(&self) -> Option<&str> {
        self.lease.as_ref().map(|lease| lease.name())
    }

    /// What engines call the adapter.
    #[must_use]
    pub fn adapter_id(&self) -> AdapterId {
        self.lease.as_ref().map_or(AdapterId::BASE, |lease| lease.id())
    }

    /// The classification head: the adapter's own, or for the model alone the one that
    /// its file carries.
    #[must_use]
    pub fn head(&self) -> Option<&Arc<Head>> {
        match &self.lease {
            Some(lease) => lease.head(),
            None => self.model.head.as_ref(),
        }
    }

    /// What the head's scores are divided by before softmax: as it was calibrated, or 1.
    #[must_use]
    pub fn temperature(&self) -> f32 {
        match &self.lease {
            Some(lease) => lease.version().found.temperature,
            None => self.model.temperature.get(),
        }
    }
}

impl Deref for Served {
    type Target = Arc<Model>;

    fn deref(&self) -> &Arc<Model> {
        &self.model
    }
}
