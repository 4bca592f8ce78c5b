//! Texts become labels: by a head on the last hidden state, or by how likely each label
//! is as the model's answer ([`score`](super::score)).
//!
//! Either way a text gives one number a label; dividing by the temperature and softmax
//! make probabilities of them, and a text whose best one is too low gets no label.

use std::sync::Arc;

use quern_adapters::Head;
use quern_scheduler::Permit;
use quern_scheduler::request::{Event, Pooling, Request, Score, Work};

use super::score::{LabelTask, Labelled};
use super::{Error, Model, Prompt, Served, Terms, observe, prompt, sink};

/// Texts of one request that are in the scheduler at once: enough for a step of short
/// ones, and few enough that others' texts come between those of a long list.
pub const WINDOW: usize = 32;

/// How long to wait for a place in the queue where a request has none left in it.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(20);

/// A way to classify that an operator named.
#[derive(Debug, Clone, Default)]
pub struct Configured {
    /// What clients call it.
    pub name: String,
    /// The adapter to compute with; the model alone where unset.
    pub adapter: Option<String>,
    /// The labels to score, and how; a head is used where unset.
    pub task: Option<Arc<LabelTask>>,
    /// What a head's labels must be; whatever they are where empty.
    pub labels: Vec<String>,
    /// As it was calibrated, or 1, where unset.
    pub temperature: Option<f32>,
    /// A text whose likeliest label is less likely than this gets none.
    pub abstain_below: f32,
}

/// What classifies a request's texts, under the name by which its client asked for it.
#[derive(Debug, Clone)]
pub struct Classifier {
    /// What clients call it.
    pub name: String,
    /// How a text gets its numbers.
    pub means: Means,
    /// What they are divided by; above 0.
    pub temperature: f32,
    /// A text whose likeliest label is less likely than this gets none.
    pub abstain_below: f32,
}

/// How a text gets a number for each label.
#[derive(Debug, Clone)]
pub enum Means {
    /// A linear layer on the last token's hidden state. The text is read as it stands.
    Head(Arc<Head>),
    /// The log-probability of each label as the model's answer.
    Labels(Arc<LabelTask>),
}

/// A text in tokens, ready to be classified.
#[derive(Debug, Clone)]
pub enum Ready {
    /// For a head.
    Plain(Prompt),
    /// With its labels in tokens.
    Labelled(Labelled),
}

/// What became of one text.
#[derive(Debug, Clone, PartialEq)]
pub struct Classified {
    /// One for each label, together 1.
    pub probs: Vec<f32>,
    /// The likeliest label, if it is likely enough.
    pub label: Option<usize>,
}

/// Why a model and its classifier do not belong together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// There is nothing to classify with.
    #[error("it has neither template nor messages, and what it computes with has no classification head")]
    NoHead,
    /// The adapter that it computes with is gone, or was never there.
    #[error("its adapter `{0}` is not loaded")]
    NoAdapter(String),
    /// A head for another model.
    #[error("the head takes hidden states of {head} numbers, and the model's have {model}")]
    Hidden {
        /// Length of the head's rows.
        head: u64,
        /// Length of the model's.
        model: usize,
    },
    /// A list of labels for another head.
    #[error("{}", labels_differ(*named, *head, first.as_ref()))]
    Labels {
        /// Labels in the list.
        named: usize,
        /// Labels of the head.
        head: usize,
        /// The first place at which they differ, with the list's label and the head's.
        first: Option<(usize, String, String)>,
    },
}

fn labels_differ(named: usize, head: usize, first: Option<&(usize, String, String)>) -> String {
    match first {
        Some((idx, named, head)) => format!("label {idx} is `{named}`, and `{head}` in the head"),
        None => format!("there are {named} labels, and the head has {head}"),
    }
}

impl Configured {
    /// What it is with the model and adapter that are served now.
    ///
    /// # Errors
    /// [`Unfit`] when these do not go together.
    pub fn with(&self, served: &Served) -> Result<Classifier, Unfit> {
        let (means, calibrated) = match (&self.task, served.head()) {
            (Some(task), _) => (Means::Labels(Arc::clone(task)), 1.0),
            (None, None) => return Err(Unfit::NoHead),
            (None, Some(head)) => {
                if !self.labels.is_empty() {
                    check_labels(head, &self.labels)?;
                }
                (Means::Head(Arc::clone(head)), served.temperature())
            }
        };
        Ok(Classifier {
            name: self.name.clone(),
            means,
            temperature: self.temperature.unwrap_or(calibrated),
            abstain_below: self.abstain_below,
        })
    }
}

impl Classifier {
    /// What classifies by the head of a model or an adapter, where it has one.
    #[must_use]
    pub fn by_head(served: &Served) -> Option<Classifier> {
        served.head().map(|head| Classifier {
            name: served.model_id().to_owned(),
            means: Means::Head(Arc::clone(head)),
            temperature: served.temperature(),
            abstain_below: 0.0,
        })
    }

    /// The labels, in the order of the probabilities.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        match &self.means {
            Means::Head(head) => &head.labels,
            Means::Labels(task) => task.labels(),
        }
    }

    /// A text in tokens, checked against the model's context.
    ///
    /// # Errors
    /// [`Error::EmptyPrompt`], [`Error::ContextLength`], [`Error::Template`], or the
    /// tokenizer's failure.
    pub async fn read(&self, model: &Arc<Model>, text: String) -> Result<Ready, Error> {
        match &self.means {
            Means::Head(_) => {
                // A client's text is never a control token here, as in training.
                let tokens = prompt::from_plain(model, text).await?;
                self.read_tokens(model, tokens)
            }
            Means::Labels(task) => {
                let labelled = task.read(model, text).await?;
                let num_behind = labelled.labels.max_depth();
                let tokens = labelled.prompt.len() + num_behind;
                if tokens > model.max_sequence_len {
                    return Err(Error::ContextLength { tokens, limit: model.max_sequence_len });
                }
                Ok(Ready::Labelled(labelled))
            }
        }
    }

    /// A text that came in tokens; only a head takes those.
    ///
    /// # Errors
    /// [`Error::ContextLength`].
    pub fn read_tokens(&self, model: &Model, tokens: Prompt) -> Result<Ready, Error> {
        model.fits(&tokens)?;
        Ok(Ready::Plain(tokens))
    }

    /// One number a label, of a hidden state.
    fn numbers(&self, hidden: Vec<f32>) -> Result<Vec<f32>, Unfit> {
        match &self.means {
            Means::Head(head) => check_hidden(head, hidden.len()).map(|()| head.logits(&hidden)),
            // Labels are scored, and no hidden state is asked for.
            Means::Labels(_) => Ok(hidden),
        }
    }

    /// Probabilities and label of a text's numbers. What is no number counts as
    /// impossible; where all are, every label is as likely as any other.
    #[must_use]
    pub fn judge(&self, scores: &[f32]) -> Classified {
        let best = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |&score: &f32| match score {
            _ if best == f32::NEG_INFINITY => 1.0,
            score if score.is_nan() => 0.0,
            score => (f64::from(score - best) / f64::from(self.temperature)).exp(),
        };
        let weights: Vec<f64> = scores.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let probs: Vec<f32> = weights.iter().map(|weight| (weight / total) as f32).collect();
        let likelier = |best: usize, idx: usize| if probs[idx] > probs[best] { idx } else { best };
        let label = (0..probs.len()).fold(0, likelier);
        let is_sure = probs.get(label).is_some_and(|&prob| prob >= self.abstain_below);
        Classified { label: is_sure.then_some(label), probs }
    }
}

impl Ready {
    /// Tokens that are read.
    #[must_use]
    pub fn num_tokens(&self) -> usize {
        match self {
            Ready::Plain(prompt) => prompt.len(),
            Ready::Labelled(labelled) => labelled.prompt.len(),
        }
    }
}

/// Classifies texts; what comes is in their order. `places` has one for each text, or for the first [`WINDOW`] of them.
///
/// Dropping the future hangs up on all of them.
///
/// # Errors
/// The first failure; the other texts are given up.
pub async fn classify(
    model: &Served,
    classifier: &Classifier,
    places: Vec<Permit>,
    terms: Terms,
    texts: Vec<Ready>,
) -> Result<Vec<Classified>, Error> {
    let num_tokens = texts.iter().map(Ready::num_tokens).sum();
    let mut rows = vec![Vec::new(); texts.len()];
    let (sinks, mut events) = sink::channel(texts.iter().map(|_| 1));
    let (mut flags, mut places) = (Vec::with_capacity(sinks.len()), places.into_iter());
    let mut unsent = texts.into_iter().zip(sinks).enumerate().peekable();
    let (mut inside, mut missing) = (0_usize, rows.len());
    while missing > 0 {
        while inside < WINDOW && unsent.peek().is_some() {
            let Some(place) = next_place(model, &mut places, inside).await? else { break };
            let Some((idx, (text, (sink, enough)))) = unsent.next() else { break };
            flags.push(enough);
            let id = terms.first_id + idx as u64;
            model.workers.submit(place, request(model, id, terms, text, sink))?;
            inside += 1;
        }
        match events.recv().await.ok_or(Error::Lost)? {
            (idx, Event::Embedding(hidden)) => rows[idx as usize] = classifier.numbers(hidden)?,
            (idx, Event::Scores(scores)) => rows[idx as usize] = scores,
            (_, Event::Failed(failure)) => {
                observe::failed();
                return Err(failure.into());
            }
            (_, Event::Started { .. } | Event::Token { .. } | Event::Finished(_)) => continue,
        }
        (inside, missing) = (inside - 1, missing - 1);
    }
    let classified: Vec<Classified> = rows.iter().map(|scores| classifier.judge(scores)).collect();
    observe::read(num_tokens);
    observe::classified(classified.iter().map(|one| one.label.is_some()));
    Ok(classified)
}

/// A place in the queue: one that is held already, or a new one. `None` when there is
/// none now and texts inside will give theirs back.
async fn next_place(
    model: &Model,
    held: &mut impl Iterator<Item = Permit>,
    inside: usize,
) -> Result<Option<Permit>, Error> {
    if let Some(place) = held.next() {
        return Ok(Some(place));
    }
    loop {
        match model.workers.reserve() {
            Ok(place) => return Ok(Some(place)),
            Err(quern_scheduler::Refused::Full { .. }) if inside > 0 => return Ok(None),
            Err(quern_scheduler::Refused::Full { .. }) => tokio::time::sleep(PATIENCE).await,
            Err(closed) => return Err(closed.into()),
        }
    }
}

fn request(
    model: &Served,
    id: u64,
    terms: Terms,
    text: Ready,
    sink: Box<dyn quern_scheduler::request::Sink>,
) -> Request {
    let (prompt, work) = match text {
        Ready::Plain(prompt) => (prompt, Work::Embed { pooling: Pooling::Last, sink }),
        Ready::Labelled(Labelled { prompt, labels, skip_below }) => {
            (prompt, Work::Score(Score { labels, skip_below, sink }))
        }
    };
    Request {
        id,
        prompt,
        adapter: model.adapter_id(),
        tenant: terms.tenant,
        priority: terms.priority,
        deadline: terms.deadline,
        arrived: terms.arrived,
        work,
    }
}

/// Whether a head takes what a model gives.
///
/// # Errors
/// [`Unfit::Hidden`].
pub fn check_hidden(head: &Head, hidden_size: usize) -> Result<(), Unfit> {
    if head.hidden == hidden_size as u64 {
        return Ok(());
    }
    Err(Unfit::Hidden { head: head.hidden, model: hidden_size })
}

/// Whether a list of labels is that of a head.
///
/// # Errors
/// [`Unfit::Labels`].
pub fn check_labels(head: &Head, named: &[String]) -> Result<(), Unfit> {
    if head.labels == named {
        return Ok(());
    }
    let same_length = head.labels.len() == named.len();
    let pairs = head.labels.iter().zip(named).enumerate().filter(|_| same_length);
    let mut different = pairs.filter(|(_, (head, named))| head != named);
    let first = different.next().map(|(idx, (head, named))| (idx, named.clone(), head.clone()));
    Err(Unfit::Labels { named: named.len(), head: head.labels.len(), first })
}

#[cfg(test)]
mod tests;
