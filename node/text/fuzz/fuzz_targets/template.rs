//! A template and messages, parted by a zero character, render or fail; they
//! never panic and never run on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quern_text::{ChatInput, ChatTemplate};

const QWEN_LIKE: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' + message.content }}\
    {%- for call in message.tool_calls or [] %}{{- call.function.arguments | tojson }}{%- endfor %}{%- endfor %}\
    {%- for tool in tools or [] %}{{- tool | tojson(indent=2) }}{%- endfor %}";

fuzz_target!(|text: &str| {
    let (source, json) = text.split_once('\0').unwrap_or((QWEN_LIKE, text));
    let source = if source.is_empty() { QWEN_LIKE } else { source };
    let Ok(messages) = serde_json::from_str::<serde_json::Value>(json) else {
        return;
    };
    if let Ok(template) = ChatTemplate::from_source(source) {
        let input = ChatInput {
            tools: Some(messages.clone()),
            messages,
            add_generation_prompt: true,
            ..ChatInput::default()
        };
        let _ = template.render(&input);
    }
});
