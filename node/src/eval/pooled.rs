//! The last hidden states of many texts.
//!
//! Short texts are read together: each step is filled with rows of as many texts as fit,
//! and a text that does not fit goes on in the next. This file knows tokens and an
//! engine; it must not know files or text.

use quern_engine::{AdapterId, Engine, EngineError, Output, Row, SeqId, TokenId};

/// One step's share of a text: rows from one position up to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Share {
    text_idx: usize,
    seq: SeqId,
    from: usize,
    to: usize,
}

/// Reads texts, each of at least one token, and calls `found` with each one's number and
/// the hidden state of its last token, in the order in which they are done.
///
/// # Errors
/// The engine's. A text must fit into a sequence, and its state into the capacity beside
/// one step's rows of others.
pub fn read(
    engine: &mut dyn Engine,
    adapter: AdapterId,
    texts: &[Vec<TokenId>],
    found: &mut dyn FnMut(usize, &[f32]),
) -> Result<(), EngineError> {
    let mut carried: Option<Share> = None;
    let mut next_idx = 0;
    while carried.is_some() || next_idx < texts.len() {
        let shares = fill(engine, texts, carried, &mut next_idx);
        let rows: Vec<Row> = shares.iter().flat_map(|share| rows_of(share, texts, adapter)).collect();
        let hidden_size = engine.capabilities().hidden_size;
        let hidden = engine.step(&rows)?.hidden;
        let is_done = |share: &&Share| share.to == texts[share.text_idx].len();
        for (share, state) in shares.iter().filter(is_done).zip(hidden.chunks_exact(hidden_size)) {
            found(share.text_idx, state);
        }
        for share in shares.iter().filter(is_done) {
            engine.truncate(share.seq, 0)?;
        }
        carried = shares.last().filter(|share| !is_done(share)).copied();
    }
    Ok(())
}

/// What the next step reads: the rest of the text that was cut, then further ones. Only
/// the last may be cut, and keeps its sequence.
fn fill(
    engine: &dyn Engine,
    texts: &[Vec<TokenId>],
    carried: Option<Share>,
    next_idx: &mut usize,
) -> Vec<Share> {
    let caps = engine.capabilities();
    let (mut rows_left, most) = (caps.max_rows, caps.max_sequences.min(caps.max_outputs));
    let mut shares: Vec<Share> = Vec::new();
    if let Some(cut) = carried {
        let to = texts[cut.text_idx].len().min(cut.to + rows_left);
        rows_left -= to - cut.to;
        shares.push(Share { from: cut.to, to, ..cut });
    }
    while rows_left > 0 && shares.len() < most && *next_idx < texts.len() {
        // Everybody but a text that is carried on is new, so its number is the only one taken.
        let taken = carried.map(|cut| cut.seq);
        let seq = (0..).filter(|seq| Some(*seq) != taken).nth(shares.len() - usize::from(taken.is_some()));
        let seq = seq.expect("numbers do not run out");
        let to = texts[*next_idx].len().min(rows_left);
        rows_left -= to;
        shares.push(Share { text_idx: *next_idx, seq, from: 0, to });
        *next_idx += 1;
    }
    shares
}

fn rows_of(share: &Share, texts: &[Vec<TokenId>], adapter: AdapterId) -> impl Iterator<Item = Row> {
    let tokens = &texts[share.text_idx];
    let &Share { seq, from, to, .. } = share;
    tokens[from..to].iter().zip(from..).map(move |(&token, pos)| Row {
        seq,
        pos: pos as u32,
        token,
        adapter,
        output: if pos + 1 == tokens.len() { Output::Hidden } else { Output::None },
    })
}

#[cfg(test)]
mod tests {
    use quern_engine::fake::{FakeConfig, FakeEngine};

    use super::*;

    /// Texts of these lengths, no two alike.
    fn texts(lens: &[usize]) -> Vec<Vec<TokenId>> {
        let text =
            |(idx, &len): (usize, &usize)| (0..len).map(|pos| (idx * 31 + pos * 7) as u32 % 300).collect();
        lens.iter().enumerate().map(text).collect()
    }

    fn engine(max_rows: usize, max_sequences: usize) -> FakeEngine {
        let mut config = FakeConfig::default();
        let caps = &mut config.capabilities;
        (caps.max_rows, caps.max_sequences, caps.max_outputs) = (max_rows, max_sequences, max_sequences);
        FakeEngine::new(config)
    }

    fn states(engine: &mut FakeEngine, texts: &[Vec<TokenId>]) -> Vec<Vec<f32>> {
        let mut states = vec![Vec::new(); texts.len()];
        read(engine, AdapterId::BASE, texts, &mut |idx, state| {
            assert!(states[idx].is_empty(), "each text is read once");
            states[idx] = state.to_vec();
        })
        .expect("all of it fits");
        assert_eq!(engine.kv_used(), 0, "nothing is left behind");
        states
    }

    #[test]
    fn texts_read_together_are_as_read_alone() {
        let texts = texts(&[3, 1, 40, 2, 2, 9, 1, 1, 1, 1, 17, 33, 5]);
        let alone: Vec<Vec<f32>> =
            texts.iter().flat_map(|text| states(&mut engine(64, 1), std::slice::from_ref(text))).collect();
        assert!(alone.iter().all(|state| !state.is_empty()));
        for (max_rows, max_sequences) in [(512, 64), (8, 3), (1, 1), (5, 64), (16, 2)] {
            assert_eq!(
                states(&mut engine(max_rows, max_sequences), &texts),
                alone,
                "{max_rows} {max_sequences}"
            );
        }
        assert!(states(&mut engine(8, 3), &[]).is_empty());
    }
}
