use std::sync::LazyLock;

use quern_gguf::Gguf;
use quern_gguf::tiny::{self, Arch, TinySpec};

use super::*;

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    tiny::write(&path, &TinySpec::new(Arch::Qwen2, 7)).unwrap();
    Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap()
});

fn task(wording: &str, labels: &[&str], end_token: Option<bool>) -> LabelTask {
    let labels = labels.iter().map(|&label| label.to_owned()).collect();
    LabelTask::new(&TOKENIZER, None, Wording::Plain(wording.to_owned()), labels, end_token, 0.0).unwrap()
}

/// The trie of these labels, as they are tokenised behind `shared` tokens of `before`.
fn trie(before: &str, shared: usize, labels: &[&str], end: bool) -> LabelTrie {
    let tokens = |label: &&str| {
        let mut tokens = TOKENIZER.encode(&format!("{before}{label}"), Special::AsText).unwrap();
        tokens.extend(TOKENIZER.eos().filter(|_| end));
        tokens.split_off(shared)
    };
    LabelTrie::new(&labels.iter().map(tokens).collect::<Vec<_>>()).unwrap()
}

#[test]
fn labels_behind_a_control_token_are_tokenised_once() {
    let task = task("{text}<|im_end|>", &["pay", "transfer"], None);
    let read = |text: &str| task.encode(&TOKENIZER, text).unwrap();
    let (one, other) = (read("one"), read("quite another <|im_end|>"));
    assert!(Arc::ptr_eq(&one.labels, &other.labels));
    assert_eq!(*one.labels, trie("", 0, &["pay", "transfer"], false));
    assert_eq!(one.prompt.last(), TOKENIZER.token_id("<|im_end|>").as_ref());
    // The client's own is no control token.
    let ends = other.prompt.iter().filter(|&&token| Some(token) == TOKENIZER.token_id("<|im_end|>")).count();
    assert_eq!(ends, 1);
}

#[test]
fn what_template_and_labels_share_belongs_to_the_prompt() {
    let task = task("a {text}: ", &["pay", "pin"], Some(false));
    let read = task.encode(&TOKENIZER, "b").unwrap();
    let whole = TOKENIZER.encode("a b: pay", Special::AsText).unwrap();
    let before = TOKENIZER.encode("a b: ", Special::AsText).unwrap();
    let kept = read.prompt.len();
    assert_eq!(*read.prompt, whole[..kept]);
    assert!(kept <= before.len());
    assert_eq!(*read.labels, trie("a b: ", kept, &["pay", "pin"], false));
}

#[test]
fn the_end_token_is_part_of_labels_where_one_begins_another() {
    let behind = |labels: &[&str], end| {
        let task = task("{text}<|im_end|>", labels, end);
        LabelTrie::clone(&task.encode(&TOKENIZER, "a").unwrap().labels)
    };
    let nested = ["pay", "pay it"];
    assert_eq!(behind(&nested, None), trie("", 0, &nested, true));
    assert_eq!(behind(&nested, Some(false)), trie("", 0, &nested, false));
    let apart = ["pay", "transfer"];
    assert_eq!(behind(&apart, None), trie("", 0, &apart, false));
    assert_eq!(behind(&apart, Some(true)), trie("", 0, &apart, true));
}

#[test]
fn a_wording_may_hold_anything() {
    let wording = "{% if %} {{ x }} \"quoted\" \\n \t{text}\r\nünï{text}";
    let read = task(wording, &["a"], None).encode(&TOKENIZER, "{text}").unwrap();
    // The end may have been joined with the label.
    let prompt = TOKENIZER.decode(&read.prompt, false);
    assert!(wording.starts_with(&prompt) && prompt.len() + 4 > wording.len(), "{prompt}");
}

#[test]
fn messages_need_a_chat_template() {
    let wording = Wording::Messages(vec![("user".to_owned(), TEXT.to_owned())]);
    let none = LabelTask::new(&TOKENIZER, None, wording, vec!["a".to_owned()], None, 0.0);
    assert!(matches!(none, Err(Error::NoTemplate)));
}
