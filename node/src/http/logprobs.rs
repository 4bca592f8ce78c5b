//! Logprobs in the two shapes of OpenAI's API: chat's, and the older one.

use quern_text::Tokenizer;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::serving::TokenInfo;

/// What stands for a probability of nothing: JSON has no infinity.
const FLOOR: f32 = -9999.0;

/// `logprobs` of a chat choice.
#[derive(Debug, Default, Serialize)]
pub(super) struct ChatLogprobs {
    pub(super) content: Vec<ChatToken>,
    pub(super) refusal: Option<Vec<ChatToken>>,
}

/// A token, and the likeliest at its place.
#[derive(Debug, Serialize)]
pub(super) struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
    top_logprobs: Vec<ChatTop>,
}

/// One of the likeliest.
#[derive(Debug, Serialize)]
pub(super) struct ChatTop {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl ChatLogprobs {
    pub(super) fn extend(&mut self, tokenizer: &Tokenizer, tokens: &[TokenInfo]) {
        self.content.extend(tokens.iter().map(|info| ChatToken {
            token: text(tokenizer, info.token),
            logprob: info.logprobs.logprob.max(FLOOR),
            bytes: tokenizer.token_bytes(info.token).to_vec(),
            top_logprobs:
                info.logprobs.top.iter().map(|&(token, logprob)| top(tokenizer, token, logprob)).collect(),
        }));
    }
}

fn top(tokenizer: &Tokenizer, token: u32, logprob: f32) -> ChatTop {
    ChatTop {
        token: text(tokenizer, token),
        logprob: logprob.max(FLOOR),
        bytes: tokenizer.token_bytes(token).to_vec(),
    }
}

fn text(tokenizer: &Tokenizer, token: u32) -> String {
    String::from_utf8_lossy(tokenizer.token_bytes(token)).into_owned()
}

/// `logprobs` of a text choice: four columns.
#[derive(Debug, Default, Serialize)]
pub(super) struct TextLogprobs {
    text_offset: Vec<usize>,
    token_logprobs: Vec<f32>,
    tokens: Vec<String>,
    top_logprobs: Option<Vec<Map<String, Value>>>,
}

impl TextLogprobs {
    /// Columns for tokens that begin at character `offset` of their choice's
    /// text, and the offset after them.
    pub(super) fn columns(
        tokenizer: &Tokenizer,
        tokens: &[TokenInfo],
        with_top: bool,
        mut offset: usize,
    ) -> (TextLogprobs, usize) {
        let mut columns = TextLogprobs { top_logprobs: with_top.then(Vec::new), ..TextLogprobs::default() };
        for info in tokens {
            let token = text(tokenizer, info.token);
            let logprob = info.logprobs.logprob.max(FLOOR);
            columns.text_offset.push(offset);
            offset += token.chars().count();
            if let Some(all) = &mut columns.top_logprobs {
                let mut likeliest: Map<String, Value> = Map::new();
                for &(other, logprob) in &info.logprobs.top {
                    // Tokens of half a character look alike; the likelier one stays.
                    let entry = likeliest.entry(text(tokenizer, other));
                    entry.or_insert_with(|| logprob.max(FLOOR).into());
                }
                // The drawn token is always told, as one more when it is none of them.
                likeliest.entry(token.clone()).or_insert_with(|| logprob.into());
                all.push(likeliest);
            }
            columns.tokens.push(token);
            columns.token_logprobs.push(logprob);
        }
        (columns, offset)
    }

    /// Puts later columns below these.
    pub(super) fn append(&mut self, later: TextLogprobs) {
        self.text_offset.extend(later.text_offset);
        self.token_logprobs.extend(later.token_logprobs);
        self.tokens.extend(later.tokens);
        match (&mut self.top_logprobs, later.top_logprobs) {
            (Some(all), Some(more)) => all.extend(more),
            (own @ None, more) => *own = more,
            (Some(_), None) => {}
        }
    }
}
