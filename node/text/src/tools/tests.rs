use super::*;
use proptest::prelude::*;

fn run<'a>(pieces: impl IntoIterator<Item = &'a str>) -> Vec<ToolDelta> {
    let mut parser = ToolCallParser::new();
    let mut out: Vec<ToolDelta> = Vec::new();
    for piece in pieces {
        out.extend(parser.push(piece));
    }
    out.extend(parser.finish());
    join(out)
}

/// Joins texts that were parted by the cutting.
fn join(deltas: Vec<ToolDelta>) -> Vec<ToolDelta> {
    let mut out = Vec::new();
    for delta in deltas {
        match delta {
            ToolDelta::Text(more) => text(&mut out, &more),
            other => out.push(other),
        }
    }
    out
}

fn call(index: usize, name: &str, arguments: &str) -> Vec<ToolDelta> {
    vec![
        ToolDelta::CallStart { index, name: name.to_owned() },
        ToolDelta::Arguments { index, fragment: arguments.to_owned() },
        ToolDelta::CallEnd { index },
    ]
}

#[test]
fn calls_and_text_take_turns() {
    let answer = "Let me see.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"city\":  \"Paris\"}}\n</tool_call>\
                  <tool_call>{\"arguments\": {}, \"name\": \"now\"}</tool_call> done";
    let mut wanted = vec![ToolDelta::Text("Let me see.\n".to_owned())];
    wanted.extend(call(0, "get", "{\"city\":  \"Paris\"}"));
    wanted.extend(call(1, "now", "{}"));
    wanted.push(ToolDelta::Text(" done".to_owned()));
    assert_eq!(run([answer]), wanted);
}

#[test]
fn a_tag_inside_of_a_string_is_part_of_the_string() {
    let arguments = r#"{"html": "</tool_call> <tool_call> \" {"}"#;
    let answer = format!("<tool_call>{{\"name\": \"f\", \"arguments\": {arguments}}}</tool_call>");
    assert_eq!(run([answer.as_str()]), call(0, "f", arguments));
}

#[test]
fn what_is_no_call_is_text() {
    for answer in [
        "<tool_call>",
        "<tool_call>\nget Paris</tool_call>",
        "<tool_call>{\"name\": \"f\"</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>[\"f\", {}]</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {}} and</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {}, \"x\": 1}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": tru}}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"\n\"}}</tool_call>",
        "</tool_call> <tool_cal <",
    ] {
        assert_eq!(run([answer]), [ToolDelta::Text(answer.to_owned())]);
    }
}

#[test]
fn a_call_after_a_broken_one_is_found() {
    let good = "<tool_call>{\"name\": \"f\", \"arguments\": {}}</tool_call>";
    for broken in ["<tool_call>", "<tool_call>{\"name\": ", "<tool_call>{\"a\": \"b "] {
        let mut wanted = vec![ToolDelta::Text(broken.to_owned())];
        wanted.extend(call(0, "f", "{}"));
        let answer = format!("{broken}{good}");
        assert_eq!(run([answer.as_str()]), wanted, "{broken}");
    }
}

#[test]
fn text_is_held_back_no_longer_than_needed() {
    let mut parser = ToolCallParser::new();
    assert_eq!(parser.push("a <tool"), [ToolDelta::Text("a ".to_owned())]);
    assert_eq!(parser.push("s> b"), [ToolDelta::Text("<tools> b".to_owned())]);
}

/// Parts of answers, whole calls among them.
fn answer() -> impl Strategy<Value = Vec<String>> {
    let part = prop_oneof![
        "[a-z<{}\\\\\" \n]{0,6}",
        Just("<tool_call>".to_owned()),
        Just("</tool_call>".to_owned()),
        Just("{\"name\": \"f\", \"arguments\": ".to_owned()),
        Just("{\"é\": [1, \"}\\\"\"]}".to_owned()),
        Just("}".to_owned()),
        Just("<tool_call>\n{\"name\": \"g\", \"arguments\": {\"x\": {}}}\n</tool_call>".to_owned()),
    ];
    prop::collection::vec(part, 0..12)
}

proptest! {
    #[test]
    fn the_cutting_does_not_matter(parts in answer(), cuts in prop::collection::vec(0..200usize, 0..20)) {
        let whole = parts.concat();
        let mut at: Vec<usize> = cuts.into_iter().filter(|at| whole.is_char_boundary(*at)).collect();
        at.push(0);
        at.push(whole.len());
        at.sort_unstable();
        let pieces = at.windows(2).map(|ends| &whole[ends[0]..ends[1]]);
        prop_assert_eq!(run(pieces), run([whole.as_str()]));
    }

    #[test]
    fn nothing_is_lost(parts in answer()) {
        let whole = parts.concat();
        let mut rest = whole.as_str();
        let mut name_before = None;
        for delta in run([whole.as_str()]) {
            match delta {
                ToolDelta::Text(text) => {
                    prop_assert!(rest.starts_with(&text));
                    rest = &rest[text.len()..];
                }
                ToolDelta::CallStart { name, .. } => name_before = Some(name),
                ToolDelta::Arguments { fragment, .. } => {
                    let (call, after) = rest.split_once(CLOSE).expect("a call is closed");
                    prop_assert!(call.starts_with(OPEN) && call.contains(&fragment));
                    prop_assert!(call.contains(name_before.as_deref().expect("a name comes first")));
                    rest = after;
                }
                ToolDelta::CallEnd { .. } => {}
            }
        }
        prop_assert_eq!(rest, "");
    }
}
