//! `quern eval --text`: perplexities of several models on one text.

use std::fs;
use std::path::Path;
use std::time::Instant;

use quern_engine::TokenId;

use super::perplexity::{Cut, judge};
use super::report::{Against, Perplexity, TextReport};
use super::scores::{Estimate, difference, estimate};
use super::subject::{Machine, Needs, Subject};
use super::{EvalArgs, EvalError, bar};

/// Each output costs two rows of logits in memory.
const MAX_OUTPUTS: u32 = 128;

/// What one model made of the text.
struct Judged {
    perplexity: Perplexity,
    /// One for each judged token.
    losses: Vec<f64>,
    tokens: Vec<TokenId>,
}

pub(super) fn run(args: &EvalArgs, text: &Path, machine: &Machine) -> Result<TextReport, EvalError> {
    let content = read_text(text)?;
    let mut judged: Vec<Judged> = Vec::new();
    for model in &args.models {
        let next = one(args, model, text, &content, machine)?;
        judged.push(next);
    }
    let (first, others) = judged.split_at_mut(1);
    for other in others {
        // Tokens of another vocabulary are another text.
        let comparable = other.tokens == first[0].tokens;
        other.perplexity.against_first = comparable.then(|| against(&first[0], other));
    }
    Ok(TextReport {
        text: text.display().to_string(),
        context: args.reading.context,
        stride: args.reading.stride.unwrap_or(args.reading.context),
        adapter: args.adapter.as_ref().map(|path| path.display().to_string()),
        models: judged.into_iter().map(|judged| judged.perplexity).collect(),
    })
}

/// The text of a file; bytes that are no UTF-8 are replaced.
pub(super) fn read_text(path: &Path) -> Result<String, EvalError> {
    let bytes = fs::read(path).map_err(|source| EvalError::File { path: path.to_owned(), source })?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// How a model reads a text in windows, where the text and the model are long enough for it.
pub(super) fn cut(
    subject: &Subject,
    tokens: &[TokenId],
    text: &Path,
    (context, stride, chunks): (u32, Option<u32>, Option<u32>),
) -> Result<Cut, EvalError> {
    let cut = Cut {
        context: context as usize,
        stride: stride.unwrap_or(context) as usize,
        max_windows: chunks.map_or(usize::MAX, |chunks| chunks as usize),
        bos: subject.tokenizer.bos().filter(|_| subject.tokenizer.adds_bos()),
    };
    if cut.context > subject.trained_context {
        let (what, limit) = ("a window".to_owned(), subject.trained_context);
        return Err(EvalError::TooLong { what, tokens: cut.context, limit });
    }
    if cut.num_windows(tokens.len()) == 0 {
        let (path, tokens) = (text.to_owned(), tokens.len());
        return Err(EvalError::TooShort { path, tokens, context: cut.context });
    }
    Ok(cut)
}

fn one(
    args: &EvalArgs,
    model: &str,
    text: &Path,
    content: &str,
    machine: &Machine,
) -> Result<Judged, EvalError> {
    let subject = Subject::open(model, args.adapter.as_deref())?;
    let tokens = subject.text(content)?;
    let reading = &args.reading;
    let cut = cut(&subject, &tokens, text, (reading.context, reading.stride, reading.chunks))?;
    let needs = Needs { kv_capacity: cut.context, max_sequences: 1, max_outputs: MAX_OUTPUTS };
    let (mut engine, adapter) = subject.engine(needs, machine)?;
    let num_windows = cut.num_windows(tokens.len());
    let bar = bar(num_windows * (cut.context - 1), &subject.name);
    let began = Instant::now();
    let losses = judge(&mut engine, adapter, &tokens, &cut, &mut |rows| bar.inc(rows as u64))?;
    let seconds = began.elapsed().as_secs_f64();
    bar.finish_and_clear();
    let losses: Vec<f64> = losses.into_iter().map(f64::from).collect();
    let loss = estimate(&losses);
    let perplexity = Perplexity {
        model: subject.name,
        perplexity: Estimate { mean: loss.mean.exp(), error: loss.mean.exp() * loss.error },
        loss,
        num_windows,
        num_judged: losses.len(),
        tokens_per_second: (num_windows * (cut.context - 1)) as f64 / seconds,
        against_first: None,
    };
    Ok(Judged { perplexity, losses, tokens })
}

/// Differences token by token: what is hard for both cancels out.
fn against(first: &Judged, other: &Judged) -> Against {
    let loss = difference(&first.losses, &other.losses);
    let (ours, theirs) = (first.perplexity.perplexity.mean, other.perplexity.perplexity.mean);
    // The difference of two exponentials, to first order in the losses.
    let scaled = |losses: &[f64], by: f64| losses.iter().map(|loss| loss * by).collect::<Vec<f64>>();
    let error = difference(&scaled(&first.losses, ours), &scaled(&other.losses, theirs)).error;
    Against {
        perplexity: Estimate { mean: theirs - ours, error },
        ratio: Estimate { mean: loss.mean.exp(), error: loss.mean.exp() * loss.error },
    }
}
