//! The prefix cache's books against an engine that counts cells exactly.

use proptest::prelude::*;
use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_engine::{AdapterId, Engine, Output, Row};

use super::harness::Bench;
use crate::prefix_cache::{KvOp, PrefixCache};

/// The books and an engine that does what they say.
struct Pair {
    cache: PrefixCache,
    engine: FakeEngine,
    ops: Vec<KvOp>,
    live: Vec<(u32, AdapterId, Vec<u32>)>,
}

impl Pair {
    fn new(fake: FakeConfig) -> Pair {
        let caps = fake.capabilities.clone();
        let cache = PrefixCache::new(caps.kv_capacity, caps.max_sequences);
        let mut engine = FakeEngine::new(fake);
        engine.load_adapter(AdapterId(1), env!("CARGO_MANIFEST_DIR").as_ref()).unwrap();
        Pair { cache, engine, ops: Vec::new(), live: Vec::new() }
    }

    fn apply(&mut self) {
        for op in self.ops.drain(..) {
            match op {
                KvOp::Fork { from, to, len } => self.engine.fork(from, to, len).unwrap(),
                KvOp::Truncate { seq, len } => self.engine.truncate(seq, len).unwrap(),
            }
        }
        self.cache.assert_consistent();
        assert_eq!(self.cache.used(), self.engine.kv_used());
    }

    fn open(&mut self, adapter: AdapterId, tokens: &[u32]) {
        let found = self.cache.find(adapter, tokens).map(|found| (found, found.len));
        let Some(slot) = self.cache.open(adapter, found, &mut self.ops) else {
            assert!(self.live.len() >= self.engine.capabilities().max_sequences);
            return self.apply();
        };
        self.apply();
        let held = found.map_or(0, |(_, len)| len);
        self.live.push((slot, adapter, tokens[..held].to_vec()));
        let at = self.live.len() - 1;
        self.extend(at, &tokens[held..]);
    }

    fn extend(&mut self, at: usize, tokens: &[u32]) {
        if tokens.is_empty() || !self.cache.make_room(tokens.len(), &mut self.ops) {
            return self.apply();
        }
        self.apply();
        let (slot, adapter, held) = &mut self.live[at];
        let row = |(idx, &token): (usize, &u32)| Row {
            seq: *slot,
            pos: (held.len() + idx) as u32,
            token,
            adapter: *adapter,
            output: Output::None,
        };
        let rows: Vec<_> = tokens.iter().enumerate().map(row).collect();
        self.engine.step(&rows).unwrap();
        held.extend_from_slice(tokens);
        self.cache.append(*slot, tokens);
        self.apply();
    }

    fn cut(&mut self, at: usize, len: usize) {
        let (slot, _, held) = &mut self.live[at];
        if !held.is_empty() {
            held.truncate(len);
            self.cache.cut(*slot, len, &mut self.ops);
            assert_eq!(self.cache.len(*slot), held.len());
            self.apply();
        }
    }

    fn release(&mut self, at: usize, keep: bool) {
        let (slot, ..) = self.live.swap_remove(at);
        self.cache.release(slot, keep, &mut self.ops);
        self.apply();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn books_agree_with_the_engine(
        steps in prop::collection::vec((0u8..6, 0usize..8, 0u32..3, 1usize..24, any::<bool>()), 1..80)
    ) {
        let mut pair = Pair::new(Bench::tiny(120, 5));
        for (what, pick, salt, len, flag) in steps {
            let at = pick % pair.live.len().max(1);
            match what {
                // Few distinct tokens, so that prefixes collide and diverge often.
                0 | 1 => {
                    let tokens: Vec<u32> = (0..len as u32).map(|idx| (idx / 6) * salt % 3).collect();
                    pair.open(AdapterId(u32::from(flag)), &tokens);
                }
                2 if !pair.live.is_empty() => pair.extend(at, &vec![salt; len % 5]),
                5 if !pair.live.is_empty() => pair.cut(at, len),
                3 | 4 if !pair.live.is_empty() => pair.release(at, flag || what == 3),
                _ => {}
            }
        }
        while !pair.live.is_empty() {
            pair.release(0, true);
        }
        prop_assert_eq!(pair.cache.live(), 0);
        pair.cache.clear_cached(&mut pair.ops);
        pair.apply();
        prop_assert_eq!(pair.cache.used(), 0);
    }
}

#[test]
fn the_least_recently_used_tail_goes_first_and_the_shared_beginning_stays() {
    let mut pair = Pair::new(Bench::tiny(40, 5));
    pair.open(AdapterId::BASE, &[[7; 10].as_slice(), &[1; 10]].concat());
    pair.open(AdapterId::BASE, &[[7; 10].as_slice(), &[2; 10]].concat());
    pair.release(0, true);
    pair.release(0, true);
    assert_eq!(pair.cache.used(), 30);
    pair.open(AdapterId::BASE, &[9; 16]);
    let held = |tail| {
        let tokens = [[7; 10].as_slice(), &[tail; 10]].concat();
        pair.cache.find(AdapterId::BASE, &tokens).map_or(0, |found| found.len)
    };
    assert_eq!((held(1), held(2)), (14, 20));
}
