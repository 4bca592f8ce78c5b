use super::*;
use serde_json::json;

fn render(source: &str, input: &ChatInput) -> Result<String, TemplateError> {
    ChatTemplate::from_source(source)?.render(input)
}

fn input() -> ChatInput {
    ChatInput {
        messages: json!([{"role": "user", "content": "hi"}]),
        add_generation_prompt: true,
        ..ChatInput::default()
    }
}

#[test]
fn blocks_leave_no_lines_behind() {
    let source = "{% for message in messages %}\n    {% if true %}\n{{ message.content }}\n    {% endif %}\n{% endfor %}\nend";
    assert_eq!(render(source, &input()).expect("it renders"), "hi\nend");
}

#[test]
fn python_methods_work() {
    let source = "{{ messages[0].content.upper().strip().split('I')[0] }}{{ messages[0].items() | length }}\
                  {{ messages[0].get('none') is none }}{{ 'hi'.startswith('h') }}";
    assert_eq!(render(source, &input()).expect("it renders"), "H2TrueTrue");
}

#[test]
fn absent_tools_are_none_and_not_undefined() {
    let source = "{{ tools is none }} {{ documents is none }} {{ other is undefined }}";
    assert_eq!(render(source, &input()).expect("it renders"), "True True True");
}

#[test]
fn variables_cannot_replace_the_conversation() {
    let mut input = input();
    input.extra.insert("messages".into(), json!([]));
    input.extra.insert("tools".into(), json!([1]));
    input.extra.insert("enable_thinking".into(), json!(false));
    let source = "{{ messages | length }}{{ tools is none }}{{ enable_thinking }}";
    assert_eq!(render(source, &input).expect("it renders"), "1TrueFalse");
}

#[test]
fn a_refusal_is_told_in_its_own_words() {
    let error = render("{{ raise_exception('roles must alternate') }}", &input());
    assert!(matches!(error, Err(TemplateError::Refused(why)) if why == "roles must alternate"));
    let error = render("\n{{ messages.nothing.at_all }}", &input()).expect_err("it fails");
    assert!(matches!(&error, TemplateError::Render(why) if why.starts_with("line 2")), "{error}");
    assert!(matches!(render("{% if %}", &input()), Err(TemplateError::Syntax(_))));
}

#[test]
fn endless_templates_are_stopped() {
    let many = "{% for a in range(9000) %}{% for b in range(9000) %}{{ a * b }}{% endfor %}{% endfor %}";
    assert!(matches!(render(many, &input()), Err(TemplateError::TooMuch)));
    let deep = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}";
    assert!(render(deep, &input()).is_err());
}
