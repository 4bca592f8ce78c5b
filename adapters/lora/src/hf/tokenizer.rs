//! `tokenizer.json` and its companions, and the keys that they become.

use std::path::Path;

use quern_gguf::{ByteStrings, Value};
use serde::Deserialize;
use serde_json::Value as Json;

use crate::head::read_text;

use super::config::{Config, Ids};

/// The numbers of `tokenizer.ggml.token_type`.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

#[derive(Deserialize)]
struct Tokenizer {
    model: Model,
    #[serde(default)]
    added_tokens: Vec<Added>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: std::collections::HashMap<String, u32>,
    merges: Vec<Merge>,
}

/// Both ways in which merges are written.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Text(String),
    Pair(String, String),
}

#[derive(Deserialize)]
struct Added {
    id: u32,
    content: String,
    #[serde(default)]
    special: bool,
}

/// Reads the folder's tokenizer and chat template.
pub(super) fn entries(folder: &Path, config: &Config, limit: u64) -> Result<Vec<(String, Value)>, String> {
    let text = |file| read_text(folder, file, limit).map_err(|fault| fault.to_string());
    let tokenizer = text("tokenizer.json")?.ok_or("it has no tokenizer.json")?;
    let tokenizer: Tokenizer =
        serde_json::from_slice(&tokenizer).map_err(|error| format!("tokenizer.json: {error}"))?;
    if tokenizer.model.kind.as_deref().is_some_and(|kind| kind != "BPE") {
        return Err("tokenizer.json: the vocabulary is no byte-pair encoding".into());
    }
    let settings = match text("tokenizer_config.json")? {
        None => Json::Null,
        Some(text) => {
            serde_json::from_slice(&text).map_err(|error| format!("tokenizer_config.json: {error}"))?
        }
    };
    let (tokens, types) = tokens(&tokenizer, config.vocab_size)?;
    let id_of = |content: &str| {
        let added =
            tokenizer.added_tokens.iter().find(|token| token.content == content).map(|token| token.id);
        added.or_else(|| tokenizer.model.vocab.get(content).copied())
    };
    let named = |key: &str| special(&settings, key).and_then(|content| id_of(&content));
    let first = config.eos_token_id.as_ref().and_then(|ids| match ids {
        Ids::One(id) => Some(*id),
        Ids::Several(ids) => ids.first().copied(),
    });
    let merges: ByteStrings = tokenizer
        .model
        .merges
        .iter()
        .map(|merge| match merge {
            Merge::Text(text) => text.clone(),
            Merge::Pair(left, right) => format!("{left} {right}"),
        })
        .collect();
    let mut entries: Vec<(String, Value)> = Vec::new();
    let mut push = |key: &str, value: Value| entries.push((format!("tokenizer.{key}"), value));
    push("ggml.model", "gpt2".into());
    push("ggml.pre", "qwen2".into());
    push("ggml.tokens", tokens.into());
    push("ggml.token_type", types.into());
    push("ggml.merges", merges.into());
    let special_ids = [
        ("ggml.eos_token_id", named("eos_token").or(first)),
        ("ggml.padding_token_id", named("pad_token")),
        ("ggml.bos_token_id", named("bos_token").or(config.bos_token_id)),
    ];
    for (key, id) in special_ids {
        if let Some(id) = id.filter(|id| *id < config.vocab_size) {
            push(key, id.into());
        }
    }
    push("ggml.add_bos_token", settings.get("add_bos_token").and_then(Json::as_bool).unwrap_or(false).into());
    let template = match text("chat_template.jinja")? {
        Some(text) => Some(String::from_utf8(text).map_err(|_| "chat_template.jinja is not UTF-8")?),
        None => settings.get("chat_template").and_then(Json::as_str).map(str::to_owned),
    };
    if let Some(template) = template {
        push("chat_template", template.as_str().into());
    }
    Ok(entries)
}

/// The content of a special token, which is text or an object with it.
fn special(settings: &Json, key: &str) -> Option<String> {
    let token = settings.get(key)?;
    token.as_str().or_else(|| token.get("content")?.as_str()).map(str::to_owned)
}

/// All tokens by id with their types. Rows of the embedding that no token uses are filled up.
fn tokens(tokenizer: &Tokenizer, vocab_size: u32) -> Result<(ByteStrings, Vec<i32>), String> {
    const MAX_TOKENS: u32 = 1 << 22;
    if vocab_size > MAX_TOKENS {
        return Err(format!("config.json: a vocabulary of {vocab_size} tokens is larger than any real one"));
    }
    let mut slots: Vec<Option<(&str, i32)>> = vec![None; vocab_size as usize];
    let mut place = |id: u32, content, kind| match slots.get_mut(id as usize) {
        Some(slot) => {
            *slot = Some((content, kind));
            Ok(())
        }
        None => Err(format!("tokenizer.json: token {id} is beyond the vocabulary of {vocab_size}")),
    };
    for (content, id) in &tokenizer.model.vocab {
        place(*id, content.as_str(), NORMAL)?;
    }
    for token in &tokenizer.added_tokens {
        place(token.id, token.content.as_str(), if token.special { CONTROL } else { USER_DEFINED })?;
    }
    let mut tokens = ByteStrings::new();
    let mut types = Vec::with_capacity(slots.len());
    for (id, slot) in slots.into_iter().enumerate() {
        match slot {
            Some((content, kind)) => {
                tokens.push(content.as_bytes());
                types.push(kind);
            }
            None => {
                tokens.push(format!("[PAD{id}]").as_bytes());
                types.push(UNUSED);
            }
        }
    }
    Ok((tokens, types))
}
