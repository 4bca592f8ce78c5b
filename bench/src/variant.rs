//! What differs where one server has to be asked in another way for the same thing: a peer without an endpoint for
//! labels is asked through chat, one that knows adapters by number is told the number.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::mix::ModelMix;
use crate::workload::Api;

/// The table `[servers.NAME]` of a workload, for the server that is measured under this name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The endpoint, where it is another one.
    pub api: Option<Api>,
    /// What it is told before the prompt, where it is told something else.
    pub system: Option<String>,
    /// The largest number of tokens of an answer, where it is another one.
    pub max_tokens: Option<u32>,
    /// Whether the model of a request is an adapter that goes by its number, as llama-server's do: the field `lora`.
    #[serde(default)]
    pub lora: bool,
}

impl Variant {
    /// Checks what can be checked without a server, for a workload with so many texts a request.
    ///
    /// # Errors
    /// The key at fault, and what is wrong with it.
    pub fn validate(
        &self,
        texts: usize,
        models: Option<&ModelMix>,
    ) -> Result<(), (&'static str, &'static str)> {
        if texts > 1 && self.api.is_some_and(|api| api != Api::Classify) {
            return Err(("api", "only a classification has several texts"));
        }
        if self.max_tokens == Some(0) {
            return Err(("max_tokens", "must be at least 1"));
        }
        if self.lora && models.is_none() {
            return Err(("lora", "numbers the models of the table [models]: it is missing"));
        }
        Ok(())
    }

    /// The field `lora` for a request that names `model`: this one in full, and no other.
    pub fn lora_of(&self, models: Option<&ModelMix>, model: &str) -> Option<Value> {
        let models = models.filter(|_| self.lora)?;
        let number = models.all().iter().position(|name| name == model)?;
        Some(json!([{"id": number, "scale": 1.0}]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Server;
    use crate::prompts::Prompt;
    use crate::request::Question;
    use crate::workload::Workload;

    const LABELS: &str = r#"
        name = "labels"
        api = "classify"
        max_tokens = 1
        load = { mode = "closed", clients = [1], requests = 1 }
        [models]
        names = ["a{n}"]
        count = 3
        [servers.peer]
        api = "chat"
        system = "Answer with a label."
        max_tokens = 8
        lora = true
        [prompts]
        inline = ["where is my card"]
    "#;

    fn asked(workload: &Workload, name: &str) -> (&'static str, Value) {
        let server = Server { name: name.to_owned(), model: "a2".to_owned(), ..Server::default() };
        let prompt = Prompt { system: None, user: "where is my card".to_owned(), expected: None };
        let question = Question::new(workload, &server, &prompt, 1);
        (question.path, serde_json::from_slice(&question.body).unwrap())
    }

    #[test]
    fn a_server_of_the_name_is_asked_in_its_own_way_and_others_are_not() {
        let workload = Workload::parse("labels.toml", LABELS, None).unwrap();
        let (path, body) = asked(&workload, "quern");
        assert_eq!(path, "/v1/classify");
        assert_eq!(body, json!({"model": "a2", "input": ["where is my card"]}));
        let (path, body) = asked(&workload, "peer");
        assert_eq!(path, "/v1/chat/completions");
        let messages = json!([
            {"role": "system", "content": "Answer with a label."},
            {"role": "user", "content": "where is my card"},
        ]);
        assert_eq!(body["messages"], messages);
        assert_eq!(body["max_tokens"], 8);
        assert_eq!(body["lora"], json!([{"id": 2, "scale": 1.0}]));
    }

    #[test]
    fn what_cannot_be_is_told_with_its_key() {
        let mistake = |from: &str, to: &str| {
            let text = LABELS.replace(from, to);
            Workload::parse("labels.toml", &text, None).unwrap_err().to_string()
        };
        let many = mistake("max_tokens = 1\n", "max_tokens = 1\n texts = 2\n");
        assert!(many.contains("servers.peer.api") && many.contains("several texts"), "{many}");
        let nothing = mistake("max_tokens = 8", "max_tokens = 0");
        assert!(nothing.contains("servers.peer.max_tokens"), "{nothing}");
        let none = mistake("[models]\n        names = [\"a{n}\"]\n        count = 3", "");
        assert!(none.contains("servers.peer.lora"), "{none}");
    }
}
