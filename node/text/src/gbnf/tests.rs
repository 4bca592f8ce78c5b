use super::*;
use proptest::prelude::*;

fn fault(text: &str) -> (usize, usize) {
    let error = to_lark(text).expect_err(text);
    (error.line, error.column)
}

#[test]
fn faults_have_a_place() {
    for (text, place) in [
        ("", (1, 1)),
        ("root \"a\"", (1, 6)),
        ("root ::= a", (1, 10)),
        ("root ::= \"a", (1, 10)),
        ("root ::= [a\n", (1, 10)),
        ("root ::= [b-a]", (1, 11)),
        ("root ::= (\"é\" é", (1, 10)),
        ("root ::= (\"é\" é\n)", (1, 10)),
        ("root ::= \"é\" é", (1, 14)),
        ("root ::= \"a\"\nx ::= \"\\q\"", (2, 8)),
        ("root ::= \"a\"\nroot ::= \"b\"", (2, 1)),
        ("root ::= * \"a\"", (1, 10)),
        ("root ::= \"a\"{3,1}", (1, 13)),
        ("root ::= \"a\"{9999}", (1, 14)),
        ("root ::= \"a\")", (1, 13)),
        ("root ::= <think>", (1, 10)),
        ("x ::= \"a\"", (1, 1)),
    ] {
        assert_eq!(fault(text), place, "{text:?}");
    }
}

#[test]
fn all_forms_are_read() {
    let text = "# a comment\nroot ::= (\"a\" | # either\n  b-2)+ [^\\n\\]-]* .? \"\\x41\\u00e9\\U0001F600\\\"\"{2,}\n\
                b-2 ::= \"x\" |\n  \"y\"{,3} | \n";
    let lark = to_lark(text).expect("the grammar is valid");
    assert!(lark.starts_with("start: L0"));
}

#[test]
fn a_grammar_without_recursion_is_one_lexeme() {
    let lark = to_lark("root ::= a \"b\" a\na ::= [a-z]+ \" \"?").expect("valid");
    assert!(lark.contains("L0:") && !lark.contains("L1:"), "{lark}");
}

#[test]
fn only_what_could_be_misread_is_broken_up() {
    let safe = "root ::= \"(\" root \")\" | string\nstring ::= \"'\" [^']* \"'\"";
    let lark = to_lark(safe).expect("valid");
    assert!(!lark.contains("r1:"), "{lark}");
    let unsafe_one = "root ::= \"(\" root \")\" | string \"x\"\nstring ::= \"'\" [^']* \"'\"?";
    let lark = to_lark(unsafe_one).expect("valid");
    assert!(lark.contains("r1:"), "{lark}");
}

#[test]
fn bombs_are_refused_or_small() {
    let mut doubling = "root ::= a0\n".to_owned();
    for idx in 0..90 {
        doubling += &format!("a{idx} ::= a{} a{}\n", idx + 1, idx + 1);
    }
    doubling += "a90 ::= \"x\"\n";
    let lark = to_lark(&doubling).expect("it is one lexeme of many terminals");
    assert!(lark.len() < 20_000);
    let chain: String = (0..3_000).map(|idx| format!("a{idx} ::= a{}\n", idx + 1)).collect();
    assert!(to_lark(&format!("root ::= a0\n{chain}a3000 ::= \"x\"")).is_err());
    assert!(to_lark(&format!("root ::= {}", "(".repeat(1_000))).is_err());
    assert!(to_lark(&format!("root ::= \"a\"{}", "*".repeat(1_000))).is_err());
    assert!(to_lark(&"#".repeat(MAX_BYTES + 1)).is_err());
    let many: String = (0..3_000).map(|idx| format!(" | \"{idx}\" root \"{idx}\"")).collect();
    assert!(to_lark(&format!("root ::= \"x\"{many}")).is_err());
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(root|ab?|::=|[ \\n|()\\[\\]{}*+?\"\\\\a-c^,0-9#.-]){0,40}") {
        let _ = to_lark(&text);
        let _ = to_lark(&format!("root ::= {text}"));
    }
}
