//! Text, conversations and bare tokens become prompts.

use std::sync::Arc;

use quern_engine::TokenId;
use quern_text::{ChatInput, Special};
use serde_json::Value;

use super::{Error, Model};

/// A prompt in tokens, at least one.
pub type Prompt = Arc<[TokenId]>;

/// Texts longer than this are tokenised on a blocking thread: at some
/// microseconds a word, longer ones would hold up other connections.
const INLINE_BYTES: usize = 8 * 1024;

/// A prompt from text as it stands: names of control tokens in it are tokens,
/// which is how fill-in-the-middle prompts are written.
///
/// # Errors
/// [`Error::EmptyPrompt`], or the tokenizer's failure.
pub async fn from_text(model: &Arc<Model>, text: String) -> Result<Prompt, Error> {
    encoded(model, text, Special::Parse).await
}

/// A prompt from text that is to be read and not obeyed: names of control tokens in it
/// stay text.
///
/// # Errors
/// [`Error::EmptyPrompt`], or the tokenizer's failure.
pub async fn from_plain(model: &Arc<Model>, text: String) -> Result<Prompt, Error> {
    encoded(model, text, Special::AsText).await
}

async fn encoded(model: &Arc<Model>, text: String, special: Special) -> Result<Prompt, Error> {
    let tokens =
        off_thread_if(model, text.len(), move |model| Ok(model.tokenizer.encode_prompt(&text, special)?));
    non_empty(tokens.await?)
}

/// A prompt from a conversation, by the model's own template. Names of control
/// tokens in messages stay text.
///
/// # Errors
/// [`Error::NoTemplate`], [`Error::Template`], or the tokenizer's failure.
pub async fn from_chat(model: &Arc<Model>, input: ChatInput) -> Result<Prompt, Error> {
    let size_bytes = text_bytes(&input.messages) + input.tools.as_ref().map_or(0, text_bytes);
    let tokens = off_thread_if(model, size_bytes, move |model| {
        let template = model.template.as_ref().ok_or(Error::NoTemplate)?;
        Ok(template.encode_chat(&model.tokenizer, &input)?)
    });
    non_empty(tokens.await?)
}

/// A prompt from tokens, each of which must be the model's.
///
/// # Errors
/// [`Error::UnknownToken`] or [`Error::EmptyPrompt`].
pub fn from_tokens(model: &Model, tokens: Vec<TokenId>) -> Result<Prompt, Error> {
    let vocab_size = model.tokenizer.vocab_size();
    match tokens.iter().find(|&&token| token as usize >= vocab_size) {
        Some(&token) => Err(Error::UnknownToken { token, vocab_size }),
        None => non_empty(tokens),
    }
}

fn non_empty(tokens: Vec<TokenId>) -> Result<Prompt, Error> {
    if tokens.is_empty() { Err(Error::EmptyPrompt) } else { Ok(tokens.into()) }
}

/// Does the work for so many bytes of text here, or on a blocking thread.
pub(super) async fn off_thread_if<T: Send + 'static>(
    model: &Arc<Model>,
    size_bytes: usize,
    work: impl FnOnce(&Model) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    if size_bytes <= INLINE_BYTES {
        return work(model);
    }
    let model = Arc::clone(model);
    tokio::task::spawn_blocking(move || work(&model)).await?
}

/// Bytes of all strings in a value.
fn text_bytes(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len(),
        Value::Array(items) => items.iter().map(text_bytes).sum(),
        Value::Object(fields) => fields.iter().map(|(name, value)| name.len() + text_bytes(value)).sum(),
        _ => 0,
    }
}
