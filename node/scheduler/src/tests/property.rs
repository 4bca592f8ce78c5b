//! Random arrivals, hang-ups and tiny memory: every answer is exact and
//! everything is given back.

use proptest::prelude::*;
use quern_engine::AdapterId;
use quern_engine::fake::FakeEngine;

use super::harness::{Bench, HOST_DRAWER, Holding, Stream, Successor, greedy};
use crate::request::{Event, Pooling, Work};
use crate::{Preemption, SchedulerConfig};

#[derive(Debug, Clone)]
struct Arrival {
    salt: u32,
    shared: usize,
    len: usize,
    max_new: u32,
    adapter: u32,
    priority: u8,
    choices: usize,
    hang_up_after: Option<usize>,
    embed: bool,
    turns_before: usize,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let what = (0u32..4, 0usize..30, 1usize..40, 1u32..25, 0u32..4);
    let how = (any::<u8>(), 1usize..3, prop::option::of(0usize..20), prop::bool::weighted(0.15), 0usize..6);
    (what, how).prop_map(
        |((salt, shared, len, max_new, adapter), (priority, choices, hang_up_after, embed, turns_before))| {
            Arrival {
                salt,
                shared,
                len,
                max_new,
                adapter,
                priority,
                choices,
                hang_up_after,
                embed,
                turns_before,
            }
        },
    )
}

fn prompt_of(arrival: &Arrival) -> Vec<u32> {
    let shared = (0..arrival.shared as u32).map(|idx| idx % 5);
    shared.chain((0..arrival.len as u32).map(|idx| (idx * arrival.salt) % 7)).collect()
}

fn check(
    arrivals: &[Arrival],
    config: SchedulerConfig,
    kv: usize,
    slots: usize,
    (speculate, mixes, samples): (bool, bool, bool),
    planner: Option<Holding>,
) {
    let mut fake = Bench::tiny(kv, slots);
    fake.repetitive = speculate;
    fake.capabilities.mixes_adapters = mixes;
    fake.drawer = samples.then_some(HOST_DRAWER);
    let drafter = speculate.then(|| Box::new(Successor) as Box<dyn crate::draft::Drafter>);
    let planner = planner.map(|planner| Box::new(planner) as Box<dyn crate::plan::Planner>);
    let mut bench = Bench::with(fake, config, planner, drafter);
    let mut asked: Vec<(Arrival, Vec<Stream>)> = Vec::new();
    let mut turns = 0;
    for arrival in arrivals {
        for _ in 0..arrival.turns_before {
            bench.turn();
            turns += 1;
            for (arrival, streams) in &asked {
                if arrival.hang_up_after.is_some_and(|after| after < turns) {
                    streams[0].hang_up();
                }
            }
        }
        let streams: Vec<Stream> = (0..arrival.choices).map(|_| Stream::default()).collect();
        let work = if arrival.embed {
            Work::Embed { pooling: Pooling::Mean, sink: Box::new(streams[0].clone()) }
        } else {
            greedy(&streams.iter().collect::<Vec<_>>(), arrival.max_new)
        };
        let mut request = bench.request(&prompt_of(arrival), work);
        request.adapter = AdapterId(arrival.adapter);
        request.priority = arrival.priority;
        bench.submit(request);
        asked.push((arrival.clone(), streams));
    }
    bench.run(20_000);
    for (arrival, streams) in &asked {
        for (choice, stream) in streams.iter().enumerate() {
            let hung_up = arrival.hang_up_after.is_some() && choice == 0;
            let prompt = prompt_of(arrival);
            let tokens = stream.tokens();
            let room = bench.fake.capabilities.max_sequence_len - prompt.len();
            let wanted = (arrival.max_new as usize).min(room);
            let expected = bench.expected(AdapterId(arrival.adapter), &prompt, wanted);
            if arrival.embed && choice == 0 {
                assert!(hung_up || is_mean_of(&bench, stream, AdapterId(arrival.adapter), &prompt));
            } else if arrival.embed {
                assert!(stream.events().is_empty(), "one answer alone was asked for");
            } else if hung_up {
                assert!(expected.starts_with(&tokens), "a prefix of the answer");
            } else {
                assert_eq!(tokens, expected);
                assert!(stream.is_over());
            }
        }
    }
    assert_eq!(bench.scheduler.cache.live(), 0);
    assert_eq!(bench.scheduler.saved_bytes, 0);
    assert!(bench.handle.is_idle());
}

/// Whether a stream ended with the mean of the hidden states behind all tokens.
fn is_mean_of(bench: &Bench, stream: &Stream, adapter: AdapterId, prompt: &[u32]) -> bool {
    let events = stream.events();
    let Some(Event::Embedding(vector)) = events.last() else { return false };
    let mut mean = vec![0.0; vector.len()];
    for len in 1..=prompt.len() {
        let hidden = FakeEngine::hidden_after(&bench.fake, adapter, &prompt[..len]);
        mean.iter_mut().zip(hidden).for_each(|(sum, x)| *sum += x);
    }
    mean.iter_mut().for_each(|sum| *sum /= prompt.len() as f32);
    *vector == mean
}

/// A planner whose plans hold, with chunks or without.
fn holding((steps, open): (u32, bool)) -> Holding {
    let planner = Holding::steps(steps);
    if open { planner.open() } else { planner }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn answers_are_exact_and_nothing_leaks(
        arrivals in prop::collection::vec(arrival(), 1..14),
        (kv, slots, budget) in (80usize..200, 2usize..7, 4usize..64),
        (host, cache, speculate, samples) in (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()),
        hold in prop::option::of((1u32..20, any::<bool>())),
        max_unshared in 0usize..60,
        (mixes, max_adapters, quantum) in (any::<bool>(), 1usize..4, 1u32..20),
    ) {
        let config = SchedulerConfig {
            token_budget: budget,
            prefix_cache: cache,
            preemption: if host { Preemption::Host } else { Preemption::Recompute },
            host_state_bytes: 1200,
            max_unshared,
            max_draft: 4,
            max_adapters,
            adapter_quantum: quantum,
            ..SchedulerConfig::default()
        };
        check(&arrivals, config, kv, slots, (speculate, mixes, samples), hold.map(holding));
    }
}

/// Arrivals that found something once.
fn row(adapter: u32, shared: usize, len: usize, max_new: u32, priority: u8) -> Arrival {
    Arrival {
        salt: 0,
        shared,
        len,
        max_new,
        adapter,
        priority,
        choices: 1,
        hang_up_after: None,
        embed: false,
        turns_before: 0,
    }
}

impl Arrival {
    fn after(self, turns_before: usize) -> Arrival {
        Arrival { turns_before, ..self }
    }

    fn twice(self) -> Arrival {
        Arrival { choices: 2, ..self }
    }
}

/// Found by the property: two adapters' turns undid each other's starts when
/// cached tokens were counted as free for the prompt that reuses them.
#[test]
fn a_cached_prompt_that_fills_the_memory_is_started_once() {
    let arrivals = [
        row(1, 0, 1, 14, 0),
        row(0, 0, 1, 11, 0).twice().after(3),
        row(2, 17, 25, 6, 0).twice().after(5),
        row(0, 0, 1, 1, 0).after(2),
        row(1, 10, 24, 14, 19).twice().after(13),
        row(0, 25, 29, 15, 20).after(3),
        row(2, 0, 19, 13, 1).twice(),
        row(1, 9, 1, 2, 63).twice(),
        row(0, 0, 1, 1, 21),
    ];
    let config = SchedulerConfig { token_budget: 16, ..SchedulerConfig::default() };
    check(&arrivals, config, 111, 3, (false, false, false), None);
}

/// Found by the property: what was paused for a more urgent request of another adapter
/// took its room again in its own adapter's turn, for ever.
#[test]
fn who_is_paused_for_another_adapter_does_not_start_before_it() {
    let short_turns = |token_budget| SchedulerConfig {
        token_budget,
        max_adapters: 1,
        adapter_quantum: 1,
        ..SchedulerConfig::default()
    };
    let arrivals = [
        row(0, 0, 1, 1, 0).after(3),
        row(0, 15, 6, 11, 171).twice(),
        Arrival { embed: true, ..row(1, 3, 14, 1, 171) },
        row(2, 16, 36, 1, 172).after(2),
    ];
    check(&arrivals, short_turns(4), 80, 2, (false, false, false), None);
    let arrivals = [
        row(0, 8, 16, 19, 84),
        row(0, 0, 1, 1, 0).after(1),
        row(3, 3, 32, 12, 0).after(4),
        row(0, 12, 35, 6, 26).after(2),
        Arrival { hang_up_after: Some(0), ..row(1, 17, 11, 13, 1).twice() },
        row(0, 0, 1, 1, 0).after(3),
        row(0, 9, 22, 6, 249).twice().after(1),
        row(3, 13, 23, 12, 85).twice().after(1),
    ];
    check(&arrivals, short_turns(29), 84, 3, (false, false, false), None);
}
