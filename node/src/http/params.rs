//! Checks the fields that chat and text completions share.
//!
//! Everything out of range is refused by its name; nothing is clamped.

use std::collections::BTreeMap;
use std::sync::Arc;

use quern_scheduler::constraint::Constraint;
use quern_scheduler::request::SamplingParams;
use quern_text::{Grammar, StopStrings};
use serde_json::Value;

use super::RequestLimits;
use super::fields::Strings;
use super::openai_chat::{ResponseFormat, StructuredOutputs};
use super::reply::Problem;
use crate::serving::{self, Model};

/// Fields that say how tokens are drawn.
pub(super) struct SamplingFields<'a> {
    pub(super) temperature: Option<f32>,
    pub(super) top_p: Option<f32>,
    pub(super) top_k: Option<i64>,
    pub(super) min_p: Option<f32>,
    pub(super) repetition_penalty: Option<f32>,
    pub(super) presence_penalty: Option<f32>,
    pub(super) frequency_penalty: Option<f32>,
    pub(super) logit_bias: Option<&'a BTreeMap<String, f32>>,
    pub(super) seed: Option<i64>,
    pub(super) ignore_eos: Option<bool>,
}

/// Fields that say what an answer must look like.
pub(super) struct GrammarFields<'a> {
    pub(super) response_format: Option<&'a ResponseFormat>,
    pub(super) guided_json: Option<&'a Value>,
    pub(super) guided_regex: Option<&'a str>,
    pub(super) guided_grammar: Option<&'a str>,
    pub(super) guided_choice: Option<&'a [String]>,
    pub(super) structured_outputs: Option<&'a StructuredOutputs>,
}

/// How tokens are drawn, with the model's defaults for what is not said.
pub(super) fn sampling(
    fields: &SamplingFields<'_>,
    model: &Model,
    limits: &RequestLimits,
    fresh_seed: u64,
) -> Result<SamplingParams, Problem> {
    let defaults = &model.defaults;
    let top_k = match fields.top_k {
        None => defaults.top_k,
        // vLLM writes "all" as -1.
        Some(-1) => 0,
        Some(k) => {
            u32::try_from(k).map_err(|_| Problem::field("top_k", "top_k must be -1, 0 or positive"))?
        }
    };
    let top_p = within("top_p", fields.top_p, 0.0, 1.0)?.unwrap_or(defaults.top_p);
    if top_p == 0.0 {
        return Err(Problem::field("top_p", "top_p must be greater than 0"));
    }
    let repetition_penalty = within("repetition_penalty", fields.repetition_penalty, 0.01, 10.0)?
        .unwrap_or(defaults.repetition_penalty);
    let mut logit_bias = logit_bias(fields.logit_bias, model, limits)?;
    if fields.ignore_eos == Some(true) {
        let ends = model.tokenizer.eos_tokens();
        logit_bias.extend(ends.iter().map(|&end| (end, f32::NEG_INFINITY)));
    }
    Ok(SamplingParams {
        temperature: within("temperature", fields.temperature, 0.0, 2.0)?.unwrap_or(defaults.temperature),
        top_k,
        top_p,
        min_p: within("min_p", fields.min_p, 0.0, 1.0)?.unwrap_or(defaults.min_p),
        repetition_penalty,
        presence_penalty: within("presence_penalty", fields.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        frequency_penalty: within("frequency_penalty", fields.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
        logit_bias,
        // Any integer is a seed; a negative one is one like any other.
        seed: fields.seed.map_or(fresh_seed, |seed| seed as u64),
    })
}

fn within(name: &'static str, value: Option<f32>, min: f32, max: f32) -> Result<Option<f32>, Problem> {
    match value {
        Some(value) if !(min..=max).contains(&value) => {
            Err(Problem::field(name, format!("{name} must be from {min} to {max}, but is {value}")))
        }
        value => Ok(value),
    }
}

fn logit_bias(
    field: Option<&BTreeMap<String, f32>>,
    model: &Model,
    limits: &RequestLimits,
) -> Result<Vec<(u32, f32)>, Problem> {
    let Some(biases) = field else { return Ok(Vec::new()) };
    let wrong = |message: String| Problem::field("logit_bias", message);
    if biases.len() > limits.max_logit_bias {
        return Err(wrong(format!(
            "logit_bias has {} entries; {} may be",
            biases.len(),
            limits.max_logit_bias
        )));
    }
    let vocab_size = model.tokenizer.vocab_size();
    let checked = biases.iter().map(|(key, &bias)| {
        let token: u32 = key.parse().map_err(|_| wrong(format!("logit_bias: `{key}` is no token number")))?;
        if token as usize >= vocab_size {
            return Err(wrong(format!("logit_bias: token {token} is not in the vocabulary of {vocab_size}")));
        }
        if !(-100.0..=100.0).contains(&bias) {
            return Err(wrong(format!("logit_bias: {bias} for token {token} is not from -100 to 100")));
        }
        Ok((token, bias))
    });
    checked.collect()
}

/// A count that must be at least 1.
pub(super) fn positive(name: &'static str, value: Option<i64>) -> Result<Option<u32>, Problem> {
    let Some(value) = value else { return Ok(None) };
    match u32::try_from(value) {
        Ok(value) if value > 0 => Ok(Some(value)),
        _ => Err(Problem::field(name, format!("{name} must be at least 1, but is {value}"))),
    }
}

/// The number of choices.
pub(super) fn choices(n: Option<i64>, limits: &RequestLimits) -> Result<u32, Problem> {
    match positive("n", n)?.unwrap_or(1) {
        n if n > limits.max_n => {
            Err(Problem::field("n", format!("n must be at most {}, but is {n}", limits.max_n)))
        }
        n => Ok(n),
    }
}

/// A number of alternatives, from 0 to `max`.
pub(super) fn alternatives(name: &'static str, value: i64, max: u8) -> Result<u8, Problem> {
    match u8::try_from(value) {
        Ok(value) if value <= max => Ok(value),
        _ => Err(Problem::field(name, format!("{name} must be from 0 to {max}, but is {value}"))),
    }
}

/// The stop strings, prepared.
pub(super) fn stop(field: Option<Strings>, limits: &RequestLimits) -> Result<StopStrings, Problem> {
    let strings = field.unwrap_or_default().0;
    if strings.len() > limits.max_stop_strings {
        let max = limits.max_stop_strings;
        return Err(Problem::field("stop", format!("stop has {} strings; {max} may be", strings.len())));
    }
    match strings.iter().position(|string| string.len() > limits.max_stop_bytes) {
        Some(idx) => Err(Problem::field(
            format!("stop[{idx}]"),
            format!("a stop string may have {} bytes at most", limits.max_stop_bytes),
        )),
        None => Ok(StopStrings::new(strings)),
    }
}

/// A field that we know and do not serve, where it was sent.
pub(super) fn refuse_unserved(fields: &[(&'static str, bool)]) -> Result<(), Problem> {
    match fields.iter().find(|(_, sent)| *sent) {
        Some((name, _)) => Err(Problem::Field {
            param: (*name).to_owned(),
            message: format!("`{name}` is not supported by this server"),
            code: Some("unsupported_parameter"),
        }),
        None => Ok(()),
    }
}

/// Refuses an answer that must not end together with one that ends when its grammar does.
pub(super) fn refuse_endless(
    ignore_eos: Option<bool>,
    grammar: Option<&(&'static str, Grammar)>,
) -> Result<(), Problem> {
    match grammar {
        Some((field, _)) if ignore_eos == Some(true) => {
            Err(Problem::field("ignore_eos", format!("`ignore_eos` cannot be combined with `{field}`")))
        }
        _ => Ok(()),
    }
}

/// The one grammar that the fields ask for, with the field's name.
pub(super) fn grammar(fields: &GrammarFields<'_>) -> Result<Option<(&'static str, Grammar)>, Problem> {
    let mut found = Vec::new();
    if let Some(format) = fields.response_format {
        found.extend(format_grammar(format)?.map(|grammar| ("response_format", grammar)));
    }
    if let Some(schema) = fields.guided_json {
        found.push(("guided_json", json_grammar("guided_json", schema)?));
    }
    found.extend(fields.guided_regex.map(|regex| ("guided_regex", Grammar::Regex(regex.to_owned()))));
    found.extend(fields.guided_grammar.map(|text| ("guided_grammar", text_grammar(text))));
    if let Some(words) = fields.guided_choice {
        found.push(("guided_choice", choice("guided_choice", words)?));
    }
    if let Some(outputs) = fields.structured_outputs {
        found.extend(structured(outputs)?.into_iter().map(|grammar| ("structured_outputs", grammar)));
    }
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => {
            let (second, _) = &found[1];
            Err(Problem::field(*second, format!("`{second}` cannot be combined with `{}`", found[0].0)))
        }
    }
}

fn format_grammar(format: &ResponseFormat) -> Result<Option<Grammar>, Problem> {
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(Grammar::JsonObject)),
        "json_schema" => {
            let schema = format.json_schema.as_ref().and_then(|field| field.schema.as_ref());
            let name = "response_format.json_schema.schema";
            let schema = schema.ok_or_else(|| Problem::field(name, "a json_schema format needs a schema"))?;
            json_grammar(name, schema).map(Some)
        }
        other => Err(Problem::field(
            "response_format.type",
            format!("`{other}` is none of text, json_object and json_schema"),
        )),
    }
}

fn structured(outputs: &StructuredOutputs) -> Result<Vec<Grammar>, Problem> {
    refuse_unserved(&[("structured_outputs.structural_tag", outputs.structural_tag.is_some())])?;
    let name = "structured_outputs.json";
    let mut found = Vec::new();
    found.extend(outputs.json.as_ref().map(|schema| json_grammar(name, schema)).transpose()?);
    found.extend(outputs.regex.clone().map(Grammar::Regex));
    found.extend(outputs.grammar.as_deref().map(text_grammar));
    let words = outputs.choice.as_deref();
    found.extend(words.map(|words| choice("structured_outputs.choice", words)).transpose()?);
    found.extend((outputs.json_object == Some(true)).then_some(Grammar::JsonObject));
    Ok(found)
}

/// A schema, which vLLM also takes as a string of JSON.
fn json_grammar(name: &str, schema: &Value) -> Result<Grammar, Problem> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::JsonSchema(schema.clone())),
        Value::String(text) => serde_json::from_str(text)
            .map(Grammar::JsonSchema)
            .map_err(|error| Problem::field(name, format!("the schema is no JSON: {error}"))),
        _ => Err(Problem::field(name, "a JSON schema must be an object")),
    }
}

/// GBNF writes rules with `::=`, Lark with `:`.
fn text_grammar(text: &str) -> Grammar {
    if text.contains("::=") { Grammar::Gbnf(text.to_owned()) } else { Grammar::Lark(text.to_owned()) }
}

/// One of some words, as a regular expression of them.
fn choice(name: &str, words: &[String]) -> Result<Grammar, Problem> {
    if words.is_empty() || words.iter().any(String::is_empty) {
        return Err(Problem::field(name, "choices must be words, and at least one"));
    }
    let escaped: Vec<String> = words.iter().map(|word| escape(word)).collect();
    Ok(Grammar::Regex(format!("({})", escaped.join("|"))))
}

fn escape(word: &str) -> String {
    let mut escaped = String::with_capacity(word.len());
    for c in word.chars() {
        if r"\.+*?()|[]{}^$#&-~/".contains(c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// Compiles the grammar that a field asked for, and blames the field.
pub(super) async fn compile(
    model: &Arc<Model>,
    grammar: Option<(&'static str, Grammar)>,
) -> Result<Option<Box<dyn Constraint>>, Problem> {
    let Some((field, grammar)) = grammar else { return Ok(None) };
    match serving::compile(model, grammar).await {
        Ok(constraint) => Ok(Some(constraint)),
        Err(error @ serving::Error::Grammar(_)) => {
            let (param, message) = (field.to_owned(), error.to_string());
            Err(Problem::Field { param, message, code: Some("invalid_grammar") })
        }
        Err(error) => Err(error.into()),
    }
}
