use super::*;
use crate::testing;
use quern_engine::draw::{allows, mask_words};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::value::RawValue;
use std::collections::HashMap;
use std::sync::LazyLock;

fn factory() -> &'static ConstraintFactory {
    static FACTORY: LazyLock<ConstraintFactory> =
        LazyLock::new(|| ConstraintFactory::new(testing::tokenizer()).expect("a whole vocabulary"));
    &FACTORY
}

/// Which of so many logits are not banned.
fn allowed(constraint: &mut dyn Constraint, num_logits: usize) -> Vec<TokenId> {
    let mut mask = vec![0x5a5a_5a5a; mask_words(num_logits)];
    constraint.mask(&mut mask).expect("the grammar goes on");
    (0..num_logits as TokenId).filter(|token| allows(&mask, *token)).collect()
}

/// Draws allowed tokens at random until the end is drawn; `None` if the answer
/// grew too long, which a loop in a grammar makes likely.
fn walk(constraint: &mut dyn Constraint, seed: u64) -> Option<String> {
    let tokenizer = testing::tokenizer();
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    // Longer than the vocabulary, as padded logits are.
    let num_logits = tokenizer.vocab_size() + 100;
    let mut drawn = Vec::new();
    for step in 0..400 {
        let allowed = allowed(constraint, num_logits);
        assert!(!allowed.is_empty(), "nothing is allowed after {drawn:?}");
        let ends: Vec<_> = allowed.iter().filter(|token| tokenizer.eos_tokens().contains(token)).collect();
        // Take the end when it is offered, most of the time in the long run.
        let token = if !ends.is_empty() && (step > 40 || rng.next_u32() % 4 == 0) {
            *ends[0]
        } else {
            allowed[rng.next_u32() as usize % allowed.len()]
        };
        assert!((token as usize) < tokenizer.vocab_size(), "padding was allowed");
        constraint.accept(token).expect("an allowed token is accepted");
        if tokenizer.eos_tokens().contains(&token) {
            assert!(constraint.is_finished());
            return Some(tokenizer.decode(&drawn, true));
        }
        drawn.push(token);
        if constraint.is_finished() {
            return Some(tokenizer.decode(&drawn, true));
        }
    }
    None
}

/// Walks with many seeds, and checks each answer that came to an end.
fn check(grammar: Grammar, is_right: impl Fn(&str) -> bool) {
    let compiled = factory().compile(&grammar).expect("the grammar is valid");
    let mut num_finished = 0;
    for seed in 0..60 {
        if let Some(text) = walk(&mut *compiled.clone_box(), seed) {
            assert!(is_right(&text), "{grammar:?} gave {text:?}");
            num_finished += 1;
        }
    }
    assert!(num_finished > 5, "only {num_finished} answers of {grammar:?} ended");
}

fn json(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

type Object = HashMap<String, Box<RawValue>>;

/// An object whose values are only checked for their form: random digits make
/// numbers that no float can hold.
fn object(text: &str) -> Option<Object> {
    serde_json::from_str(text).ok()
}

fn is_string(value: &RawValue) -> bool {
    value.get().starts_with('"')
}

#[test]
fn json_objects_parse() {
    check(Grammar::JsonObject, |text| object(text).is_some());
}

#[test]
fn json_keeps_to_its_schema() {
    let schema = json!({
        "type": "object",
        "properties": {
            "kind": {"enum": ["ab", "abc", "é\n"]},
            "size": {"type": "integer", "minimum": 3, "maximum": 40},
            "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}
        },
        "required": ["kind", "size"],
        "additionalProperties": false
    });
    check(Grammar::JsonSchema(schema), |text| {
        let Some(Value::Object(map)) = json(text) else {
            return false;
        };
        let size = map["size"].as_i64();
        ["ab", "abc", "é\n"].contains(&map["kind"].as_str().unwrap_or_default())
            && size.is_some_and(|size| (3..=40).contains(&size))
            && map.keys().all(|key| ["kind", "size", "tags"].contains(&key.as_str()))
    });
}

#[test]
fn text_matches_its_regular_expression() {
    check(Grammar::Regex("(ab|the)+-[0-9]{2,3}é?".into()), |text| {
        let Some((words, rest)) = text.split_once('-') else {
            return false;
        };
        let digits = rest.trim_end_matches('é');
        words.replace("ab", "").replace("the", "").is_empty()
            && (2..=3).contains(&digits.len())
            && digits.bytes().all(|byte| byte.is_ascii_digit())
    });
}

#[test]
fn lark_grammars_work() {
    let lark = "start: \"(\" start \")\" | \"x\"\n";
    check(Grammar::Lark(lark.into()), |text| {
        let depth = text.matches('(').count();
        text == format!("{}x{}", "(".repeat(depth), ")".repeat(depth))
    });
}

#[test]
fn gbnf_grammars_work() {
    let gbnf = r#"
root ::= value
value ::= object | array | string | number | ("true" | "null") ws
object ::= "{" ws ( string ":" ws value ("," ws string ":" ws value)* )? "}" ws
array ::= "[" ws ( value ("," ws value)* )? "]" ws
string ::= "\"" ( [^"\\\x7F\x00-\x1F] | "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) ){0,9} "\"" ws
number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [1-9] [0-9]{0,1})? ws
ws ::= | " " | "\n" [ \t]{0,4}
"#;
    check(Grammar::Gbnf(gbnf.into()), |text| {
        // A lone surrogate or a number beyond all bounds is in the grammar, too.
        text.contains("\\u") || text.contains(['e', 'E']) || json(text).is_some()
    });
}

#[test]
fn recursion_and_overlaps_in_gbnf_work() {
    // The longest match of a word would swallow what must follow it.
    let gbnf = "root ::= \"(\" root \")\" | word \"b\" | \"ab\" \"c\"\nword ::= [ab]+\n";
    check(Grammar::Gbnf(gbnf.into()), |text| {
        let inner = text.trim_start_matches('(').trim_end_matches(')');
        let is_word = inner.bytes().all(|byte| byte == b'a' || byte == b'b');
        inner == "abc" || (is_word && inner.len() > 1 && inner.ends_with('b'))
    });
}

fn weather() -> ToolSpec {
    ToolSpec {
        name: "get_weather".into(),
        parameters: json!({
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}},
            "required": ["city"],
            "additionalProperties": false
        }),
    }
}

fn calls(text: &str) -> (String, Vec<(String, Object)>) {
    let mut parser = crate::ToolCallParser::new();
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    let (mut outside, mut calls) = (String::new(), Vec::new());
    for delta in deltas {
        match delta {
            crate::ToolDelta::Text(text) => outside += &text,
            crate::ToolDelta::CallStart { name, .. } => calls.push((name, HashMap::new())),
            crate::ToolDelta::Arguments { fragment, .. } => {
                calls.last_mut().expect("a call has begun").1 = object(&fragment).expect("an object");
            }
            crate::ToolDelta::CallEnd { .. } => {}
        }
    }
    (outside, calls)
}

#[test]
fn required_calls_are_calls_and_nothing_else() {
    for parallel in [false, true] {
        let now = ToolSpec { name: "no\"w".into(), parameters: Value::Null };
        let grammar = Grammar::ToolCalls { tools: vec![weather(), now], required: true, parallel };
        check(grammar, |text| {
            let (outside, calls) = calls(text);
            outside.trim().is_empty()
                && (calls.len() == 1 || (parallel && calls.len() > 1))
                && calls.iter().all(|(name, arguments)| match name.as_str() {
                    "get_weather" => is_string(&arguments["city"]),
                    name => name == "no\"w",
                })
        });
    }
}

#[test]
fn optional_calls_may_be_text() {
    let grammar = Grammar::ToolCalls { tools: vec![weather()], required: false, parallel: true };
    check(grammar.clone(), |text| {
        let (outside, calls) = calls(text);
        !outside.contains("<tool_call>")
            && calls.iter().all(|(name, arguments)| name == "get_weather" && is_string(&arguments["city"]))
    });
    // Both ways are open, and a call must keep to the schema once it has begun.
    let tokenizer = testing::tokenizer();
    let mut constraint = factory().compile(&grammar).expect("the grammar is valid");
    let call = "so:<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"ab\"}}\n</tool_call>";
    for token in tokenizer.encode(call, Special::AsText).expect("tokens") {
        constraint.accept(token).expect("the call is allowed");
    }
    let eos = tokenizer.eos().expect("there is one");
    assert!(allowed(&mut *constraint, tokenizer.vocab_size()).contains(&eos));
}

#[test]
fn the_end_is_allowed_only_where_the_grammar_ends() {
    let tokenizer = testing::tokenizer();
    let eos = tokenizer.eos().expect("there is one");
    let mut constraint = factory().compile(&Grammar::Regex("ab?".into())).expect("valid");
    assert!(!allowed(&mut *constraint, tokenizer.vocab_size()).contains(&eos));
    constraint.accept(tokenizer.token_id("a").expect("listed")).expect("allowed");
    let mut copy = constraint.clone_box();
    assert!(allowed(&mut *constraint, tokenizer.vocab_size()).contains(&eos));
    constraint.accept(eos).expect("allowed");
    assert!(constraint.is_finished());
    assert!(!copy.is_finished());
    assert!(copy.accept(tokenizer.token_id("c").expect("listed")).is_err());
}

#[test]
fn what_cannot_be_compiled_is_an_error() {
    let deep = (0..2_000).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
    let wide: Vec<Value> = (0..20_000).map(|idx| json!({"const": format!("{idx:05}")})).collect();
    for grammar in [
        Grammar::JsonSchema(json!({"type": "no such type"})),
        Grammar::JsonSchema(json!({"$ref": "#/nowhere"})),
        Grammar::JsonSchema(json!({"pattern": "(", "type": "string"})),
        Grammar::Regex("(a".into()),
        Grammar::Lark("start: nowhere".into()),
        Grammar::Gbnf("root ::= nowhere".into()),
        Grammar::ToolCalls { tools: vec![], required: true, parallel: false },
        Grammar::Lark("x".repeat(MAX_GRAMMAR_BYTES + 1)),
    ] {
        assert!(factory().compile(&grammar).is_err(), "{:.80?}", grammar);
    }
    let chain: String = (0..9_000).map(|idx| format!("a{idx}: a{}\n", idx + 1)).collect();
    let _ = factory().compile(&Grammar::Lark(format!("start: a0\n{chain}a9000: \"x\"\n")));
    let nested = format!("start: {}\"x\"{}\n", "(".repeat(50_000), ")".repeat(50_000));
    let _ = factory().compile(&Grammar::Lark(nested));
    let _ = factory().compile(&Grammar::Regex("(a{1000}){1000}{1000}".into()));
    // Huge, but either outcome is right as long as there is one.
    let _ = factory().compile(&Grammar::JsonSchema(deep));
    let _ = factory().compile(&Grammar::JsonSchema(json!({"anyOf": wide})));
}

#[test]
fn what_lies_beyond_the_vocabulary_is_banned() {
    for len in [1, 31, 32, 33, 64, 100] {
        for num_logits in [len, len + 5, len + 70] {
            let mut mask = vec![u32::MAX; mask_words(num_logits)];
            copy(&SimpleVob::alloc_ones(len), &mut mask);
            let num_allowed: u32 = mask.iter().map(|word| word.count_ones()).sum();
            assert_eq!(num_allowed, len as u32);
            assert!((0..len as TokenId).all(|token| allows(&mask, token)));
        }
    }
}
