//! Messages and tools, as a chat template and a grammar want them.

use quern_text::{Grammar, ToolSpec};
use serde_json::{Map, Value, json};

use super::fields::{Content, ToolChoiceField};
use super::openai_chat::{ChatMessageField, ToolCallField, ToolField};
use super::reply::Problem;

/// What may be called, and whether something must be.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ToolUse {
    /// No tools, or none that may be called.
    None,
    /// The model chooses.
    Auto,
    /// These and nothing else.
    Forced(Grammar),
}

/// Messages as templates know them: plain text, and arguments as objects.
pub(super) fn messages(fields: &[ChatMessageField]) -> Result<Value, Problem> {
    if fields.is_empty() {
        return Err(Problem::field("messages", "there must be at least one message"));
    }
    let converted: Result<Vec<Value>, Problem> =
        fields.iter().enumerate().map(|(idx, field)| message(idx, field)).collect();
    converted.map(Value::Array)
}

fn message(idx: usize, field: &ChatMessageField) -> Result<Value, Problem> {
    let role = match field.role.as_str() {
        // Templates know the older name alone.
        "developer" => "system",
        role @ ("system" | "user" | "assistant" | "tool") => role,
        other => {
            let message = format!("`{other}` is none of system, developer, user, assistant and tool");
            return Err(Problem::field(format!("messages[{idx}].role"), message));
        }
    };
    let calls = field.tool_calls.as_deref().unwrap_or_default();
    let content = match &field.content {
        Some(content) => text(idx, content)?,
        None if role == "assistant" => String::new(),
        None => {
            let param = format!("messages[{idx}].content");
            return Err(Problem::field(param, format!("a {role} message needs content")));
        }
    };
    let mut object = Map::new();
    object.insert("role".into(), role.into());
    object.insert("content".into(), content.into());
    let optional = [
        ("name", &field.name),
        ("tool_call_id", &field.tool_call_id),
        ("reasoning_content", &field.reasoning_content),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            object.insert(name.into(), value.clone().into());
        }
    }
    if !calls.is_empty() {
        object.insert("tool_calls".into(), calls.iter().map(call).collect());
    }
    Ok(Value::Object(object))
}

fn text(idx: usize, content: &Content) -> Result<String, Problem> {
    let parts = match content {
        Content::Text(text) => return Ok(text.clone()),
        Content::Parts(parts) => parts,
    };
    let texts: Result<Vec<&str>, Problem> = parts
        .iter()
        .enumerate()
        .map(|(part_idx, part)| match (part.kind.as_str(), &part.text) {
            ("text", Some(text)) => Ok(text.as_str()),
            ("text", None) => {
                let param = format!("messages[{idx}].content[{part_idx}].text");
                Err(Problem::field(param, "a text part needs text"))
            }
            (kind, _) => {
                let param = format!("messages[{idx}].content[{part_idx}].type");
                Err(Problem::field(param, format!("this model takes text alone, not `{kind}` parts")))
            }
        })
        .collect();
    Ok(texts?.join("\n"))
}

/// Templates print arguments as JSON; a string would be quoted once more.
fn call(field: &ToolCallField) -> Value {
    let text = field.function.arguments.as_deref().unwrap_or("{}");
    let arguments = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let mut object = Map::new();
    if let Some(id) = &field.id {
        object.insert("id".into(), id.clone().into());
    }
    object.insert("type".into(), "function".into());
    object.insert("function".into(), json!({"name": field.function.name, "arguments": arguments}));
    Value::Object(object)
}

/// Tools as templates know them.
pub(super) fn tools(fields: &[ToolField]) -> Result<Value, Problem> {
    let converted: Result<Vec<Value>, Problem> =
        fields.iter().enumerate().map(|(idx, field)| tool(idx, field)).collect();
    converted.map(Value::Array)
}

fn tool(idx: usize, field: &ToolField) -> Result<Value, Problem> {
    if field.kind != "function" {
        let param = format!("tools[{idx}].type");
        return Err(Problem::field(
            param,
            format!("`{}` tools are not supported; `function` is", field.kind),
        ));
    }
    if field.function.name.is_empty() {
        return Err(Problem::field(format!("tools[{idx}].function.name"), "a function needs a name"));
    }
    let mut function = Map::new();
    function.insert("name".into(), field.function.name.clone().into());
    if let Some(description) = &field.function.description {
        function.insert("description".into(), description.clone().into());
    }
    if let Some(parameters) = &field.function.parameters {
        if !parameters.is_object() {
            let param = format!("tools[{idx}].function.parameters");
            return Err(Problem::field(param, "parameters must be a JSON schema, an object"));
        }
        function.insert("parameters".into(), parameters.clone());
    }
    Ok(json!({"type": "function", "function": function}))
}

/// What `tool_choice` makes of the tools.
pub(super) fn tool_use(
    fields: &[ToolField],
    choice: Option<&ToolChoiceField>,
    parallel: bool,
) -> Result<ToolUse, Problem> {
    let wrong = |message: String| Err(Problem::field("tool_choice", message));
    let forced = |tools: Vec<ToolSpec>, parallel| {
        Ok(ToolUse::Forced(Grammar::ToolCalls { tools, required: true, parallel }))
    };
    match choice {
        Some(ToolChoiceField::Word(word)) if word == "none" => Ok(ToolUse::None),
        None if fields.is_empty() => Ok(ToolUse::None),
        Some(_) if fields.is_empty() => wrong("tool_choice needs tools to choose from".to_owned()),
        None => Ok(ToolUse::Auto),
        Some(ToolChoiceField::Word(word)) => match word.as_str() {
            "auto" => Ok(ToolUse::Auto),
            "required" => forced(fields.iter().map(spec).collect(), parallel),
            other => wrong(format!("`{other}` is none of none, auto, required and a function")),
        },
        Some(ToolChoiceField::Named(named)) => {
            let name = &named.function.name;
            match fields.iter().find(|field| field.function.name == *name) {
                // A named function is called once.
                Some(field) => forced(vec![spec(field)], false),
                None => wrong(format!("there is no tool `{name}`")),
            }
        }
    }
}

fn spec(field: &ToolField) -> ToolSpec {
    let parameters = field.function.parameters.clone();
    ToolSpec {
        name: field.function.name.clone(),
        parameters: parameters.unwrap_or_else(|| json!({"type": "object"})),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse<T: serde::de::DeserializeOwned>(value: Value) -> T {
        serde_json::from_value(value).unwrap()
    }

    fn param(problem: Problem) -> String {
        match problem {
            Problem::Field { param, .. } => param,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn messages_are_what_templates_know() {
        let fields: Vec<ChatMessageField> = parse(json!([
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "c1", "content": "2"},
        ]));
        let expected = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a\nb"},
            {"role": "assistant", "content": "", "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "content": "2", "tool_call_id": "c1"},
        ]);
        assert_eq!(messages(&fields).unwrap(), expected);
    }

    #[test]
    fn what_is_not_served_is_named() {
        let image =
            json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]);
        assert_eq!(param(messages(&parse::<Vec<_>>(image)).unwrap_err()), "messages[0].content[1].type");
        let role = json!([{"role": "robot", "content": "a"}]);
        assert_eq!(param(messages(&parse::<Vec<_>>(role)).unwrap_err()), "messages[0].role");
        let silent = json!([{"role": "user"}]);
        assert_eq!(param(messages(&parse::<Vec<_>>(silent)).unwrap_err()), "messages[0].content");
        let retrieval = json!([{"type": "retrieval", "function": {"name": "f"}}]);
        assert_eq!(param(tools(&parse::<Vec<_>>(retrieval)).unwrap_err()), "tools[0].type");
    }

    #[test]
    fn tool_choice_decides_what_may_be_called() {
        let fields: Vec<ToolField> = parse(json!([
            {"type": "function", "function": {"name": "f"}},
            {"type": "function", "function": {"name": "g", "parameters": {"type": "object"}}},
        ]));
        let choose = |value: Value| tool_use(&fields, Some(&parse(value)), true);
        assert_eq!(tool_use(&fields, None, true).unwrap(), ToolUse::Auto);
        assert_eq!(tool_use(&[], None, true).unwrap(), ToolUse::None);
        assert_eq!(choose(json!("none")).unwrap(), ToolUse::None);
        let ToolUse::Forced(Grammar::ToolCalls { tools, required: true, parallel: true }) =
            choose(json!("required")).unwrap()
        else {
            panic!("not forced")
        };
        assert_eq!(tools.len(), 2);
        let named = json!({"type": "function", "function": {"name": "g"}});
        let ToolUse::Forced(Grammar::ToolCalls { tools, parallel: false, .. }) = choose(named).unwrap()
        else {
            panic!("not forced")
        };
        assert_eq!(tools[0].name, "g");
        let unknown = json!({"type": "function", "function": {"name": "h"}});
        assert_eq!(param(choose(unknown).unwrap_err()), "tool_choice");
        assert_eq!(param(tool_use(&[], Some(&parse(json!("required"))), true).unwrap_err()), "tool_choice");
    }
}
