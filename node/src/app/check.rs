//! `quern check`: what serving would open, opened and closed again.

use super::load::load_text;
use super::{App, AppError};
use crate::http::{Node, serve_public};

impl App {
    /// Checks what [`App::build`] leaves to the running node: tokenizer, template,
    /// certificate and keys. Computes nothing.
    ///
    /// # Errors
    /// [`AppError`] naming the first file that cannot be used.
    pub async fn check(&self) -> Result<(), AppError> {
        self.check_listener().await?;
        load_text(&self.config, &self.gguf)?;
        Ok(())
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
