//! Labels' scores are those of one label after the other, whatever the step loop does.

use std::sync::Arc;

use proptest::prelude::*;
use quern_engine::AdapterId;
use quern_engine::fake::{FakeConfig, FakeEngine};

use super::harness::{Bench, Holding, Stream, greedy, prompt};
use crate::request::{Failure, Score, Work};
use crate::{LabelTrie, Preemption, SchedulerConfig};

/// The log-probability of `label` behind `prompt`, token by token.
fn alone(fake: &FakeConfig, adapter: AdapterId, prompt: &[u32], label: &[u32]) -> f64 {
    let mut tokens = prompt.to_vec();
    let mut sum = 0.0;
    for &token in label {
        let logits = FakeEngine::logits_after(fake, adapter, &tokens);
        let total: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum += f64::from(logits[token as usize]) - total.ln();
        tokens.push(token);
    }
    sum
}

#[test]
fn a_trie_gives_back_its_labels() {
    let labels = [vec![1, 2, 3], vec![1], vec![4, 2], vec![1, 2], vec![1]];
    let trie = LabelTrie::new(&labels).unwrap();
    assert_eq!((trie.labels(), trie.max_len()), (labels.to_vec(), 3));
}

fn ask(bench: &mut Bench, prompt: &[u32], labels: &[Vec<u32>], adapter: u32, skip_below: f32) -> Stream {
    let stream = Stream::default();
    let labels = Arc::new(LabelTrie::new(labels).unwrap());
    let work = Work::Score(Score { labels, skip_below, sink: Box::new(stream.clone()) });
    let mut request = bench.request(prompt, work);
    request.adapter = AdapterId(adapter);
    bench.submit(request);
    stream
}

fn assert_exact(fake: &FakeConfig, adapter: u32, prompt: &[u32], labels: &[Vec<u32>], stream: &Stream) {
    let scores = stream.scores().unwrap_or_else(|| panic!("{:?}", stream.events()));
    assert_eq!(scores.len(), labels.len());
    for (label, &score) in labels.iter().zip(&scores) {
        let wanted = alone(fake, AdapterId(adapter), prompt, label);
        assert!((f64::from(score) - wanted).abs() < 1e-3, "{label:?}: {score} is not {wanted}");
    }
}

/// Labels over few tokens, so that many begin alike or with each other.
fn labels() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0u32..4, 1..5), 1..14)
}

#[derive(Debug, Clone)]
struct Arrival {
    salt: u32,
    shared: usize,
    len: usize,
    adapter: u32,
    priority: u8,
    /// Scores these, or generates.
    labels: Option<Vec<Vec<u32>>>,
    hang_up_after: Option<usize>,
    turns_before: usize,
}

fn arrival() -> impl Strategy<Value = Arrival> {
    let what = (0u32..4, 0usize..30, 1usize..30, 0u32..3, any::<u8>());
    let how = (prop::option::weighted(0.7, labels()), prop::option::weighted(0.2, 0usize..20), 0usize..5);
    (what, how).prop_map(|((salt, shared, len, adapter, priority), (labels, hang_up_after, turns_before))| {
        Arrival { salt, shared, len, adapter, priority, labels, hang_up_after, turns_before }
    })
}

impl Arrival {
    fn prompt(&self) -> Vec<u32> {
        let shared = (0..self.shared as u32).map(|idx| idx % 5);
        shared.chain((0..self.len as u32).map(|idx| (idx * self.salt) % 7)).collect()
    }
}

fn check(arrivals: &[Arrival], fake: FakeConfig, config: SchedulerConfig, planner: Option<Holding>) {
    let planner = planner.map(|planner| Box::new(planner) as Box<dyn crate::plan::Planner>);
    let mut bench = Bench::with(fake, config, planner, None);
    let mut asked: Vec<(Arrival, Stream)> = Vec::new();
    let mut turns = 0;
    for arrival in arrivals {
        for _ in 0..arrival.turns_before {
            bench.turn();
            turns += 1;
            for (arrival, stream) in &asked {
                if arrival.hang_up_after.is_some_and(|after| after < turns) {
                    stream.hang_up();
                }
            }
        }
        let stream = match &arrival.labels {
            Some(labels) => ask(&mut bench, &arrival.prompt(), labels, arrival.adapter, 0.0),
            None => {
                let stream = Stream::default();
                let mut request = bench.request(&arrival.prompt(), greedy(&[&stream], 12));
                (request.adapter, request.priority) = (AdapterId(arrival.adapter), arrival.priority);
                bench.submit(request);
                stream
            }
        };
        asked.push((arrival.clone(), stream));
    }
    bench.run(20_000);
    for (arrival, stream) in asked.iter().filter(|(arrival, _)| arrival.hang_up_after.is_none()) {
        let prompt = arrival.prompt();
        match &arrival.labels {
            Some(labels) => assert_exact(&bench.fake, arrival.adapter, &prompt, labels, stream),
            None => {
                let expected = bench.expected(AdapterId(arrival.adapter), &prompt, 12);
                assert_eq!(stream.tokens(), expected);
            }
        }
    }
    assert_eq!(bench.scheduler.cache.live(), 0);
    assert_eq!(bench.scheduler.saved_bytes, 0);
    assert!(bench.handle.is_idle());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scores_are_exact_and_nothing_leaks(
        arrivals in prop::collection::vec(arrival(), 1..10),
        (kv, slots, budget, rows, outputs) in (80usize..200, 2usize..7, 1usize..64, 2usize..40, 2usize..16),
        (host, cache, max_unshared) in (any::<bool>(), any::<bool>(), 0usize..60),
        hold in prop::option::of((1u32..20, any::<bool>())),
    ) {
        let mut fake = Bench::tiny(kv, slots);
        (fake.capabilities.max_rows, fake.capabilities.max_outputs) = (rows, outputs);
        let config = SchedulerConfig {
            token_budget: budget,
            prefix_cache: cache,
            preemption: if host { Preemption::Host } else { Preemption::Recompute },
            host_state_bytes: 1200,
            max_unshared,
            ..SchedulerConfig::default()
        };
        let planner = hold.map(|(steps, open)| {
            let planner = Holding::steps(steps);
            if open { planner.open() } else { planner }
        });
        check(&arrivals, fake, config, planner);
    }

    #[test]
    fn what_is_skipped_is_within_its_bound(labels in labels(), salt in 0u32..100, skip_below in 0.0f32..0.5) {
        let mut bench = Bench::new(Bench::tiny(256, 8), SchedulerConfig::default());
        let mut labels = labels;
        labels.sort();
        labels.dedup();
        let prompt = prompt(salt, 20);
        let (exact, bounded) =
            (ask(&mut bench, &prompt, &labels, 0, 0.0), ask(&mut bench, &prompt, &labels, 0, skip_below));
        bench.run(100);
        let shares = |stream: &Stream| -> Vec<f64> {
            let weights: Vec<f64> =
                stream.scores().unwrap().into_iter().map(|score| f64::from(score).exp()).collect();
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|weight| weight / total).collect()
        };
        let bound = labels.len() as f64 * f64::from(skip_below) + 1e-5;
        for (exact, bounded) in shares(&exact).into_iter().zip(shares(&bounded)) {
            prop_assert!((exact - bounded).abs() <= bound, "{exact} {bounded} {bound}");
        }
    }
}

#[test]
fn a_prompt_is_computed_once_and_labels_in_the_steps_that_they_need() {
    let mut bench = Bench::new(
        Bench::tiny(256, 16),
        SchedulerConfig {
            target_step: std::time::Duration::ZERO,
            max_cached: 100,
            ..SchedulerConfig::default()
        },
    );
    let one_token: Vec<Vec<u32>> = (0..9).map(|token| vec![token]).collect();
    let ragged = vec![vec![1, 2, 3], vec![1, 2], vec![1, 4], vec![5], vec![6, 7, 8, 9]];
    let first = ask(&mut bench, &prompt(1, 40), &one_token, 0, 0.0);
    bench.turn();
    assert_exact(&bench.fake, 0, &prompt(1, 40), &one_token, &first);
    let second = ask(&mut bench, &prompt(2, 40), &ragged, 0, 0.0);
    bench.turn();
    assert!(second.scores().is_none());
    bench.turn();
    assert_exact(&bench.fake, 0, &prompt(2, 40), &ragged, &second);
    // What is kept is the prompt alone, and the next one finds it.
    let again = ask(&mut bench, &prompt(2, 40), &ragged, 0, 0.0);
    bench.run(10);
    assert_eq!(again.cached(), Some(39));
    assert_eq!(again.scores(), second.scores());
}

#[test]
fn labels_that_can_never_fit_are_refused() {
    let mut bench = Bench::new(Bench::tiny(64, 4), SchedulerConfig::default());
    let fits = ask(&mut bench, &prompt(3, 62), &[vec![1, 2, 3]], 0, 0.0);
    let too_long = ask(&mut bench, &prompt(3, 63), &[vec![1, 2, 3]], 0, 0.0);
    bench.run(100);
    assert_exact(&bench.fake, 0, &prompt(3, 62), &[vec![1, 2, 3]], &fits);
    assert!(matches!(too_long.failure(), Some(Failure::TooLong { tokens: 63, capacity: 64 })));
}

#[test]
fn an_engine_failure_between_paths_gives_everything_back() {
    let fake = FakeConfig { fail_at_step: Some(1), ..Bench::tiny(256, 8) };
    let mut bench = Bench::new(fake, SchedulerConfig::default());
    let labels = vec![vec![1, 2, 3], vec![2, 3], vec![3, 4]];
    let unlucky = ask(&mut bench, &prompt(4, 20), &labels, 0, 0.0);
    bench.turn();
    bench.turn();
    assert!(matches!(unlucky.failure(), Some(Failure::Engine(_))));
    let lucky = ask(&mut bench, &prompt(4, 20), &labels, 0, 0.0);
    bench.run(30);
    assert_exact(&bench.fake, 0, &prompt(4, 20), &labels, &lucky);
    assert_eq!(bench.scheduler.cache.live(), 0);
}
