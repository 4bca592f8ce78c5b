//! Checks of the state between steps: fork, truncate, save, restore, and room.

use super::{MIN_ROWS, Subject, rows_of};
use crate::{EngineError, Output};

/// Branches of one prefix each continue as if they had computed it.
pub(super) fn a_fork_equals_recomputing(on: &mut Subject) {
    let (prefix, left, right) = (on.tokens(100, 12), on.tokens(101, 4), on.tokens(102, 4));
    on.feed(0, 0, &prefix, 12);
    on.engine.fork(0, 1, 12).expect("a whole sequence is shared");
    on.engine.fork(0, 2, 5).expect("a part of a sequence is shared");
    let of_source = on.feed(0, 12, &left, 4);
    let of_fork = on.feed(1, 12, &right, 4);
    let of_part = on.feed(2, 5, &right, 2);
    // The source may go away, or be cut inside the shared part, and the forks stay.
    on.engine.truncate(0, 3).expect("the source of a fork can be cut");
    let next = on.tokens(103, 1);
    let of_fork_later = on.feed(1, 16, &next, 1);
    on.engine.truncate(0, 0).expect("the source of a fork can be dropped");

    let recomputed = on.reference(5, &[prefix.as_slice(), &left].concat());
    on.assert_close("the source after a fork", &of_source, &recomputed);
    let recomputed = on.reference(5, &[prefix.as_slice(), &right].concat());
    on.assert_close("a fork of the whole", &of_fork, &recomputed);
    let recomputed = on.reference(5, &[&prefix[..5], &right].concat());
    on.assert_close("a fork of a part", &of_part, &recomputed);
    let recomputed = on.reference(5, &[prefix.as_slice(), &right, &next].concat());
    on.assert_close("a fork whose source was cut", &of_fork_later, &recomputed);
}

/// Shared tokens count once.
pub(super) fn forks_share_room(on: &mut Subject) {
    let lens = on.fill();
    let (source, &len) =
        lens.iter().enumerate().max_by_key(|(_, len)| **len).expect("an engine has sequences");
    on.engine.fork(source as u32, 0, len).expect("a fork needs no room, even when there is none");
    on.engine.truncate(0, 0).expect("a fork can be dropped");
    let refused = on.engine.step(&rows_of(0, 0, &[0], Output::None)).map(|_| ());
    assert!(
        matches!(refused, Err(EngineError::OutOfKv { .. })),
        "dropping a fork frees nothing shared: {refused:?}"
    );
}

/// Forking never overwrites.
pub(super) fn a_fork_into_a_used_sequence_is_refused(on: &mut Subject) {
    let (left, right) = (on.tokens(110, 6), on.tokens(111, 6));
    on.feed(0, 0, &left, 6);
    on.feed(1, 0, &right[..5], 5);
    assert!(on.engine.fork(0, 1, 6).is_err(), "the target holds tokens");
    assert!(on.engine.fork(0, 2, 7).is_err(), "the source is shorter");
    assert!(on.engine.fork(0, on.caps.max_sequences as u32, 6).is_err(), "no such target");
    assert!(on.engine.fork(on.caps.max_sequences as u32, 2, 1).is_err(), "no such source");
    assert!(on.engine.truncate(on.caps.max_sequences as u32, 0).is_err(), "no such sequence");
    let continued = on.feed(1, 5, &right[5..], 1);
    let recomputed = on.reference(5, &right);
    on.assert_close("the target after a refused fork", &continued, &recomputed);
    on.reference(2, &left);
}

/// Rolling back leaves no trace of what was rolled back.
pub(super) fn truncating_then_continuing_equals_recomputing(on: &mut Subject) {
    let (kept, dropped, added) = (on.tokens(120, 9), on.tokens(121, 6), on.tokens(122, 5));
    on.feed(0, 0, &[kept.as_slice(), &dropped].concat(), 4);
    on.engine.truncate(0, 9).expect("a sequence can be cut");
    on.engine.truncate(0, 9).expect("cutting at the end changes nothing");
    on.engine.truncate(0, 50).expect("cutting past the end changes nothing");
    let continued = on.feed(0, 9, &added, 5);
    let recomputed = on.reference(1, &[kept.as_slice(), &added].concat());
    on.assert_close("after a cut", &continued, &recomputed);
    on.engine.truncate(0, 0).expect("a sequence can be dropped");
    let afresh = on.feed(0, 0, &dropped, 3);
    let recomputed = on.reference(1, &dropped);
    on.assert_close("after a drop", &afresh, &recomputed);
}

/// What a dropped sequence held can be used again, all of it and many times.
pub(super) fn dropping_a_sequence_frees_its_room(on: &mut Subject) {
    let lens = on.fill();
    let (victim, len) = lens
        .iter()
        .enumerate()
        .find(|(_, len)| **len > 0)
        .map(|(seq, len)| (seq as u32, *len))
        .expect("a full engine has a sequence");
    let tokens = on.tokens(130, len as usize);
    for _ in 0..3 {
        on.engine.truncate(victim, 0).expect("a sequence can be dropped");
        on.feed(0, 0, &tokens, MIN_ROWS);
        on.engine.truncate(0, 0).expect("a sequence can be dropped");
        on.feed(victim, 0, &tokens, MIN_ROWS);
    }
    let refused = on.engine.step(&rows_of(0, 0, &[0], Output::None)).map(|_| ());
    assert!(
        matches!(refused, Err(EngineError::OutOfKv { wanted: 1 })),
        "the engine is full again: {refused:?}"
    );
}

/// A batch that does not fit is refused whole, and everything goes on after it.
pub(super) fn running_out_of_room_changes_nothing(on: &mut Subject) {
    let prompt = on.tokens(140, 10);
    on.feed(0, 0, &prompt[..9], 9);
    let lens = on.fill();
    // One row of sequence 0 and one of another: neither is computed.
    let mut rows = rows_of(0, 9, &prompt[9..], Output::Logits);
    let other = lens.iter().rposition(|len| *len > 0).expect("a full engine has sequences") as u32;
    rows.extend(rows_of(other, lens[other as usize], &[1], Output::None));
    if lens[other as usize] as usize == on.caps.max_sequence_len {
        rows.pop();
    }
    for _ in 0..2 {
        let refused = on.engine.step(&rows).map(|_| ());
        assert!(matches!(refused, Err(EngineError::OutOfKv { .. })), "no room is left: {refused:?}");
    }
    for seq in 1..on.caps.max_sequences as u32 {
        on.engine.truncate(seq, 0).expect("a sequence can be dropped");
    }
    let continued = on.feed(0, 9, &prompt[9..], 1);
    let recomputed = on.reference(1, &prompt);
    on.assert_close("the sequence whose row did not fit", &continued, &recomputed);
}

/// A sequence can leave the engine and come back, under another number too.
pub(super) fn a_restored_sequence_equals_the_saved_one(on: &mut Subject) {
    let (prompt, next) = (on.tokens(150, 11), on.tokens(151, 3));
    on.feed(4, 0, &prompt, 11);
    let state = match on.engine.save(4) {
        Err(EngineError::Unsupported(_)) => return,
        state => state.expect("a sequence can be saved"),
    };
    assert!(on.engine.restore(4, &state).is_err(), "restoring never overwrites");
    on.engine.truncate(4, 0).expect("a sequence can be dropped");
    on.engine.restore(2, &state).expect("a saved sequence can be restored");
    on.engine.restore(4, &state).expect("a saved sequence can be restored twice");
    let recomputed = on.reference(5, &[prompt.as_slice(), &next].concat());
    for seq in [2, 4] {
        let continued = on.feed(seq, 11, &next, 3);
        on.assert_close(&format!("restored into sequence {seq}"), &continued, &recomputed);
    }
    // A fork's state can be saved too, and an empty sequence's is empty again.
    on.engine.fork(2, 3, 6).expect("a restored sequence can be shared");
    let state = on.engine.save(3).expect("a fork can be saved");
    on.engine.truncate(3, 0).expect("a sequence can be dropped");
    let empty = on.engine.save(3).expect("an empty sequence can be saved");
    on.engine.restore(3, &empty).expect("an empty state can be restored");
    on.engine.restore(3, &state).expect("a saved fork can be restored");
    let continued = on.feed(3, 6, &next, 3);
    let recomputed = on.reference(5, &[&prompt[..6], &next].concat());
    on.assert_close("a restored fork", &continued, &recomputed);
}

/// Bytes that are no state of this engine restore nothing.
pub(super) fn a_foreign_state_is_refused(on: &mut Subject) {
    let prompt = on.tokens(160, 8);
    on.feed(0, 0, &prompt, 8);
    let state = match on.engine.save(0) {
        Err(EngineError::Unsupported(_)) => return,
        state => state.expect("a sequence can be saved"),
    };
    let mut flipped = state.clone();
    *flipped.last_mut().expect("a state is not empty") ^= 0x55;
    let cut = &state[..state.len() - 1];
    for (what, bytes) in [
        ("no bytes", [].as_slice()),
        ("text", b"not a state at all"),
        ("a cut state", cut),
        ("a damaged state", &flipped),
    ] {
        let refused = on.engine.restore(1, bytes);
        assert!(matches!(refused, Err(EngineError::Failed(_))), "{what} must be refused, got {refused:?}");
    }
    on.reference(1, &prompt);

    // Where there is no room, that is what the refusal says.
    on.engine.truncate(0, 0).expect("a sequence can be dropped");
    on.fill();
    let refused = on.engine.restore(0, &state);
    assert!(
        matches!(refused, Err(EngineError::OutOfKv { .. })),
        "a full engine restores nothing: {refused:?}"
    );
}
