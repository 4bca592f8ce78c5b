//! Chat templates: a conversation to the text that the model was trained on.
//!
//! A template is a program that came with a model file. It runs in a sandbox
//! without files or network, with bounded work and depth. The functions are
//! those that the `transformers` library gives to templates.

use crate::guard::StandIns;
use crate::messages::normalize;
use crate::template_functions::{Refusal, raise_exception, strftime_now, to_json};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as TemplateValue};
use minijinja::{Environment, Error, ErrorKind};
use quern_gguf::{Gguf, GgufError};
use serde_json::{Map, Value};

/// Instructions of the template machine that one rendering may take: some
/// thousands of messages, and far below a second.
const FUEL: u64 = 20_000_000;

/// Depth of nested blocks, macros and includes.
const MAX_DEPTH: usize = 100;

/// Length of a rendered text in bytes; a loop that doubles a string runs into it
/// long before it runs out of fuel.
const MAX_TEXT_BYTES: usize = 64 << 20;

const NAME: &str = "chat_template";

/// Why a template could not be read or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The model file has no template.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The template is not valid Jinja.
    #[error("chat template: {0}")]
    Syntax(String),
    /// The template refused the conversation, in its own words.
    #[error("the chat template refuses the messages: {0}")]
    Refused(String),
    /// The template failed on the conversation.
    #[error("chat template: {0}")]
    Render(String),
    /// The template took more work or text than is allowed.
    #[error("the chat template takes too much work on these messages")]
    TooMuch,
    /// The messages use all characters that could stand in for others.
    #[error("the messages hold every private-use character")]
    NoStandIn,
    /// The rendered text could not be turned into tokens.
    #[error(transparent)]
    Tokenizer(#[from] crate::TokenizerError),
}

/// A conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatInput {
    /// The messages, as in the request: texts may be in parts, and arguments of
    /// calls may be strings of JSON.
    pub messages: Value,
    /// The tools, as in the request.
    pub tools: Option<Value>,
    /// Whether to end with the beginning of the assistant's answer.
    pub add_generation_prompt: bool,
    /// More variables for the template, as `enable_thinking`.
    pub extra: Map<String, Value>,
}

/// A compiled chat template. Immutable: share it in an `Arc`.
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
}

impl ChatTemplate {
    /// The template of a model file.
    ///
    /// # Errors
    /// [`TemplateError`] when there is none or it cannot be compiled.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TemplateError> {
        let mut template = Self::from_source(gguf.str("tokenizer.chat_template")?)?;
        for role in ["bos", "eos"] {
            let id = gguf.u32(&format!("tokenizer.ggml.{role}_token_id"));
            let tokens = gguf.strings("tokenizer.ggml.tokens");
            if let (Ok(id), Ok(tokens)) = (id, tokens)
                && let Some(text) = tokens.get(id as usize)
            {
                let text = TemplateValue::from(*text);
                template.environment.add_global(format!("{role}_token"), text);
            }
        }
        Ok(template)
    }

    /// Compiles a template.
    ///
    /// # Errors
    /// [`TemplateError::Syntax`].
    pub fn from_source(source: &str) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        environment.set_syntax(
            SyntaxConfig::builder()
                .trim_blocks(true)
                .lstrip_blocks(true)
                .build()
                .expect("the delimiters are the usual ones"),
        );
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(MAX_DEPTH);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|error| TemplateError::Syntax(describe(&error)))?;
        Ok(Self { environment, source: source.to_owned() })
    }

    /// The template as it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation. To get tokens use [`crate::encode_chat`]:
    /// this text no longer tells what a client wrote from what the template did.
    ///
    /// # Errors
    /// [`TemplateError`] when the template fails or refuses.
    pub fn render(&self, input: &ChatInput) -> Result<String, TemplateError> {
        self.render_values(&ChatInput { messages: normalize(&input.messages), ..input.clone() })
    }

    /// As [`Self::render`], with characters of the client's strings replaced.
    pub(crate) fn render_guarded(
        &self,
        input: &ChatInput,
        stand_ins: &StandIns,
    ) -> Result<String, TemplateError> {
        let replaced = ChatInput {
            messages: stand_ins.replace(&normalize(&input.messages)),
            tools: input.tools.as_ref().map(|tools| stand_ins.replace(tools)),
            add_generation_prompt: input.add_generation_prompt,
            extra: match stand_ins.replace(&Value::Object(input.extra.clone())) {
                Value::Object(extra) => extra,
                _ => unreachable!("an object stays an object"),
            },
        };
        self.render_values(&replaced)
    }

    fn render_values(&self, input: &ChatInput) -> Result<String, TemplateError> {
        // A request must not replace what the conversation itself says.
        const OWN: [&str; 4] = ["messages", "tools", "documents", "add_generation_prompt"];
        let extra = input.extra.iter();
        let mut variables: Map<String, Value> = extra
            .filter(|(name, _)| !OWN.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        variables.insert("messages".into(), input.messages.clone());
        // Templates ask whether these are none, so they must be there.
        variables.insert("tools".into(), input.tools.clone().unwrap_or_default());
        variables.insert("documents".into(), Value::Null);
        variables.insert("add_generation_prompt".into(), input.add_generation_prompt.into());
        let template =
            self.environment.get_template(NAME).expect("the template was added when this was made");
        let mut out = Bounded::default();
        match template.render_captured_to(TemplateValue::from(Serde(&variables)), &mut out) {
            Ok(_) => Ok(String::from_utf8(out.text).expect("a template writes text")),
            Err(_) if out.is_full => Err(TemplateError::TooMuch),
            Err(error) => Err(render_error(&error)),
        }
    }
}

impl std::fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChatTemplate").field("source_bytes", &self.source.len()).finish_non_exhaustive()
    }
}

/// Takes text up to [`MAX_TEXT_BYTES`].
#[derive(Default)]
struct Bounded {
    text: Vec<u8>,
    is_full: bool,
}

impl std::io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.len() + bytes.len() > MAX_TEXT_BYTES {
            self.is_full = true;
            return Err(std::io::ErrorKind::StorageFull.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn render_error(error: &Error) -> TemplateError {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(current) = cause {
        if let Some(refusal) = current.downcast_ref::<Refusal>() {
            return TemplateError::Refused(refusal.0.clone());
        }
        if let Some(inner) = current.downcast_ref::<Error>()
            && inner.kind() == ErrorKind::OutOfFuel
        {
            return TemplateError::TooMuch;
        }
        cause = current.source();
    }
    TemplateError::Render(describe(error))
}

/// The error in one line, with the template's line where it is known.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    match error.line() {
        Some(line) => format!("line {line}: {what}"),
        None => what,
    }
}

#[cfg(test)]
mod tests;
