//! Labels as answers: a template that says what to do with a text, and labels in the
//! tokens that the model would have seen behind it.
//!
//! Where template and label meet, the tokenizer may join what stands on both sides into
//! one token. So each label is tokenised together with the text before it, back to the
//! last control token, and whatever is the same for all labels belongs to the prompt. In
//! most templates nothing of the client's text stands there, and then this is done once.
//!
//! This is the one place that says which tokens a label is scored by; `quern eval` asks
//! it, too.

use std::sync::Arc;

use quern_engine::TokenId;
use quern_scheduler::LabelTrie;
use quern_text::{ChatInput, ChatTemplate, Special, Tokenizer};
use serde_json::{Value, json};

use super::{Error, Model, Prompt, prompt};

/// Where the client's text goes.
pub const TEXT: &str = "{text}";

/// How a text is put to the model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wording {
    /// The whole prompt, in which [`TEXT`] is replaced; names of control tokens in it are
    /// tokens.
    Plain(String),
    /// Messages by role, in which [`TEXT`] is replaced, for the model's chat template.
    Messages(Vec<(String, String)>),
}

/// Labels to choose from, and how to ask.
#[derive(Debug)]
pub struct LabelTask {
    wording: Wording,
    /// Of the wording itself where it is plain, else the model's.
    template: Arc<ChatTemplate>,
    labels: Vec<String>,
    end_token: Option<bool>,
    skip_below: f32,
    /// The labels behind the end of the template as it is without any text.
    usual: Joined,
}

/// A text and its labels in tokens.
#[derive(Debug, Clone)]
pub struct Labelled {
    /// What all labels follow on.
    pub prompt: Prompt,
    /// The labels.
    pub labels: Arc<LabelTrie>,
    /// See [`quern_scheduler::request::Score::skip_below`].
    pub skip_below: f32,
}

/// Labels behind an end of a prompt.
#[derive(Debug, Clone)]
struct Joined {
    /// The prompt's tokens behind its last control token.
    tail: Vec<TokenId>,
    /// How many of them all labels leave as they are.
    kept: usize,
    labels: Arc<LabelTrie>,
}

impl LabelTask {
    /// A task for the model with this tokenizer and chat template.
    ///
    /// `end_token` says whether the token that ends an answer is part of each label; where
    /// unset it is, if one label is the beginning of another. `skip_below` is as in
    /// [`quern_scheduler::request::Score`].
    ///
    /// # Errors
    /// [`Error::NoTemplate`] for messages without a chat template, [`Error::Template`]
    /// when it does not take them, or the tokenizer's failure.
    pub fn new(
        tokenizer: &Tokenizer,
        chat_template: Option<&Arc<ChatTemplate>>,
        wording: Wording,
        labels: Vec<String>,
        end_token: Option<bool>,
        skip_below: f32,
    ) -> Result<LabelTask, Error> {
        let template = match &wording {
            Wording::Plain(text) => Arc::new(ChatTemplate::from_source(&source(text))?),
            Wording::Messages(_) => Arc::clone(chat_template.ok_or(Error::NoTemplate)?),
        };
        let tokens = template.encode_chat(tokenizer, &input(&wording, ""))?;
        let usual = join(tokenizer, tail(tokenizer, &tokens), &labels, end_token)?;
        Ok(LabelTask { wording, template, labels, end_token, skip_below, usual })
    }

    /// The labels, in the order of their scores.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// The tokens of a text in its template, and of the labels behind it.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::Template`], or the tokenizer's failure.
    pub async fn read(self: &Arc<Self>, model: &Arc<Model>, text: String) -> Result<Labelled, Error> {
        let (task, size_bytes) = (Arc::clone(self), text.len());
        prompt::off_thread_if(model, size_bytes, move |model| task.encode(&model.tokenizer, &text)).await
    }

    /// As [`LabelTask::read`], on this thread.
    ///
    /// # Errors
    /// As for [`LabelTask::read`].
    pub fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Labelled, Error> {
        let mut tokens = self.template.encode_chat(tokenizer, &input(&self.wording, text))?;
        let tail = tail(tokenizer, &tokens);
        let own = (tail != self.usual.tail).then(|| join(tokenizer, tail, &self.labels, self.end_token));
        let own = own.transpose()?;
        let Joined { tail, kept, labels } = own.as_ref().unwrap_or(&self.usual);
        tokens.truncate(tokens.len() - (tail.len() - kept));
        if tokens.is_empty() {
            return Err(Error::EmptyPrompt);
        }
        Ok(Labelled { prompt: tokens.into(), labels: Arc::clone(labels), skip_below: self.skip_below })
    }
}

/// A plain wording as a template of one message, so that names of control tokens in the
/// message stay text.
fn source(wording: &str) -> String {
    let literal = |text: &str| format!("{{{{ {} }}}}", Value::from(text));
    let pieces: Vec<String> = wording.split(TEXT).map(literal).collect();
    pieces.join("{{ messages[0].content }}")
}

fn input(wording: &Wording, text: &str) -> ChatInput {
    let messages = match wording {
        Wording::Plain(_) => json!([{"role": "user", "content": text}]),
        Wording::Messages(messages) => messages
            .iter()
            .map(|(role, content)| json!({"role": role, "content": content.replace(TEXT, text)}))
            .collect(),
    };
    ChatInput { messages, add_generation_prompt: true, ..ChatInput::default() }
}

/// What stands behind the last control token.
fn tail<'a>(tokenizer: &Tokenizer, tokens: &'a [TokenId]) -> &'a [TokenId] {
    let last = tokens.iter().rposition(|&token| tokenizer.is_special(token));
    &tokens[last.map_or(0, |idx| idx + 1)..]
}

fn join(
    tokenizer: &Tokenizer,
    tail: &[TokenId],
    labels: &[String],
    end_token: Option<bool>,
) -> Result<Joined, Error> {
    let before = tokenizer.decode(tail, false);
    let encode = |label: &String| tokenizer.encode(&format!("{before}{label}"), Special::AsText);
    let mut all: Vec<Vec<TokenId>> = labels.iter().map(encode).collect::<Result<_, _>>()?;
    let same =
        |tokens: &Vec<TokenId>| tokens.iter().zip(tail).take_while(|(one, other)| one == other).count();
    let kept = all.iter().map(same).min().unwrap_or(0);
    all.iter_mut().for_each(|tokens| {
        tokens.drain(..kept);
    });
    let begins = |one: &Vec<TokenId>, other: &Vec<TokenId>| one.len() < other.len() && other.starts_with(one);
    let ends = end_token.unwrap_or_else(|| all.iter().any(|one| all.iter().any(|other| begins(one, other))));
    if ends && let Some(end) = tokenizer.eos() {
        all.iter_mut().for_each(|tokens| tokens.push(end));
    }
    let labels = LabelTrie::new(&all).ok_or_else(|| Error::Text("a label is empty".to_owned()))?;
    Ok(Joined { tail: tail.to_vec(), kept, labels: Arc::new(labels) })
}

#[cfg(test)]
mod tests;
