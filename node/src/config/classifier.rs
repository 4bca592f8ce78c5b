//! `[[classifier]]`: ways to classify, each under a name that clients send as `model`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::serving::{TEXT, Wording};

/// `[[classifier]]`. With a template or messages it scores its labels as answers; without
/// it uses a classification head, and says how sure that has to be.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Classifier {
    /// What clients call it.
    pub name: String,
    /// The adapter to compute with; the model itself where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// The labels. Beside a head they may be given to be compared with its own.
    pub labels: Vec<String>,
    /// The labels in a file: one a line, or JSON with an object `id2label`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels_file: Option<PathBuf>,
    /// The whole prompt, with `{text}` where the text goes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// Whether the token that ends an answer is part of each label; where unset it is, if
    /// one label is the beginning of another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_token: Option<bool>,
    /// Labels that are at most this times as likely as the likeliest need not be computed;
    /// each probability is then off by at most this, times the number of labels.
    pub skip_below: f32,
    /// What scores are divided by before softmax; as it was calibrated, or 1, where unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
    /// A text whose likeliest label is less likely than this gets none.
    pub abstain_below: f32,
    /// Messages for the model's chat template, with `{text}` where the text goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub messages: Vec<Message>,
}

/// A message of a prompt.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// What it says.
    pub content: String,
}

impl Classifier {
    /// How a text is put to the model; `None` where a head reads it as it stands.
    #[must_use]
    pub fn wording(&self) -> Option<Wording> {
        let messages = self.messages.iter().map(|message| (message.role.clone(), message.content.clone()));
        match &self.template {
            Some(template) => Some(Wording::Plain(template.clone())),
            None if self.messages.is_empty() => None,
            None => Some(Wording::Messages(messages.collect())),
        }
    }

    /// What clashes, with its field.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let says = |text: &str| text.contains(TEXT);
        let scores = self.template.is_some() || !self.messages.is_empty();
        let has_labels = !self.labels.is_empty() || self.labels_file.is_some();
        let twice = self.labels.iter().enumerate().find(|(idx, label)| self.labels[..*idx].contains(label));
        let wrong: [(bool, &'static str, &str); 12] = [
            (self.name.is_empty(), "name", "it is empty"),
            (
                self.template.is_some() && !self.messages.is_empty(),
                "messages",
                "a template is given too; one of them is enough",
            ),
            (self.template.as_deref().is_some_and(|text| !says(text)), "template", "it has no {text}"),
            (
                !self.messages.is_empty() && !self.messages.iter().any(|message| says(&message.content)),
                "messages",
                "none has {text} in its content",
            ),
            (scores && !has_labels, "labels", "there are none to score"),
            (
                !self.labels.is_empty() && self.labels_file.is_some(),
                "labels_file",
                "labels are given too; one of them is enough",
            ),
            (self.labels.iter().any(String::is_empty), "labels", "one of them is empty"),
            (!scores && self.end_token.is_some(), "end_token", "it needs a template or messages"),
            (!scores && self.skip_below != 0.0, "skip_below", "it needs a template or messages"),
            (!(0.0..1.0).contains(&self.skip_below), "skip_below", "it must be at least 0 and below 1"),
            (!(0.0..=1.0).contains(&self.abstain_below), "abstain_below", "it must be from 0 to 1"),
            (
                self.temperature.is_some_and(|value| !(value > 0.0 && value.is_finite())),
                "temperature",
                "it must be above 0",
            ),
        ];
        if let Some((_, field, why)) = wrong.iter().find(|(is_wrong, ..)| *is_wrong) {
            return Err((*field, (*why).to_owned()));
        }
        twice.map_or(Ok(()), |(_, label)| Err(("labels", format!("`{label}` occurs twice"))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scoring() -> Classifier {
        Classifier {
            name: "topics".to_owned(),
            labels: vec!["work".to_owned(), "play".to_owned()],
            template: Some("Topic of {text}:".to_owned()),
            ..Classifier::default()
        }
    }

    #[test]
    fn a_wording_or_a_head() {
        assert_eq!(scoring().check(), Ok(()));
        assert_eq!(scoring().wording(), Some(Wording::Plain("Topic of {text}:".to_owned())));
        let head = Classifier { name: "a".to_owned(), abstain_below: 0.5, ..Classifier::default() };
        assert_eq!((head.check(), head.wording()), (Ok(()), None));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |classifier: Classifier| classifier.check().err().map(|(field, _)| field);
        let message = |content: &str| vec![Message { role: "user".to_owned(), content: content.to_owned() }];
        assert_eq!(wrong(Classifier { name: String::new(), ..scoring() }), Some("name"));
        assert_eq!(wrong(Classifier { template: Some("Topic:".to_owned()), ..scoring() }), Some("template"));
        assert_eq!(wrong(Classifier { messages: message("{text}"), ..scoring() }), Some("messages"));
        let only = Classifier { template: None, messages: message("no text"), ..scoring() };
        assert_eq!(wrong(only), Some("messages"));
        assert_eq!(wrong(Classifier { labels: Vec::new(), ..scoring() }), Some("labels"));
        let twice = vec!["work".to_owned(), "work".to_owned()];
        assert_eq!(wrong(Classifier { labels: twice, ..scoring() }), Some("labels"));
        let both = Classifier { labels_file: Some("labels.txt".into()), ..scoring() };
        assert_eq!(wrong(both), Some("labels_file"));
        assert_eq!(wrong(Classifier { skip_below: 1.0, ..scoring() }), Some("skip_below"));
        assert_eq!(wrong(Classifier { abstain_below: f32::NAN, ..scoring() }), Some("abstain_below"));
        assert_eq!(wrong(Classifier { temperature: Some(0.0), ..scoring() }), Some("temperature"));
        let head = Classifier { template: None, end_token: Some(true), ..scoring() };
        assert_eq!(wrong(head), Some("end_token"));
    }
}
