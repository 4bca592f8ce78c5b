use super::*;
use crate::testing;
use proptest::prelude::*;

fn encode(text: &str, special: Special) -> Vec<TokenId> {
    testing::tokenizer().encode(text, special).expect("any text has tokens")
}

fn id(text: &str) -> TokenId {
    testing::tokenizer().token_id(text).expect("the token is listed")
}

#[test]
fn control_tokens_are_parsed_only_when_asked_for() {
    let text = "<|im_start|>user<|im_end|>";
    assert_eq!(encode(text, Special::Parse), [id("<|im_start|>"), id("user"), id("<|im_end|>")]);
    let plain = encode(text, Special::AsText);
    assert!(!plain.contains(&id("<|im_start|>")));
    assert_eq!(testing::tokenizer().decode(&plain, true), text);
    assert_eq!(encode("<tool_call>", Special::AsText), [id("<tool_call>")]);
}

#[test]
fn merges_follow_their_order() {
    assert_eq!(encode(" the name", Special::AsText)[0], id("Ġthe"));
    assert_eq!(encode("abc ab", Special::AsText)[0], id("abc"));
}

#[test]
fn special_tokens_are_left_out_of_text_when_asked() {
    let tokenizer = testing::tokenizer();
    let tokens = encode("a<|im_end|>b<tool_call>", Special::Parse);
    assert_eq!(tokenizer.decode(&tokens, true), "ab<tool_call>");
    assert_eq!(tokenizer.decode(&tokens, false), "a<|im_end|>b<tool_call>");
    assert!(tokenizer.token_bytes(id("[PAD0]")).is_empty());
    assert!(tokenizer.token_bytes(TokenId::MAX).is_empty());
}

#[test]
fn ends_are_known_by_role_and_by_text() {
    let mut ends = vec![id("<|endoftext|>"), id("<|im_end|>")];
    ends.sort_unstable();
    assert_eq!(testing::tokenizer().eos_tokens(), ends);
}

#[test]
fn bos_comes_first_where_the_file_says_so() {
    let mut vocabulary = testing::vocabulary();
    vocabulary.add_bos = Some(true);
    let tokenizer = testing::build(vocabulary);
    let tokens = tokenizer.encode_prompt("a", Special::AsText).expect("tokens");
    assert_eq!(tokens[0], id("<|endoftext|>"));
    assert_eq!(tokens.len(), 2);
}

#[test]
fn broken_vocabularies_are_named() {
    let with = |change: fn(&mut Vocabulary)| {
        let mut vocabulary = testing::vocabulary();
        change(&mut vocabulary);
        Tokenizer::new(vocabulary).expect_err("it is broken")
    };
    assert!(matches!(
        with(|vocabulary| vocabulary.pre = "sentence".into()),
        TokenizerError::UnknownPreTokenizer(name) if name == "sentence"
    ));
    assert!(matches!(
        with(|vocabulary| vocabulary.tokens[7] = "seven".into()),
        TokenizerError::MissingByte(7)
    ));
    assert!(matches!(
        with(|vocabulary| vocabulary.merges.push(("no".into(), "such".into()))),
        TokenizerError::Model(_)
    ));
}

#[test]
fn long_runs_take_no_quadratic_time() {
    // Ten seconds and more if anything here were quadratic.
    for run in [" ", "a", "\n", "é", "1", "!", " \n", "'", "<", "<|im_start|"] {
        let text = run.repeat(100_000 / run.len());
        let tokens = encode(&text, Special::Parse);
        assert_eq!(testing::tokenizer().decode(&tokens, false), text);
    }
}

proptest! {
    #[test]
    fn decoding_gives_the_text_back(text in any::<String>()) {
        for special in [Special::Parse, Special::AsText] {
            let tokens = encode(&text, special);
            prop_assert_eq!(testing::tokenizer().decode(&tokens, false), text.as_str());
        }
    }
}
