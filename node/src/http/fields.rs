//! Fields that take more than one shape, read so that errors keep their path.
//!
//! Serde's untagged enums buffer what they read and lose where they were; each
//! visitor here asks the parser itself.

use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A field whose name we know and whose meaning we do not serve.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unserved;

impl<'de> Deserialize<'de> for Unserved {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_ignored_any(IgnoredAny)?;
        Ok(Unserved)
    }
}

/// A string or a list of strings.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Strings(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct StringsVisitor;
        impl<'de> Visitor<'de> for StringsVisitor {
            type Value = Strings;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of strings")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Strings, E> {
                Ok(Strings(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Strings, A::Error> {
                let mut all = Vec::new();
                while let Some(text) = seq.next_element()? {
                    all.push(text);
                }
                Ok(Strings(all))
            }
        }
        deserializer.deserialize_any(StringsVisitor)
    }
}

/// One prompt, as text or as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PromptItem {
    Text(String),
    Tokens(Vec<u32>),
}

/// One or many prompts: a string, strings, tokens, or lists of tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prompts(pub(super) Vec<PromptItem>);

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PromptsVisitor;
        impl<'de> Visitor<'de> for PromptsVisitor {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, an array of strings, an array of tokens, or an array of token arrays")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![PromptItem::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mixed = || A::Error::custom("tokens stand among strings or arrays");
                let mut items = Vec::new();
                let mut tokens = Vec::new();
                while let Some(element) = seq.next_element::<Element>()? {
                    match element {
                        Element::Token(token) if items.is_empty() => tokens.push(token),
                        Element::Item(item) if tokens.is_empty() => items.push(item),
                        Element::Token(_) | Element::Item(_) => return Err(mixed()),
                    }
                }
                if !tokens.is_empty() {
                    items.push(PromptItem::Tokens(tokens));
                }
                Ok(Prompts(items))
            }
        }
        deserializer.deserialize_any(PromptsVisitor)
    }
}

/// An element of a list of prompts.
enum Element {
    Token(u32),
    Item(PromptItem),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ElementVisitor;
        impl<'de> Visitor<'de> for ElementVisitor {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string, a token, or an array of tokens")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Item(PromptItem::Text(text.to_owned())))
            }

            fn visit_u64<E: Error>(self, token: u64) -> Result<Element, E> {
                u32::try_from(token).map(Element::Token).map_err(|_| E::custom("the token is too large"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut tokens = Vec::new();
                while let Some(token) = seq.next_element()? {
                    tokens.push(token);
                }
                Ok(Element::Item(PromptItem::Tokens(tokens)))
            }
        }
        deserializer.deserialize_any(ElementVisitor)
    }
}

/// What a message says: text, or parts of which we serve those that are text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a message.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Part {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) text: Option<String>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ContentVisitor;
        impl<'de> Visitor<'de> for ContentVisitor {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string or an array of content parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_owned()))
            }

            fn visit_string<E: Error>(self, text: String) -> Result<Content, E> {
                Ok(Content::Text(text))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut parts = Vec::new();
                while let Some(part) = seq.next_element()? {
                    parts.push(part);
                }
                Ok(Content::Parts(parts))
            }
        }
        deserializer.deserialize_any(ContentVisitor)
    }
}

/// `tool_choice`: a word, or the function that must be called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ToolChoiceField {
    Word(String),
    Named(NamedTool),
}

/// `{"type": "function", "function": {"name": …}}`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct NamedTool {
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) function: FunctionName,
}

/// A function by its name.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct FunctionName {
    pub(super) name: String,
}

impl<'de> Deserialize<'de> for ToolChoiceField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ChoiceVisitor;
        impl<'de> Visitor<'de> for ChoiceVisitor {
            type Value = ToolChoiceField;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"none\", \"auto\", \"required\", or an object that names a function")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<ToolChoiceField, E> {
                Ok(ToolChoiceField::Word(word.to_owned()))
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<ToolChoiceField, A::Error> {
                NamedTool::deserialize(MapAccessDeserializer::new(map)).map(ToolChoiceField::Named)
            }
        }
        deserializer.deserialize_any(ChoiceVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_take_four_shapes() {
        let text = |s: &str| PromptItem::Text(s.to_owned());
        let parse = |json: &str| serde_json::from_str::<Prompts>(json).map(|prompts| prompts.0);
        assert_eq!(parse("\"a\"").unwrap(), [text("a")]);
        assert_eq!(parse("[\"a\", \"b\"]").unwrap(), [text("a"), text("b")]);
        assert_eq!(parse("[1, 2]").unwrap(), [PromptItem::Tokens(vec![1, 2])]);
        let lists = [PromptItem::Tokens(vec![1]), PromptItem::Tokens(vec![2, 3])];
        assert_eq!(parse("[[1], [2, 3]]").unwrap(), lists);
        assert!(parse("[1, \"a\"]").is_err());
        assert!(parse("[-1]").is_err());
        assert!(parse("{}").is_err());
    }

    #[test]
    fn a_tool_is_chosen_by_word_or_name() {
        let named = r#"{"type": "function", "function": {"name": "look"}}"#;
        assert!(matches!(
            serde_json::from_str(named).unwrap(),
            ToolChoiceField::Named(NamedTool { function: FunctionName { name }, .. }) if name == "look"
        ));
        let word: ToolChoiceField = serde_json::from_str("\"auto\"").unwrap();
        assert_eq!(word, ToolChoiceField::Word("auto".to_owned()));
        assert!(serde_json::from_str::<ToolChoiceField>("3").is_err());
    }
}
