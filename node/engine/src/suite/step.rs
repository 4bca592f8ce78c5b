//! Checks of one step: what comes back, in which order, and what is refused.

use super::{MIN_ROWS, Subject, rows_of};
use crate::{AdapterId, EngineError, Output, Row};

/// Outputs come in the order of the rows that asked, whatever lies between.
pub(super) fn outputs_have_shape_and_order(on: &mut Subject) {
    let (left, right) = (on.tokens(1, 7), on.tokens(2, 5));
    let after_left = on.reference(0, &left);
    let after_left_head = on.reference(0, &left[..3]);
    let after_right = on.reference(0, &right);

    let mut rows = rows_of(3, 0, &right, Output::None);
    rows[4].output = Output::Logits;
    let mut tail = rows_of(1, 0, &left, Output::None);
    tail[2].output = Output::Logits;
    tail[6].output = Output::Logits;
    rows.extend(tail);
    let logits = on.logits(&rows);
    assert_eq!(logits.len(), 3);
    on.assert_close("first output", &logits[0], &after_right);
    on.assert_close("second output", &logits[1], &after_left_head);
    on.assert_close("third output", &logits[2], &after_left);

    let more = on.tokens(3, 2);
    let output =
        on.engine.step(&rows_of(1, 7, &more, Output::None)).expect("rows without outputs are computed");
    assert!(output.logits.is_empty() && output.hidden.is_empty(), "nothing was asked for");
}

/// Sequences do not see each other, and sharing a step changes no result.
pub(super) fn a_batch_of_sequences_equals_each_alone(on: &mut Subject) {
    let prompts: Vec<_> = (0..4).map(|seq| on.tokens(10 + seq, 3 + 2 * seq as usize)).collect();
    let alone: Vec<_> = prompts.iter().map(|prompt| on.reference(5, prompt)).collect();

    let mut rows = Vec::new();
    for (seq, prompt) in prompts.iter().enumerate() {
        rows.extend(rows_of(seq as u32, 0, prompt, Output::None));
        rows.last_mut().expect("prompts are not empty").output = Output::Logits;
    }
    let together = on.logits(&rows);
    for (seq, (together, alone)) in together.iter().zip(&alone).enumerate() {
        on.assert_close(&format!("prompt of sequence {seq}"), together, alone);
    }

    // The same once more for single tokens after the prompts.
    let next = on.tokens(20, 4);
    let rows: Vec<Row> = (0..4)
        .map(|seq| {
            rows_of(
                seq,
                prompts[seq as usize].len() as u32,
                &next[seq as usize..=seq as usize],
                Output::Logits,
            )[0]
        })
        .collect();
    let together = on.logits(&rows);
    for (seq, together) in together.iter().enumerate() {
        let whole = [prompts[seq].as_slice(), &next[seq..=seq]].concat();
        let alone = on.reference(5, &whole);
        on.assert_close(&format!("next token of sequence {seq}"), together, &alone);
    }
}

/// How a prompt is cut into steps changes no result.
pub(super) fn chunks_of_any_size_equal_the_whole(on: &mut Subject) {
    let prompt = on.tokens(30, MIN_ROWS);
    let whole = on.reference(0, &prompt);
    for chunk in [1, 2, 3, 5, 8, 13, MIN_ROWS - 1] {
        let chunked = on.feed(1, 0, &prompt, chunk);
        on.assert_close(&format!("chunks of {chunk}"), &chunked, &whole);
        on.engine.truncate(1, 0).expect("a sequence can be dropped");
    }
}

/// Hidden states of chosen rows, batched or alone, are the same and not trivial.
pub(super) fn hidden_states_have_shape_and_meaning(on: &mut Subject) {
    let (left, right) = (on.tokens(40, 9), on.tokens(41, 6));
    let mut rows = rows_of(0, 0, &left, Output::None);
    rows[3].output = Output::Hidden;
    rows[8].output = Output::Hidden;
    let alone = on.hidden(&rows);
    assert_eq!(alone.len(), 2);
    on.assert_differ("hidden states of two positions", &alone[0], &alone[1]);

    let mut batch = rows_of(2, 0, &right, Output::None);
    batch[5].output = Output::Hidden;
    batch.extend(rows.iter().map(|row| Row { seq: 1, ..*row }));
    let together = on.hidden(&batch);
    assert_eq!(together.len(), 3);
    on.assert_close("first hidden state", &together[1], &alone[0]);
    on.assert_close("second hidden state", &together[2], &alone[1]);

    // Asking for hidden states leaves the same state behind as asking for nothing.
    let next = on.tokens(42, 1);
    let continued = on.feed(0, 9, &next, 1);
    let whole = [left.as_slice(), &next].concat();
    let recomputed = on.reference(3, &whole);
    on.assert_close("logits after hidden states", &continued, &recomputed);
}

/// Both outputs in one step, where the engine says that it can.
pub(super) fn logits_and_hidden_states_mix_or_are_refused(on: &mut Subject) {
    let tokens = on.tokens(50, 6);
    let mut rows = rows_of(0, 0, &tokens, Output::None);
    rows[1].output = Output::Hidden;
    rows[2].output = Output::Logits;
    rows[4].output = Output::Hidden;
    rows[5].output = Output::Logits;
    if !on.caps.mixes_outputs {
        let refused = on.engine.step(&rows);
        assert!(matches!(refused, Err(EngineError::InvalidBatch { .. })), "mixed outputs are refused");
        return;
    }
    let (logits, hidden) = {
        let output = on.engine.step(&rows).expect("mixed outputs are computed");
        (output.logits.to_vec(), output.hidden.to_vec())
    };
    assert_eq!(logits.len(), 2 * on.caps.vocab_size);
    assert_eq!(hidden.len(), 2 * on.caps.hidden_size);
    let separately = [on.reference(1, &tokens[..3]), on.reference(1, &tokens)].concat();
    for (got, want) in logits.chunks(on.caps.vocab_size).zip(separately.chunks(on.caps.vocab_size)) {
        on.assert_close("logits beside hidden states", got, want);
    }
    let rows: Vec<_> = rows
        .iter()
        .map(|row| Row {
            seq: 1,
            output: if row.output == Output::Logits { Output::None } else { row.output },
            ..*row
        })
        .collect();
    let separately = on.hidden(&rows).concat();
    for (got, want) in hidden.chunks(on.caps.hidden_size).zip(separately.chunks(on.caps.hidden_size)) {
        on.assert_close("hidden states beside logits", got, want);
    }
}

/// A batch that breaks the contract is refused whole.
pub(super) fn invalid_batches_change_nothing(on: &mut Subject) {
    let prompt = on.tokens(60, 10);
    on.feed(0, 0, &prompt[..6], 6);
    let good = rows_of(0, 6, &prompt[6..], Output::Logits);
    let with = |idx: usize, change: &dyn Fn(&mut Row)| {
        let mut rows = good.clone();
        change(&mut rows[idx]);
        rows
    };
    let (max_sequences, vocab_size) = (on.caps.max_sequences as u32, on.caps.vocab_size as u32);
    let bad = [
        ("an empty batch", Vec::new()),
        ("a sequence out of range", with(2, &|row| row.seq = max_sequences)),
        ("a token out of range", with(1, &|row| row.token = vocab_size)),
        ("a gap before the first row", with(0, &|row| row.pos = 7)),
        ("a gap between rows", with(3, &|row| row.pos = 10)),
        ("a position twice", with(1, &|row| row.pos = 6)),
        ("a position already computed", with(0, &|row| row.pos = 5)),
        ("an empty sequence that does not start at 0", with(3, &|row| (row.seq, row.pos) = (2, 1))),
        (
            "a position past the longest sequence",
            rows_of(1, on.caps.max_sequence_len as u32, &prompt[..1], Output::None),
        ),
        ("too many rows", rows_of(1, 0, &on.tokens(61, on.caps.max_rows + 1), Output::None)),
        ("too many outputs", rows_of(1, 0, &on.tokens(62, on.caps.max_outputs + 1), Output::Logits)),
    ];
    for (what, rows) in &bad {
        let refused = on.engine.step(rows).map(|_| ());
        assert!(
            matches!(refused, Err(EngineError::InvalidBatch { .. })),
            "{what} must be refused, got {refused:?}"
        );
    }
    let logits = on.logits(&good).pop().expect("four outputs were asked for");
    let recomputed = on.reference(1, &prompt);
    on.assert_close("logits after refused batches", &logits, &recomputed);
}

/// Rows of an adapter that is not there, and files that are none.
pub(super) fn unknown_adapters_are_refused(on: &mut Subject) {
    let token = on.tokens(70, 1);
    let rows: Vec<_> = rows_of(0, 0, &token, Output::Logits)
        .into_iter()
        .map(|row| Row { adapter: AdapterId(7), ..row })
        .collect();
    assert!(on.engine.step(&rows).is_err(), "an adapter that was never loaded");
    assert!(on.engine.unload_adapter(AdapterId(7)).is_err(), "unloading what was never loaded");
    let missing = std::path::Path::new("no-such-adapter.gguf");
    assert!(on.engine.load_adapter(AdapterId(7), missing).is_err(), "a file that is not there");
    assert!(on.engine.step(&rows).is_err(), "a failed load leaves nothing behind");
    on.reference(0, &token);
}
