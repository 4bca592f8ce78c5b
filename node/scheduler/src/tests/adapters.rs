//! Adapters that come to the engine when they are needed, and leave it again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use quern_engine::AdapterId;
use quern_engine::fake::FakeConfig;

use super::harness::{Bench, Content, Stream, prompt};
use crate::request::Failure;
use crate::{AdapterFiles, SchedulerConfig};

const ONE: AdapterId = AdapterId(1);
const TWO: AdapterId = AdapterId(2);
const THREE: AdapterId = AdapterId(3);

/// Room for so many adapters on the engine.
fn room_for(max_adapters: usize) -> SchedulerConfig {
    SchedulerConfig { max_adapters, adapter_quantum: 2, ..SchedulerConfig::default() }
}

/// Offers an adapter that the test can watch.
fn offer(files: &AdapterFiles, id: AdapterId, content: Content) -> Arc<Content> {
    let content = Arc::new(content);
    files.insert(id, Arc::clone(&content) as Arc<dyn crate::AdapterSource>);
    content
}

#[test]
fn more_adapters_than_there_is_room_for_take_turns() {
    for max_adapters in 1..=2 {
        let mut bench = Bench::new(FakeConfig::default(), room_for(max_adapters));
        let ids = [AdapterId::BASE, ONE, TWO, THREE];
        let streams = ids.map(|id| bench.ask_with(id, &prompt(id.0, 20), 12));
        for _ in 0..24 {
            bench.turn();
            assert!(bench.handle.adapters().resident.len() <= max_adapters);
        }
        for stream in &streams {
            assert!(!stream.tokens().is_empty(), "nobody starves");
        }
        bench.run(200);
        for (id, stream) in ids.into_iter().zip(&streams) {
            assert_eq!(stream.tokens(), bench.expected(id, &prompt(id.0, 20), 12));
        }
    }
}

#[test]
fn rare_adapters_that_come_one_after_another_do_not_keep_others_from_their_turns() {
    let config = room_for(2);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let long = [ONE, TWO].map(|id| bench.ask_with(id, &prompt(id.0, 20), 40));
    let rare: Vec<Stream> = (0..32)
        .map(|n| {
            let id = AdapterId(100 + n);
            offer(&config.adapters, id, Content::default());
            let stream = bench.ask_with(id, &prompt(n, 8), 1);
            bench.turn();
            stream
        })
        .collect();
    for stream in &long {
        assert!(stream.tokens().len() > 2, "it had more than its first turn");
    }
    assert!(rare[..8].iter().all(|stream| stream.tokens().len() == 1), "nor do these wait for the others");
    bench.run(200);
    assert!(long.iter().all(|stream| stream.tokens().len() == 40));
    assert!(rare.iter().all(|stream| stream.tokens().len() == 1));
}

#[test]
fn who_was_not_used_for_longest_makes_room_and_a_pinned_one_stays() {
    let config = room_for(2);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let pinned = offer(&config.adapters, ONE, Content { is_pinned: true, ..Content::default() });
    let [two, three] = [TWO, THREE].map(|id| offer(&config.adapters, id, Content::default()));
    let held = |content: &Content| content.num_held.load(Ordering::Relaxed);
    for (id, expected) in [(ONE, [1, 0, 0]), (TWO, [1, 1, 0]), (THREE, [1, 0, 1]), (TWO, [1, 1, 0])] {
        bench.ask_with(id, &prompt(7, 8), 2);
        bench.run(20);
        assert_eq!([held(&pinned), held(&two), held(&three)], expected, "after {id:?}");
    }
    assert_eq!(pinned.num_loads.load(Ordering::Relaxed), 1);
    drop(bench);
    assert_eq!([held(&pinned), held(&two)], [0, 0], "the engine is gone");
}

#[test]
fn another_generation_never_meets_the_state_of_the_one_before() {
    let config = room_for(2);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let shared = prompt(3, 100);
    let before = bench.ask_with(ONE, &shared, 4);
    bench.run(20);
    assert_eq!(before.tokens(), bench.expected(ONE, &shared, 4));
    assert!(bench.scheduler.cache.find(ONE, &shared).is_some());

    // The same name loaded anew is another id.
    let again = AdapterId(9);
    offer(&config.adapters, again, Content::default());
    config.adapters.retire(ONE);
    let after = bench.ask_with(again, &shared, 4);
    bench.run(20);
    assert_eq!((after.cached(), after.tokens()), (Some(0), bench.expected(again, &shared, 4)));
    assert!(bench.scheduler.cache.find(ONE, &shared).is_none(), "its state is gone");
    assert!(bench.scheduler.cache.adapters().all(|id| id != ONE));
    assert_eq!(bench.handle.adapters().resident, [again]);
    let once_more = bench.ask_with(again, &shared, 4);
    bench.run(20);
    assert_eq!(once_more.cached(), Some(shared.len() as u32 - 1), "its own is used");
}

#[test]
fn an_adapter_that_cannot_be_had_ends_its_requests_alone() {
    let config = room_for(1);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let content = offer(&config.adapters, ONE, Content::default());
    let lucky = bench.ask_with(ONE, &prompt(1, 10), 30);
    let others = [bench.ask_with(TWO, &prompt(2, 10), 30), bench.ask(&prompt(3, 10), 30)];
    let unknown = bench.ask_with(AdapterId(77), &prompt(4, 10), 3);
    bench.turn();
    content.is_gone.store(true, Ordering::Relaxed);
    bench.run(300);
    // It leaves the engine for another one's turn, and cannot come back.
    assert_eq!(
        lucky.failure(),
        Some(Failure::Adapter("nobody holds its content ready for an engine".to_owned()))
    );
    assert_eq!(unknown.failure(), Some(Failure::Adapter("it is not loaded any more".to_owned())));
    for (id, salt, stream) in [(TWO, 2, &others[0]), (AdapterId::BASE, 3, &others[1])] {
        assert_eq!(stream.tokens(), bench.expected(id, &prompt(salt, 10), 30));
    }
    content.is_gone.store(false, Ordering::Relaxed);
    let back = bench.ask_with(ONE, &prompt(1, 10), 5);
    bench.run(20);
    assert_eq!(back.tokens(), bench.expected(ONE, &prompt(1, 10), 5));
}

#[test]
fn whoever_still_uses_a_retired_adapter_fails_and_leaves_nothing() {
    let config = room_for(2);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let late = bench.ask_with(ONE, &prompt(1, 10), 30);
    let other = bench.ask_with(TWO, &prompt(2, 10), 30);
    bench.turn();
    bench.turn();
    config.adapters.retire(ONE);
    bench.run(300);
    assert!(matches!(late.failure(), Some(Failure::Adapter(_))));
    assert_eq!(other.tokens(), bench.expected(TWO, &prompt(2, 10), 30));
    bench.handle.look_at_adapters();
    bench.turn();
    assert!(bench.scheduler.cache.adapters().all(|id| id != ONE));
    assert_eq!(bench.handle.adapters().resident, [TWO]);
}

#[test]
fn planners_see_where_adapters_are() {
    let config = room_for(1);
    let mut bench = Bench::new(FakeConfig::default(), config.clone());
    let far = offer(&config.adapters, THREE, Content::default());
    far.is_gone.store(true, Ordering::Relaxed);
    bench.ask_with(ONE, &prompt(1, 10), 1);
    bench.run(20);
    for id in [AdapterId::BASE, ONE, TWO, THREE] {
        bench.ask_with(id, &prompt(5, 10), 1);
    }
    assert!(bench.scheduler.ingest_now());
    bench.scheduler.plan();
    assert_eq!(bench.scheduler.snapshot.waiting.adapter_tier, [2, 2, 1, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Prompts begin alike, adapters are loaded anew all the time, and each answer is
    /// that of its own adapter's generation from the first token to the last.
    #[test]
    fn reloads_mix_nothing(
        steps in prop::collection::vec((0usize..3, 0u32..3, 1usize..30, any::<bool>(), 0usize..12), 1..25),
        (max_adapters, quantum, mixes) in (1usize..3, 1u32..6, any::<bool>()),
    ) {
        let mut fake = Bench::tiny(160, 5);
        fake.capabilities.mixes_adapters = mixes;
        let config = SchedulerConfig { max_adapters, adapter_quantum: quantum, ..SchedulerConfig::default() };
        let mut bench = Bench::new(fake, config.clone());
        let mut names = [ONE, TWO, THREE];
        let mut retired: Vec<(AdapterId, Vec<Stream>)> = Vec::new();
        let mut asked: Vec<(AdapterId, Vec<u32>, Stream)> = Vec::new();
        let mut next_id = 10;
        for (name, salt, len, reload, turns) in steps {
            if reload {
                let old = std::mem::replace(&mut names[name], AdapterId(next_id));
                offer(&config.adapters, names[name], Content::default());
                next_id += 1;
                let users = asked.iter().filter(|(id, ..)| *id == old).map(|(.., stream)| stream.clone());
                retired.push((old, users.collect()));
            }
            let tokens: Vec<u32> = (0..len as u32).map(|idx| (idx / 8) * salt % 3).collect();
            asked.push((names[name], tokens.clone(), bench.ask_with(names[name], &tokens, 6)));
            for _ in 0..turns {
                bench.turn();
                // As leases do: an old generation goes when nobody uses it any more.
                let done = |users: &[Stream]| users.iter().all(Stream::is_over);
                retired.extract_if(.., |(_, users)| done(users)).for_each(|(id, _)| config.adapters.retire(id));
            }
        }
        bench.run(5_000);
        for (id, tokens, stream) in &asked {
            prop_assert_eq!(stream.tokens(), bench.expected(*id, tokens, 6));
        }
    }
}
