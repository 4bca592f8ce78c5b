//! The grammar of tool calls in Qwen's form, in llguidance's dialect of Lark.

use crate::constraint::ToolSpec;
use serde_json::{Value, json};
use std::fmt::Write as _;

const OPEN: &str = "<tool_call>";

/// The grammar of answers that call `tools`; see
/// [`crate::Grammar::ToolCalls`] for the flags.
pub(crate) fn to_lark(tools: &[ToolSpec], required: bool, parallel: bool) -> String {
    let mut lark = String::new();
    let again = if parallel { "(\"\\n\" call)*" } else { "" };
    let start = match (tools.is_empty(), required) {
        (true, _) => "text".to_owned(),
        (false, true) => format!("{} after_open {again}", literal(OPEN)),
        (false, false) => format!("text | text_and_open after_open {again}"),
    };
    let _ = writeln!(lark, "start: {start}");
    // Of the two texts that are read at once, the lazy one ends with the tag and
    // the other may not hold it, so the tag decides which of them it was.
    lark.push_str("text: TEXT?\n");
    lark.push_str("TEXT: /(?s:.+)/ & ~/(?s:.*)<tool_call>(?s:.*)/\n");
    lark.push_str("text_and_open[lazy]: /(?s:.*)<tool_call>/\n");
    let _ = writeln!(lark, "call: {} after_open", literal(OPEN));
    let names: Vec<String> = (0..tools.len()).map(|idx| format!("call_{idx}")).collect();
    if !names.is_empty() {
        let _ = writeln!(lark, "after_open: {}", names.join(" | "));
    }
    for (idx, tool) in tools.iter().enumerate() {
        let name = Value::String(tool.name.clone());
        let head = format!("\n{{\"name\": {name}, \"arguments\": ");
        let _ =
            writeln!(lark, "call_{idx}: {} arguments_{idx} {}", literal(&head), literal("}\n</tool_call>"));
        let _ = writeln!(lark, "arguments_{idx}: %json {}", arguments(&tool.parameters));
    }
    lark
}

/// The schema of a call's arguments, which are always an object.
fn arguments(parameters: &Value) -> Value {
    match parameters {
        Value::Object(schema) if !schema.is_empty() => {
            let mut schema = schema.clone();
            schema.entry("type").or_insert_with(|| json!("object"));
            Value::Object(schema)
        }
        _ => json!({"type": "object"}),
    }
}

/// A text as a Lark string, which has JSON's escapes.
fn literal(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
