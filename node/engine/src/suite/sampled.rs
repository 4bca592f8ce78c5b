//! Checks of tokens that the engine draws. An engine that does not sample has to refuse them.

use super::{MIN_OUTPUTS, MIN_ROWS, Subject, rows_of};
use crate::draw::{allows, drawn, mask_words};
use crate::{Draw, EngineError, Output, Row, TokenId};

/// How wrong an engine's sums may be, as a part of the total.
const SLACK: f64 = 1e-5;

const WARM: Draw = Draw { temperature: 1.0, seed: 11, ..Draw::GREEDY };

/// Every way to draw, alone and together.
const DRAWS: [Draw; 8] = [
    Draw::GREEDY,
    WARM,
    Draw { temperature: 0.4, seed: u64::MAX, ..WARM },
    Draw { top_k: 3, ..WARM },
    Draw { top_p: 0.7, ..WARM },
    Draw { min_p: 0.2, ..WARM },
    Draw { temperature: 1.6, top_k: 40, top_p: 0.9, min_p: 0.02, ..WARM },
    Draw { temperature: f32::INFINITY, top_k: 50, ..WARM },
];

impl Subject {
    /// Steps rows and copies the drawn tokens out.
    fn sampled(&mut self, rows: &[Row], masks: &[u32]) -> Vec<Option<TokenId>> {
        let wanted = rows.iter().filter(|row| matches!(row.output, Output::Token(_))).count();
        let output = self.engine.step_masked(rows, masks).expect("a valid batch is computed");
        assert_eq!(output.tokens.len(), wanted, "there is a token for each row that asked");
        output.tokens.to_vec()
    }

    /// What the contract allows for a draw behind the last of `tokens`, from logits that are as wrong as
    /// the tolerance says.
    #[track_caller]
    fn assert_drawn(
        &self,
        found: Option<TokenId>,
        logits: &[f32],
        draw: Draw,
        at: u32,
        mask: Option<&[u32]>,
    ) {
        let scale = logits.iter().fold(0f32, |scale, value| scale.max(value.abs()));
        let noise = f64::from(self.tolerance * scale) * 4.0 / f64::from(draw.temperature.max(0.1));
        let within = drawn(logits, draw, at, mask, SLACK + noise);
        let is_right = match (found, &within) {
            (Some(token), Some(within)) => within.contains(&token) || noise > 0.0 && draw.temperature <= 0.0,
            (None, None) => true,
            _ => false,
        };
        assert!(is_right, "{draw:?} at {at} gave {found:?}, expected {within:?}");
        let is_allowed = |token: TokenId| mask.is_none_or(|mask| allows(mask, token));
        assert!(found.is_none_or(is_allowed), "{found:?} is not in the mask");
        if let (Some(token), true) = (found, draw.temperature <= 0.0) {
            let best = (0..).zip(logits).filter(|&(token, _)| is_allowed(token));
            let best = best.fold(f32::NEG_INFINITY, |best, (_, logit)| best.max(*logit));
            assert!(
                logits[token as usize] >= best - 2.0 * self.tolerance * scale,
                "a greedy draw of {token}"
            );
        }
    }
}

/// An engine draws where it says that it does, and else refuses a batch whole.
pub(super) fn tokens_are_drawn_or_refused(on: &mut Subject) {
    let tokens = on.tokens(80, 4);
    let mut rows = rows_of(0, 0, &tokens, Output::None);
    rows[3].output = Output::Token(Draw { mask: Some(1), ..WARM });
    let masks = vec![u32::MAX; mask_words(on.caps.vocab_size)];
    let named = on.engine.step_masked(&rows, &masks).map(|_| ());
    assert!(named.is_err(), "a mask that is not there");
    rows[3].output = Output::Token(WARM);
    let result = on.engine.step(&rows).map(|output| output.tokens.len());
    if on.caps.samples {
        assert_eq!(result.expect("an engine that samples draws"), 1);
        let cut = on.engine.step_masked(&rows, &masks[1..]).map(|_| ());
        assert!(matches!(cut, Err(EngineError::InvalidBatch { .. })), "masks are whole: {cut:?}");
    } else {
        assert!(matches!(result, Err(EngineError::InvalidBatch { .. })), "it does not sample: {result:?}");
        // Nothing has changed: the sequence still begins at 0.
        on.feed(0, 0, &tokens, 4);
    }
}

/// Greedy is the largest logit, ties to the lowest token; other draws are those of the seed at their
/// position. Nor does it matter which rows stand beside them.
pub(super) fn draws_are_what_the_contract_says(on: &mut Subject) {
    if !on.caps.samples {
        return;
    }
    for (salt, draw) in (0..).zip(DRAWS) {
        let tokens = on.tokens(90 + salt, MIN_ROWS);
        let last = MIN_ROWS - MIN_OUTPUTS;
        let mut rows = rows_of(0, 0, &tokens, Output::None);
        rows[last..].iter_mut().for_each(|row| row.output = Output::Logits);
        let logits = on.logits(&rows);
        let ask = |row: &Row| match row.output {
            Output::Logits => Row { seq: 1, output: Output::Token(draw), ..*row },
            _ => Row { seq: 1, ..*row },
        };
        let asked: Vec<Row> = rows.iter().map(ask).collect();
        let together = on.sampled(&asked, &[]);
        for (idx, (found, logits)) in together.iter().zip(&logits).enumerate() {
            on.assert_drawn(*found, logits, draw, (last + idx + 1) as u32, None);
        }
        on.engine.truncate(1, last as u32).expect("a sequence can be cut");
        for (row, together) in asked[last..].iter().zip(together) {
            let alone = on.sampled(&[*row], &[]);
            if on.tolerance == 0.0 {
                assert_eq!(alone, [together], "alone as together, {draw:?}");
            }
        }
        (0..2).for_each(|seq| on.engine.truncate(seq, 0).expect("a sequence can be dropped"));
    }
}

/// Only what a mask allows is drawn, each row by its own mask; nothing, where it allows nothing.
pub(super) fn masks_are_honoured(on: &mut Subject) {
    if !on.caps.samples {
        return;
    }
    let (vocab, words) = (on.caps.vocab_size, mask_words(on.caps.vocab_size));
    let tokens = on.tokens(100, 4);
    let logits = on.reference(0, &tokens);
    // Every third token, the last one alone, and none; bits past the vocabulary are set in all.
    let mut masks = vec![0_u32; 3 * words];
    let mut allow = |mask: usize, token: usize| masks[mask * words + token / 32] |= 1 << (token % 32);
    (0..vocab).step_by(3).for_each(|token| allow(0, token));
    allow(1, vocab - 1);
    (0..3).for_each(|mask| (vocab..words * 32).for_each(|past| allow(mask, past)));
    for draw in DRAWS {
        let named = [Some(0), Some(1), Some(2), None, Some(0)];
        let mut rows = Vec::new();
        for (seq, mask) in (0..).zip(named) {
            rows.extend(rows_of(seq, 0, &tokens, Output::None));
            rows.last_mut().expect("there are tokens").output = Output::Token(Draw { mask, ..draw });
        }
        let found = on.sampled(&rows, &masks);
        for (mask, found) in named.into_iter().zip(&found) {
            let mask = mask.and_then(|mask| masks.chunks(words).nth(mask as usize));
            on.assert_drawn(*found, &logits, draw, 4, mask);
        }
        assert_eq!(found[1..3], [Some(vocab as TokenId - 1), None]);
        (0..5).for_each(|seq| on.engine.truncate(seq, 0).expect("a sequence can be dropped"));
    }
}

/// Rows that sample, rows with logits and, where outputs mix, with hidden states are told apart.
pub(super) fn drawn_tokens_stand_beside_other_outputs(on: &mut Subject) {
    if !on.caps.samples {
        return;
    }
    let tokens = on.tokens(110, 8);
    let logits: Vec<Vec<f32>> = (1..=8).map(|len| on.reference(0, &tokens[..len])).collect();
    let beside = if on.caps.mixes_outputs { Output::Hidden } else { Output::None };
    let outputs = [
        Output::Token(WARM),
        Output::Logits,
        beside,
        Output::Token(Draw::GREEDY),
        beside,
        Output::Logits,
        Output::None,
        Output::Token(DRAWS[6]),
    ];
    let mut rows = rows_of(1, 0, &tokens, Output::None);
    rows.iter_mut().zip(outputs).for_each(|(row, output)| row.output = output);
    let hidden_of = |rows: &[Row]| -> Vec<Row> {
        let only = |output| if output == Output::Hidden { output } else { Output::None };
        rows.iter().map(|row| Row { seq: 2, output: only(row.output), ..*row }).collect()
    };
    let hidden = on.hidden(&hidden_of(&rows)).concat();
    let output = on.engine.step_masked(&rows, &[]).expect("a valid batch is computed");
    let (found, beside, hidden_beside) =
        (output.tokens.to_vec(), output.logits.to_vec(), output.hidden.to_vec());
    let vocab = on.caps.vocab_size;
    assert_eq!((found.len(), beside.len()), (3, 2 * vocab));
    for (found, (draw, idx)) in found.into_iter().zip([(WARM, 0), (Draw::GREEDY, 3), (DRAWS[6], 7)]) {
        on.assert_drawn(found, &logits[idx], draw, idx as u32 + 1, None);
    }
    on.assert_close("logits beside drawn tokens", &beside[..vocab], &logits[1]);
    on.assert_close("logits beside drawn tokens", &beside[vocab..], &logits[5]);
    assert_eq!(hidden_beside.len(), hidden.len());
    if on.caps.mixes_outputs {
        on.assert_close("hidden states beside drawn tokens", &hidden_beside, &hidden);
    }
}
