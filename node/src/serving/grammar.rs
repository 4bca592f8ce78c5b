//! Compiles what an answer must look like.

use std::sync::Arc;

use quern_scheduler::constraint::Constraint;
use quern_text::Grammar;

use super::{Error, Model};

/// Compiles a grammar on a blocking thread: a client's schema may take a while.
///
/// # Errors
/// [`Error::Grammar`] in the compiler's words.
pub async fn compile(model: &Arc<Model>, grammar: Grammar) -> Result<Box<dyn Constraint>, Error> {
    let constraints = Arc::clone(&model.constraints);
    let compiled = tokio::task::spawn_blocking(move || constraints.compile(&grammar)).await?;
    compiled.map_err(|error| Error::Grammar(error.to_string()))
}
