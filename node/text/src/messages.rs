//! Messages as clients write them, in the form that templates were written for.
//!
//! The protocol lets a client say some things in ways that templates do not
//! know: arguments of calls as a string of JSON, texts in parts, and no content
//! at all where there is a call.

use serde_json::{Map, Value};

/// A copy of `messages` in the form that templates know. What is not understood
/// stays as it is, for the template to judge.
pub(crate) fn normalize(messages: &Value) -> Value {
    let Value::Array(messages) = messages else {
        return messages.clone();
    };
    let messages = messages.iter().map(|message| match message {
        Value::Object(message) => Value::Object(normalize_message(message.clone())),
        other => other.clone(),
    });
    messages.collect()
}

fn normalize_message(mut message: Map<String, Value>) -> Map<String, Value> {
    match message.get("content") {
        None | Some(Value::Null) => {
            message.insert("content".into(), Value::String(String::new()));
        }
        Some(Value::Array(parts)) => {
            if let Some(text) = text_of(parts) {
                message.insert("content".into(), Value::String(text));
            }
        }
        Some(_) => {}
    }
    if let Some(Value::Array(calls)) = message.get_mut("tool_calls") {
        for call in calls {
            parse_arguments(call);
        }
    }
    message
}

/// Parts of text one below the other; `None` if a part is no text.
fn text_of(parts: &[Value]) -> Option<String> {
    let texts = parts.iter().map(|part| {
        let is_text = part.get("type").is_none_or(|kind| kind == "text");
        part.get("text").and_then(Value::as_str).filter(|_| is_text)
    });
    Some(texts.collect::<Option<Vec<_>>>()?.join("\n"))
}

/// Templates write arguments as JSON; a string would become JSON in JSON.
fn parse_arguments(call: &mut Value) {
    let holder = match call.get("function") {
        Some(_) => &mut call["function"],
        None => call,
    };
    let arguments = holder.get("arguments").and_then(Value::as_str);
    let parsed = arguments.and_then(|text| serde_json::from_str::<Value>(text).ok());
    if let Some(parsed) = parsed.filter(Value::is_object) {
        holder["arguments"] = parsed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_clients_write_becomes_what_templates_know() {
        let messages = json!([
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"text": "b"}]},
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            {"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": "{\"x\": 1}"}},
                {"function": {"name": "f", "arguments": "no JSON"}},
                {"name": "f", "arguments": "{}"}
            ]},
            "odd"
        ]);
        let wanted = json!([
            {"role": "user", "content": "a\nb"},
            {"role": "user", "content": [{"type": "image_url", "image_url": "x"}]},
            {"role": "assistant", "tool_calls": [
                {"function": {"name": "f", "arguments": {"x": 1}}},
                {"function": {"name": "f", "arguments": "no JSON"}},
                {"name": "f", "arguments": {}}
            ], "content": ""},
            "odd"
        ]);
        assert_eq!(normalize(&messages), wanted);
    }
}
