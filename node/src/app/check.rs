//! `quern check`: what serving would open, opened and closed again.

use std::sync::Arc;

use quern_adapters::Head;

use super::classifiers::{Base, classifiers};
use super::load::{LoadError, load_text};
use super::{App, AppError};
use crate::adapters::{self, Found, lying_in};
use crate::http::{Node, serve_public};

/// An adapter that would be served.
pub struct CheckedAdapter {
    /// What requests would call it.
    pub name: String,
    /// Whether the configuration names it: the node does not start without it.
    pub is_named: bool,
    /// What was found out.
    pub found: Result<Found, adapters::Error>,
}

impl App {
    /// Checks what [`App::build`] leaves to the running node: tokenizer, template,
    /// classifiers, certificate and keys. Computes nothing.
    ///
    /// # Errors
    /// [`AppError`] naming the first file that cannot be used.
    pub async fn check(&self) -> Result<(), AppError> {
        self.check_listener().await?;
        let text = load_text(&self.config, &self.gguf)?;
        let architecture = self.gguf.architecture()?;
        let hidden_size = self.gguf.u32(&format!("{architecture}.embedding_length"))? as usize;
        let head = Head::from_metadata(self.gguf.metadata()).map_err(LoadError::from)?.map(Arc::new);
        let base = Base { path: &self.model.path, head: head.as_ref(), text: &text, hidden_size };
        base.temperature().map_err(LoadError::from)?;
        classifiers(&self.config.classifier, &base).map_err(LoadError::from)?;
        Ok(())
    }

    /// Reads and checks all adapters, those in the folder too. Blocks on the disk.
    ///
    /// # Errors
    /// The model's file does not say what it is, or the folder cannot be read.
    pub fn check_adapters(&self) -> Result<Vec<CheckedAdapter>, AppError> {
        let base = self.base()?;
        let named = self.config.adapter.iter().map(|one| (one.name.clone(), one.path.clone(), true));
        let folder = self.config.adapters.folder.as_deref().map(lying_in).transpose()?;
        let lying = folder.into_iter().flatten().map(|(name, path)| (name, path, false));
        let all = named.chain(lying).map(|(name, path, is_named)| CheckedAdapter {
            name,
            is_named,
            found: base.look_at(&path),
        });
        Ok(all.collect())
    }

    /// Starts the public listener and ends it at once, on a port that nobody knows:
    /// whether its certificate and keys can be used is only known by using them.
    pub(super) async fn check_listener(&self) -> Result<(), AppError> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let node = Node::new(Vec::new(), Box::new(String::new));
        serve_public(listener, node, self.config.to_http(), std::future::ready(())).await?;
        Ok(())
    }
}
