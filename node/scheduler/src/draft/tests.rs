//! Drafters on the fake engine, whose logits are a hash of all tokens before,
//! so that stale state shows as a wrong draft.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{AdapterId, Capabilities, Engine, EngineError, Row, SeqId, StepOutput};

use super::*;

fn lookup(tokens: &[TokenId], max: u32) -> Vec<TokenId> {
    let mut out = vec![vec![99; 4]; 3];
    PromptLookup::new(2, 4).unwrap().draft(&[DraftAsk { seq: 1, tokens, max }], &mut out);
    assert_eq!(out.len(), 1);
    out.remove(0)
}

#[test]
fn lookup_prefers_the_longest_match_and_then_the_latest() {
    assert_eq!(lookup(&[1, 2, 3, 10, 9, 2, 3, 20, 8, 1, 2, 3], 2), [10, 9]);
    assert_eq!(lookup(&[2, 3, 10, 9, 2, 3, 20, 8, 2, 3], 1), [20]);
}

#[test]
fn lookup_goes_round_in_a_repetition() {
    assert_eq!(lookup(&[5, 6, 7, 5, 6, 7, 5], 7), [6, 7, 5, 6, 7, 5, 6]);
    assert_eq!(lookup(&[4, 4, 4], 3), [4, 4, 4]);
}

#[test]
fn lookup_has_no_opinion_without_a_match() {
    assert_eq!(lookup(&[], 3), []);
    assert_eq!(lookup(&[1], 3), []);
    // Only one token recurs, and two are asked for.
    assert_eq!(lookup(&[1, 2, 3, 9, 3], 3), []);
    assert_eq!(lookup(&[1, 2, 1, 2], 0), []);
    let far = [vec![1, 2, 3], (10..9000).collect(), vec![1, 2]].concat();
    assert_eq!(lookup(&far, 3), []);
}

#[test]
fn lookup_refuses_impossible_lengths() {
    assert_eq!(PromptLookup::new(0, 3).err(), Some(LookupError { min_ngram: 0, max_ngram: 3 }));
    assert_eq!(PromptLookup::new(4, 3).err(), Some(LookupError { min_ngram: 4, max_ngram: 3 }));
}

/// What a test sees and does from outside of an engine that a drafter owns.
#[derive(Default)]
struct Watch {
    num_rows: AtomicUsize,
    num_steps: AtomicUsize,
    kv_used: AtomicUsize,
    /// The next step fails halfway.
    fail: AtomicBool,
}

impl Watch {
    /// Rows and steps since the last call.
    fn take_counts(&self) -> (usize, usize) {
        (self.num_rows.swap(0, Relaxed), self.num_steps.swap(0, Relaxed))
    }
}

/// The fake engine under watch.
struct Watched(FakeEngine, Arc<Watch>);

impl Engine for Watched {
    fn capabilities(&self) -> &Capabilities {
        self.0.capabilities()
    }
    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        self.1.num_rows.fetch_add(rows.len(), Relaxed);
        self.1.num_steps.fetch_add(1, Relaxed);
        if self.1.fail.swap(false, Relaxed) {
            self.0.step(&rows[..rows.len() / 2 + 1])?;
            self.1.kv_used.store(self.0.kv_used(), Relaxed);
            return Err(EngineError::Failed("told to".into()));
        }
        let free = self.0.capabilities().kv_capacity - self.0.kv_used();
        self.1.kv_used.fetch_add(rows.len().min(free), Relaxed);
        self.0.step(rows)
    }
    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.0.fork(from, to, len)
    }
    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        self.0.truncate(seq, len)?;
        self.1.kv_used.store(self.0.kv_used(), Relaxed);
        Ok(())
    }
    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError> {
        self.0.save(seq)
    }
    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError> {
        self.0.restore(seq, state)
    }
    fn load_adapter(&mut self, id: AdapterId, path: &Path) -> Result<(), EngineError> {
        self.0.load_adapter(id, path)
    }
    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError> {
        self.0.unload_adapter(id)
    }
}

/// A drafter that is never unsure, on an engine with the given limits.
fn drafter(change: impl FnOnce(&mut Capabilities)) -> (ModelDrafter, Arc<Watch>, FakeConfig) {
    let config = ModelDrafterConfig { min_probability: 0.0, ..ModelDrafterConfig::default() };
    drafter_with(config, false, change)
}

fn drafter_with(
    config: ModelDrafterConfig,
    repetitive: bool,
    change: impl FnOnce(&mut Capabilities),
) -> (ModelDrafter, Arc<Watch>, FakeConfig) {
    let mut fake = FakeConfig { repetitive, ..FakeConfig::default() };
    change(&mut fake.capabilities);
    let watch = Arc::new(Watch::default());
    let engine = Watched(FakeEngine::new(fake.clone()), Arc::clone(&watch));
    let vocab_size = fake.capabilities.vocab_size;
    let drafter = ModelDrafter::new(Box::new(engine), vocab_size, config).unwrap();
    (drafter, watch, fake)
}

/// Asks for drafts of `max` tokens for sequences `(number, tokens)`.
fn ask(drafter: &mut ModelDrafter, sequences: &[(u64, &[TokenId])], max: u32) -> Vec<Vec<TokenId>> {
    let asks: Vec<_> = sequences.iter().map(|&(seq, tokens)| DraftAsk { seq, tokens, max }).collect();
    let mut out = Vec::new();
    drafter.draft(&asks, &mut out);
    assert_eq!(out.len(), asks.len());
    out
}

fn greedy(fake: &FakeConfig, tokens: &[TokenId], num_new: usize) -> Vec<TokenId> {
    FakeEngine::expected(fake, AdapterId::BASE, tokens, num_new)
}

#[test]
fn drafts_are_what_the_model_would_say() {
    let (mut drafter, watch, fake) = drafter(|_| {});
    let (a, b, c): (Vec<u32>, Vec<u32>, Vec<u32>) =
        ((0..40).collect(), vec![7], (0..100).map(|x| x * 3).collect());
    let drafts = ask(&mut drafter, &[(1, &a), (2, &b), (3, &c)], 5);
    assert_eq!(drafts, [greedy(&fake, &a, 5), greedy(&fake, &b, 5), greedy(&fake, &c, 5)]);
    // All sequences share the steps: one to catch up, four to go on.
    assert_eq!(watch.take_counts(), (141 + 4 * 3, 5));
}

#[test]
fn state_follows_what_was_really_drawn() {
    let (mut drafter, watch, fake) = drafter(|_| {});
    let mut tokens: Vec<TokenId> = (0..50).collect();
    for (accepted, other) in [(4, None), (2, Some(11)), (0, Some(3)), (4, Some(8)), (1, None)] {
        let draft = ask(&mut drafter, &[(1, &tokens)], 4).remove(0);
        assert_eq!(draft, greedy(&fake, &tokens, 4));
        tokens.extend(&draft[..accepted]);
        tokens.extend(other);
    }
    watch.take_counts();
    assert_eq!(ask(&mut drafter, &[(1, &tokens)], 1), [greedy(&fake, &tokens, 1)]);
    // One accepted token was computed in the last round; it is fed again for its logits.
    assert_eq!(watch.take_counts(), (1, 1));
}

#[test]
fn a_change_far_back_is_noticed() {
    let (mut drafter, watch, fake) = drafter(|_| {});
    let mut tokens: Vec<TokenId> = (0..50).collect();
    ask(&mut drafter, &[(1, &tokens)], 3);
    tokens[10] = 200;
    tokens.truncate(30);
    watch.take_counts();
    assert_eq!(ask(&mut drafter, &[(1, &tokens)], 3), [greedy(&fake, &tokens, 3)]);
    assert_eq!(watch.take_counts().0, 20 + 2);
}

#[test]
fn limits_of_a_step_are_kept() {
    let (mut drafter, _, fake) = drafter(|caps| (caps.max_rows, caps.max_outputs) = (8, 2));
    let sequences: Vec<Vec<TokenId>> = (1..6).map(|n| (0..n * 5).collect()).collect();
    let asks: Vec<(u64, &[TokenId])> =
        sequences.iter().enumerate().map(|(idx, tokens)| (idx as u64, tokens.as_slice())).collect();
    let expected: Vec<_> = sequences.iter().map(|tokens| greedy(&fake, tokens, 4)).collect();
    assert_eq!(ask(&mut drafter, &asks, 4), expected);
}

#[test]
fn an_unsure_model_stops_early() {
    let config = ModelDrafterConfig { min_probability: 0.9, ..ModelDrafterConfig::default() };
    let (mut drafter, _, fake) = drafter_with(config, true, |_| {});
    // The repetitive engine is sure of all tokens but those at multiples of eight.
    let tokens: Vec<TokenId> = (0..5).collect();
    assert_eq!(ask(&mut drafter, &[(1, &tokens)], 10), [greedy(&fake, &tokens, 3)]);
    let tokens: Vec<TokenId> = (0..8).collect();
    assert_eq!(ask(&mut drafter, &[(1, &tokens)], 10), [[]]);
}

#[test]
fn a_long_prompt_catches_up_over_rounds() {
    let config = ModelDrafterConfig { min_probability: 0.0, max_sync_tokens: 64 };
    let (mut drafter, watch, fake) = drafter_with(config, false, |_| {});
    let long: Vec<TokenId> = (0..150).collect();
    let short: Vec<TokenId> = (0..10).collect();
    for round in 0..3 {
        let drafts = ask(&mut drafter, &[(1, &long), (2, &short)], 1);
        assert_eq!(drafts[1], greedy(&fake, &short, 1));
        let expected = if round == 2 { greedy(&fake, &long, 1) } else { vec![] };
        assert_eq!(drafts[0], expected, "round {round}");
        assert!(watch.take_counts().0 <= 64);
    }
}

#[test]
fn the_sequence_that_waited_longest_makes_room() {
    let (mut drafter, watch, fake) = drafter(|caps| caps.max_sequences = 2);
    let tokens: Vec<TokenId> = (0..20).collect();
    for seq in [1, 2, 1, 3] {
        assert_eq!(ask(&mut drafter, &[(seq, &tokens)], 2), [greedy(&fake, &tokens, 2)]);
    }
    assert_eq!(drafter.num_sequences(), 2);
    // 1 was used after 2, so it is still there: its last token alone is fed.
    watch.take_counts();
    ask(&mut drafter, &[(1, &tokens)], 1);
    assert_eq!(watch.take_counts().0, 1);
    // More ask than there are places: the rest go without.
    let drafts = ask(&mut drafter, &[(7, &tokens), (8, &tokens), (9, &tokens)], 1);
    assert_eq!(drafts, [greedy(&fake, &tokens, 1), greedy(&fake, &tokens, 1), vec![]]);
}

#[test]
fn room_is_made_and_never_exceeded() {
    let (mut drafter, watch, fake) = drafter(|caps| caps.kv_capacity = 64);
    let tokens: Vec<TokenId> = (0..30).collect();
    for seq in 1..6 {
        assert_eq!(ask(&mut drafter, &[(seq, &tokens)], 3), [greedy(&fake, &tokens, 3)]);
        assert_eq!(drafter.kv_used(), watch.kv_used.load(Relaxed));
        assert!(drafter.kv_used() <= 64);
    }
    // Two fit, the third goes without, and what never fits does no harm.
    let drafts = ask(&mut drafter, &[(1, &tokens), (2, &tokens), (3, &tokens)], 3);
    assert_eq!(drafts, [greedy(&fake, &tokens, 3), greedy(&fake, &tokens, 3), vec![]]);
    let huge: Vec<TokenId> = (0..100).collect();
    assert_eq!(ask(&mut drafter, &[(4, &huge)], 3), [[]]);
}

#[test]
fn drafts_end_with_the_longest_sequence() {
    let (mut drafter, _, fake) = drafter(|caps| caps.max_sequence_len = 32);
    for (len, drafted) in [(30, 3), (32, 1), (33, 0)] {
        let tokens: Vec<TokenId> = (0..len).collect();
        assert_eq!(ask(&mut drafter, &[(1, &tokens)], 8), [greedy(&fake, &tokens, drafted)]);
    }
}

#[test]
fn forgotten_sequences_are_freed() {
    let (mut drafter, watch, _) = drafter(|_| {});
    let tokens: Vec<TokenId> = (0..20).collect();
    ask(&mut drafter, &[(1, &tokens), (2, &tokens)], 4);
    assert_eq!(watch.kv_used.load(Relaxed), 2 * 23);
    drafter.forget(1);
    drafter.forget(77);
    assert_eq!((drafter.num_sequences(), watch.kv_used.load(Relaxed)), (1, 23));
    drafter.forget(2);
    assert_eq!((drafter.num_sequences(), watch.kv_used.load(Relaxed)), (0, 0));
}

#[test]
fn a_failure_costs_one_round_of_drafts() {
    let (mut drafter, watch, fake) = drafter(|_| {});
    let (a, b): (Vec<TokenId>, Vec<TokenId>) = ((0..20).collect(), (5..40).collect());
    ask(&mut drafter, &[(1, &a), (2, &b)], 4);
    watch.fail.store(true, Relaxed);
    assert_eq!(ask(&mut drafter, &[(1, &a)], 4), [[]]);
    // Only the sequence of the failed batch lost its state.
    assert_eq!((drafter.num_sequences(), watch.kv_used.load(Relaxed)), (1, 38));
    assert_eq!(ask(&mut drafter, &[(1, &a), (2, &b)], 4), [greedy(&fake, &a, 4), greedy(&fake, &b, 4)]);
}

#[test]
fn vocabularies_must_agree_up_to_padding() {
    let new = |target| {
        let engine = Box::new(FakeEngine::new(FakeConfig::default()));
        let config = ModelDrafterConfig { min_probability: 0.0, ..ModelDrafterConfig::default() };
        ModelDrafter::new(engine, target, config)
    };
    assert!(new(320 + 128).is_ok());
    assert_eq!(new(1000).err(), Some(VocabMismatch { draft: 320, target: 1000 }));
    // What only one of the two knows is neither fed nor drafted.
    let mut drafter = new(200).unwrap();
    assert_eq!(ask(&mut drafter, &[(1, &[3, 250])], 4), [[]]);
    let draft = ask(&mut drafter, &[(1, &[3, 150])], 40).remove(0);
    assert!(draft.len() == 40 && draft.iter().all(|&token| token < 200));
}

#[test]
fn no_asks_and_odd_asks_do_no_harm() {
    let (mut drafter, watch, _) = drafter(|_| {});
    assert!(ask(&mut drafter, &[], 4).is_empty());
    assert_eq!(ask(&mut drafter, &[(1, &[])], 4), [[]]);
    assert_eq!(ask(&mut drafter, &[(1, &[5])], 0), [[]]);
    assert_eq!(watch.take_counts(), (0, 0));
}

#[test]
fn length_follows_what_is_accepted() {
    let mut length = DraftLength::new(8);
    assert_eq!(length.wanted(), 3);
    let mut seen = Vec::new();
    for accepted in [3, 5, 7, 8, 2, 0, 1] {
        length.record(length.wanted(), accepted);
        seen.push(length.wanted());
    }
    assert_eq!(seen, [5, 7, 8, 8, 3, 1, 3]);
    assert_eq!(DraftLength::new(0).wanted(), 0);
    assert_eq!(DraftLength::new(2).wanted(), 2);
}

#[test]
fn drafting_that_does_not_pay_is_paused_and_tried_again() {
    let mut length = DraftLength::new(8);
    let reject_until_paused = |length: &mut DraftLength| {
        let mut num_rejected = 0;
        while length.wanted() > 0 {
            length.record(length.wanted(), 0);
            num_rejected += 1;
        }
        num_rejected
    };
    let wait = |length: &mut DraftLength| {
        let mut num_steps = 0;
        while length.wanted() == 0 {
            length.record(0, 0);
            num_steps += 1;
        }
        num_steps
    };
    assert_eq!(reject_until_paused(&mut length), 4);
    for pause in [16, 32, 64, 128, 256, 256] {
        assert_eq!(wait(&mut length), pause);
        assert_eq!(reject_until_paused(&mut length), 2);
    }
    wait(&mut length);
    for _ in 0..5 {
        length.record(length.wanted(), length.wanted());
    }
    reject_until_paused(&mut length);
    assert_eq!(wait(&mut length), 16);
}
