//! An engine that draws tokens gives the answers that the scheduler's own sampler gives, and is asked
//! wherever it can.

use quern_engine::fake::FakeConfig;
use quern_engine::{Output, TokenId};

use super::harness::{Bench, HOST_DRAWER, Stream, Successor, greedy, prompt};
use crate::SchedulerConfig;
use crate::constraint::{Constraint, ConstraintError};
use crate::draft::Drafter;
use crate::request::{Event, Generate, SamplingParams, Work};

/// Allows the tokens that the last one allows to follow: a twentieth of all. After `left` tokens it is
/// stuck, or allows none.
#[derive(Clone)]
struct Following {
    last: TokenId,
    left: usize,
    is_stuck: bool,
}

impl Constraint for Following {
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError> {
        mask.fill(0);
        if self.left == 0 && self.is_stuck {
            return Err(ConstraintError("stuck".into()));
        }
        let allowed = (self.last as usize * 7 % 20..320).step_by(20).filter(|_| self.left > 0);
        allowed.for_each(|token| mask[token / 32] |= 1 << (token % 32));
        Ok(())
    }

    fn accept(&mut self, token: TokenId) -> Result<(), ConstraintError> {
        assert_eq!(token % 20, self.last * 7 % 20, "a banned token was drawn");
        (self.last, self.left) = (token, self.left - 1);
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn clone_box(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// Rows with an output that generations asked for.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
struct Asked {
    tokens: usize,
    logits: usize,
}

/// What is asked, beside the prompt.
type Ask<'a> = dyn Fn(&mut Generate) + 'a;

/// What each of `asks` is told but for times, with an engine that samples or without, and what the engine
/// was asked for. They come one after the other and run together.
fn answers(asks: &[&Ask<'_>], samples: bool, speculate: bool) -> (Vec<Vec<Event>>, Asked) {
    let drawer = samples.then_some(HOST_DRAWER);
    let fake = FakeConfig { drawer, repetitive: speculate, ..Bench::tiny(300, 5) };
    let drafter = speculate.then(|| Box::new(Successor) as Box<dyn Drafter>);
    let config = SchedulerConfig { token_budget: 24, max_draft: 4, ..SchedulerConfig::default() };
    let mut bench = Bench::with(fake, config, None, drafter);
    let mut asked = Asked::default();
    let mut turn = |bench: &mut Bench| {
        bench.turn();
        for row in &bench.scheduler.batch.rows {
            match row.output {
                Output::Token(_) => asked.tokens += 1,
                Output::Logits => asked.logits += 1,
                Output::None | Output::Hidden => {}
            }
        }
    };
    let mut streams = Vec::new();
    for (salt, change) in (1..).zip(asks) {
        let stream = Stream::default();
        let Work::Generate(mut generate) = greedy(&[&stream], 30) else { panic!("it generates") };
        change(&mut generate);
        let request = bench.request(&prompt(salt, 20), Work::Generate(generate));
        bench.submit(request);
        streams.push(stream);
        turn(&mut bench);
    }
    while !streams.iter().all(Stream::is_over) {
        turn(&mut bench);
    }
    let is_timeless = |event: &Event| !matches!(event, Event::Started { .. });
    let told = streams.iter().map(|stream| stream.events().into_iter().filter(is_timeless).collect());
    (told.collect(), asked)
}

/// Answers are the same in both ways, with drafts and without. What the engine that samples is asked for.
#[track_caller]
fn check(asks: &[&Ask<'_>]) -> [Asked; 2] {
    [false, true].map(|speculate| {
        let (expected, plain) = answers(asks, false, speculate);
        let (found, asked) = answers(asks, true, speculate);
        assert_eq!(found, expected, "with drafts: {speculate}");
        assert_eq!(plain.tokens, 0, "an engine that does not sample is not asked to");
        assert_eq!(asked.tokens + asked.logits, plain.logits, "neither way takes more steps");
        asked
    })
}

fn warm(seed: u64) -> SamplingParams {
    SamplingParams { temperature: 1.2, seed, ..SamplingParams::default() }
}

fn follow(last: TokenId, left: usize, is_stuck: bool) -> Option<Box<dyn Constraint>> {
    Some(Box::new(Following { last, left, is_stuck }))
}

#[test]
fn plain_requests_need_no_logits() {
    let asked = check(&[
        &|_| {},
        &|generate| generate.sampling = warm(3),
        &|generate| generate.sampling = SamplingParams { top_k: 20, top_p: 0.8, ..warm(4) },
        &|generate| generate.sampling = SamplingParams { min_p: 0.1, ..warm(5) },
        &|generate| generate.stop_tokens = (0..40).collect(),
    ]);
    for asked in asked {
        assert!(asked.tokens > 0 && asked.logits == 0, "{asked:?}");
    }
}

#[test]
fn what_only_the_sampler_can_do_stays_there() {
    let params = [
        SamplingParams { repetition_penalty: 1.3, ..warm(1) },
        SamplingParams { presence_penalty: 0.5, ..warm(2) },
        SamplingParams { frequency_penalty: 0.5, ..SamplingParams::default() },
        SamplingParams { logit_bias: vec![(3, 2.0)], ..warm(3) },
    ];
    for params in params {
        for asked in check(&[&|generate| generate.sampling = params.clone()]) {
            assert!(asked.tokens == 0 && asked.logits > 0, "{params:?}: {asked:?}");
        }
    }
    for asked in check(&[&|generate| generate.logprobs = Some(2)]) {
        assert!(asked.tokens == 0 && asked.logits > 0, "logprobs: {asked:?}");
    }
    // Beside others, each is served in its own way.
    for asked in check(&[&|generate| generate.logprobs = Some(0), &|generate| generate.sampling = warm(9)]) {
        assert!(asked.tokens > 0 && asked.logits > 0, "{asked:?}");
    }
}

#[test]
fn masks_go_to_the_engine_but_for_guesses() {
    let [plain, guessing] = check(&[
        &|generate| generate.constraint = follow(1, 100, true),
        &|generate| (generate.constraint, generate.sampling) = (follow(2, 100, true), warm(8)),
        &|generate| generate.sampling = warm(9),
    ]);
    assert!(plain.tokens > 0 && plain.logits == 0, "{plain:?}");
    assert!(guessing.tokens > 0 && guessing.logits > 0, "{guessing:?}");
}

#[test]
fn constraints_that_cannot_go_on_fail_alike() {
    check(&[
        &|generate| generate.constraint = follow(1, 6, true),
        &|generate| generate.constraint = follow(2, 6, false),
        &|generate| (generate.constraint, generate.sampling) = (follow(3, 0, false), warm(8)),
        &|_| {},
    ]);
    for (ask, why) in [(follow(1, 2, true), "stuck"), (follow(1, 2, false), "no token is left to draw")] {
        let constraint = ask.expect("there is one");
        let ask: &Ask<'_> = &|generate| generate.constraint = Some(constraint.clone_box());
        let told = answers(&[ask], true, false).0.remove(0);
        assert!(matches!(told.last(), Some(Event::Failed(failure)) if failure.to_string().contains(why)));
        assert_eq!(told.len(), 3, "two tokens came before");
    }
}
