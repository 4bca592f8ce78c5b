//! How likely a model that answers in words is to say each label.
//!
//! The score of a label is the log-probability of its tokens after the prompt; which
//! tokens those are, [`LabelTask`](crate::serving::LabelTask) says. Nothing is sampled and
//! nothing left out, so the scores are exact. What all prompts begin with is computed
//! once, and a prompt's labels share its state.
//! This file knows tokens and an engine; it must not know files or text.

use std::sync::Arc;

use quern_engine::{AdapterId, Engine, EngineError, Output, Row, SeqId, TokenId};
use quern_scheduler::LabelTrie;

use super::perplexity::negative_log_likelihoods;

/// Holds what all prompts begin with.
const ROOT: SeqId = 0;
/// Holds the prompt in work.
const PROMPT: SeqId = 1;
/// The first of those that hold a label behind the prompt.
const FIRST_LABEL: SeqId = 2;

/// A prompt, and the labels that may follow on it.
#[derive(Debug, Clone)]
pub struct Question {
    /// At least one token.
    pub prompt: Arc<[TokenId]>,
    /// In the order of their scores.
    pub labels: Arc<LabelTrie>,
}

/// For each prompt the log-probability of each of its labels. `progress` is called after
/// each prompt.
///
/// # Errors
/// The engine's. It must take at least three sequences, and its capacity must hold the
/// longest prompt and all labels.
///
/// # Panics
/// When a prompt is empty.
pub fn score(
    engine: &mut dyn Engine,
    adapter: AdapterId,
    questions: &[Question],
    progress: &mut dyn FnMut(),
) -> Result<Vec<Vec<f32>>, EngineError> {
    let shared = common_prefix(questions);
    if shared > 0 {
        extend(engine, adapter, ROOT, &questions[0].prompt[..shared], 0)?;
    }
    let mut scores = Vec::with_capacity(questions.len());
    for Question { prompt, labels } in questions {
        let labels = labels.labels();
        engine.fork(ROOT, PROMPT, shared as u32)?;
        let logits = extend(engine, adapter, PROMPT, &prompt[shared..], shared)?;
        let at_once = engine.capabilities().max_sequences - FIRST_LABEL as usize;
        let mut of_prompt = Vec::with_capacity(labels.len());
        for labels in labels.chunks(at_once) {
            of_prompt.extend(after(engine, adapter, &logits, prompt.len(), labels)?);
        }
        scores.push(of_prompt);
        engine.truncate(PROMPT, 0)?;
        progress();
    }
    engine.truncate(ROOT, 0)?;
    Ok(scores)
}

/// Tokens that all prompts begin with, short of any prompt's last.
fn common_prefix(questions: &[Question]) -> usize {
    let Some(first) = questions.first() else { return 0 };
    let alike = |Question { prompt, .. }: &Question| {
        let same = first.prompt.iter().zip(prompt.iter()).take_while(|(a, b)| a == b).count();
        same.min(prompt.len() - 1)
    };
    questions.iter().map(alike).min().unwrap_or(0)
}

/// Adds tokens to a sequence of `len` and gives the logits of the last.
fn extend(
    engine: &mut dyn Engine,
    adapter: AdapterId,
    seq: SeqId,
    tokens: &[TokenId],
    len: usize,
) -> Result<Vec<f32>, EngineError> {
    let max_rows = engine.capabilities().max_rows;
    let last = len + tokens.len() - 1;
    let row = |(pos, &token): (usize, &TokenId)| {
        let output = if pos == last { Output::Logits } else { Output::None };
        Row { seq, pos: pos as u32, token, adapter, output }
    };
    let rows: Vec<Row> = (len..).zip(tokens).map(row).collect();
    let mut logits = Vec::new();
    for rows in rows.chunks(max_rows) {
        logits = engine.step(rows)?.logits.to_vec();
    }
    Ok(logits)
}

/// The log-probabilities of labels behind the prompt, whose last row gave `logits`.
fn after(
    engine: &mut dyn Engine,
    adapter: AdapterId,
    logits: &[f32],
    prompt_len: usize,
    labels: &[Vec<TokenId>],
) -> Result<Vec<f32>, EngineError> {
    let vocab_size = engine.capabilities().vocab_size;
    let first =
        |label: &Vec<TokenId>| -f64::from(negative_log_likelihoods(logits, vocab_size, &label[..1])[0]);
    let mut scores: Vec<f64> = labels.iter().map(first).collect();
    // Each row but a label's last token, which nothing follows on, with its label and what it should say next.
    let mut rows = Vec::new();
    for (idx, (label, seq)) in labels.iter().zip(FIRST_LABEL..).enumerate() {
        engine.fork(PROMPT, seq, prompt_len as u32)?;
        for (offset, pair) in label.windows(2).enumerate() {
            let pos = (prompt_len + offset) as u32;
            rows.push((idx, pair[1], Row { seq, pos, token: pair[0], adapter, output: Output::Logits }));
        }
    }
    let caps = engine.capabilities();
    let most = caps.max_rows.min(caps.max_outputs);
    for part in rows.chunks(most) {
        let batch: Vec<Row> = part.iter().map(|(_, _, row)| *row).collect();
        let targets: Vec<TokenId> = part.iter().map(|(_, target, _)| *target).collect();
        let losses = negative_log_likelihoods(engine.step(&batch)?.logits, vocab_size, &targets);
        part.iter().zip(losses).for_each(|((idx, _, _), loss)| scores[*idx] -= f64::from(loss));
    }
    for (seq, _) in (FIRST_LABEL..).zip(labels) {
        engine.truncate(seq, 0)?;
    }
    Ok(scores.into_iter().map(|score| score as f32).collect())
}

#[cfg(test)]
mod tests {
    use quern_engine::fake::{FakeConfig, FakeEngine};

    use super::*;

    fn engine(max_sequences: usize, max_rows: usize) -> FakeEngine {
        let mut config = FakeConfig::default();
        let caps = &mut config.capabilities;
        (caps.max_sequences, caps.max_rows, caps.max_outputs) = (max_sequences, max_rows, max_rows);
        FakeEngine::new(config)
    }

    /// The score from one sequence that is read token by token.
    fn plainly(prompt: &[TokenId], label: &[TokenId]) -> f32 {
        let mut engine = engine(1, 1);
        let vocab_size = engine.capabilities().vocab_size;
        let mut sum = 0.0;
        for (pos, pair) in [prompt, label].concat().windows(2).enumerate() {
            let row = Row {
                seq: 0,
                pos: pos as u32,
                token: pair[0],
                adapter: AdapterId::BASE,
                output: Output::Logits,
            };
            let logits = engine.step(&[row]).expect("it fits").logits;
            if pos + 1 >= prompt.len() {
                sum -= f64::from(negative_log_likelihoods(logits, vocab_size, &pair[1..])[0]);
            }
        }
        sum as f32
    }

    #[test]
    fn scores_are_those_of_each_label_by_itself() {
        let prompts = [vec![1, 2, 3, 4, 5], vec![1, 2, 3, 9], vec![1, 2, 3], vec![1, 2, 3, 4, 6, 7, 8, 9]];
        let some = vec![vec![10, 300], vec![10, 11, 300], vec![12, 13, 14, 300], vec![300]];
        let others = vec![vec![10], vec![10, 11], vec![20, 21, 22]];
        let labels = [&some, &some, &others, &some];
        let expected: Vec<Vec<f32>> = prompts
            .iter()
            .zip(labels)
            .map(|(prompt, labels)| labels.iter().map(|label| plainly(prompt, label)).collect())
            .collect();
        let question = |(prompt, labels): (&Vec<TokenId>, &Vec<Vec<TokenId>>)| Question {
            prompt: prompt.as_slice().into(),
            labels: Arc::new(LabelTrie::new(labels).expect("no label is empty")),
        };
        let questions: Vec<Question> = prompts.iter().zip(labels).map(question).collect();
        assert_eq!(common_prefix(&questions), 2);
        for (max_sequences, max_rows) in [(64, 64), (3, 64), (4, 2), (3, 1)] {
            let mut engine = engine(max_sequences, max_rows);
            let mut num_done = 0;
            let found = score(&mut engine, AdapterId::BASE, &questions, &mut || num_done += 1);
            assert_eq!(found.expect("it fits"), expected, "{max_sequences} {max_rows}");
            assert_eq!((engine.kv_used(), num_done), (0, prompts.len()));
        }
    }
}
