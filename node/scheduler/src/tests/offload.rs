//! Tails that nobody shares, moved to host memory and back.

use quern_engine::AdapterId;

use super::harness::{Bench, Stream, prompt};
use crate::SchedulerConfig;

fn bench(max_unshared: usize, host_state_bytes: usize) -> Bench {
    let config = SchedulerConfig { max_unshared, host_state_bytes, ..SchedulerConfig::default() };
    Bench::new(Bench::tiny(1024, 16), config)
}

/// Answers one prompt, with ten tokens, and says how much of it was there.
fn answer(bench: &mut Bench, prompt: &[u32]) -> (Stream, usize) {
    let stream = bench.ask(prompt, 10);
    bench.run(100);
    assert_eq!(stream.tokens(), bench.expected(AdapterId::BASE, prompt, 10));
    let cached = stream.cached().unwrap() as usize;
    (stream, cached)
}

#[test]
fn a_conversation_goes_on_from_host_memory() {
    let mut bench = bench(50, 1 << 20);
    let first = prompt(1, 60);
    let (said, _) = answer(&mut bench, &first);
    assert_eq!(bench.scheduler.cache.used(), 0, "69 tokens are more than may stay");
    let bytes = bench.scheduler.offloaded.bytes();
    assert!(bytes > 0);
    answer(&mut bench, &prompt(2, 60));
    let next = [first.clone(), said.tokens(), prompt(3, 15)].concat();
    let (_, cached) = answer(&mut bench, &next);
    assert_eq!(cached, 69, "all but the token that was drawn last");
    // Its longer state is there now, and nothing of the shorter.
    let (_, cached) = answer(&mut bench, &next);
    assert!(cached >= 69);
    // Another way on from the same beginning takes as much of it as fits.
    let (_, cached) = answer(&mut bench, &[&first[..45], &prompt(9, 20)].concat());
    assert!(cached >= 45);
}

#[test]
fn what_many_share_stays_and_short_tails_go() {
    let mut bench = bench(40, 1 << 20);
    let shared = prompt(1, 100);
    for salt in 2..12 {
        let (_, cached) = answer(&mut bench, &[shared.clone(), prompt(salt * 7, 15)].concat());
        assert!(salt == 2 || cached >= 100, "request {salt} found {cached}");
    }
    // The first prompt left as a whole, before anybody shared it.
    let of_one = bench.scheduler.offloaded.bytes();
    assert!(bench.scheduler.cache.used() <= 100 + 40);
    for salt in 12..16 {
        answer(&mut bench, &[shared.clone(), prompt(salt * 7, 15)].concat());
    }
    assert_eq!(bench.scheduler.offloaded.bytes(), of_one, "tails of 24 tokens are not worth it");
}

#[test]
fn host_memory_is_bounded_and_none_is_no_error() {
    for room in [0, 1200] {
        let mut bench = bench(30, room);
        for salt in 1..8 {
            answer(&mut bench, &prompt(salt, 60));
            assert!(bench.scheduler.offloaded.bytes() <= room);
            assert_eq!(bench.scheduler.cache.used(), 0);
        }
        let (_, cached) = answer(&mut bench, &prompt(7, 60));
        assert_eq!(cached, if room == 0 { 0 } else { 59 });
        let (_, cached) = answer(&mut bench, &prompt(1, 60));
        assert_eq!(cached, 0, "the oldest had to go");
    }
}

#[test]
fn what_is_too_large_for_host_memory_stays_on_the_engine() {
    let mut bench = bench(30, 1200);
    answer(&mut bench, &prompt(1, 40));
    let long = prompt(2, 200);
    answer(&mut bench, &long);
    assert_eq!(bench.scheduler.cache.used(), 128, "as far as the cache may hold it");
    let (_, cached) = answer(&mut bench, &long);
    assert_eq!(cached, 128);
}

#[test]
fn without_a_limit_everything_stays_on_the_engine() {
    let mut bench = bench(0, 1 << 20);
    bench.scheduler.config.max_cached = 512;
    for salt in 1..5 {
        answer(&mut bench, &prompt(salt, 60));
    }
    assert_eq!((bench.scheduler.cache.used(), bench.scheduler.offloaded.bytes()), (4 * 69, 0));
}
