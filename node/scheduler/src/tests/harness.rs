//! A scheduler that is turned by hand, one step at a time.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use quern_engine::fake::{Drawer, FakeConfig, FakeEngine};
use quern_engine::{AdapterId, Capabilities};

use crate::builtin::BuiltinPlanner;
use crate::constraint::{Constraint, ConstraintError};
use crate::draft::{DraftAsk, Drafter};
use crate::plan::{Plan, Planner, Snapshot};
use crate::request::{
    Closed, DEFAULT_PRIORITY, Event, Failure, FinishReason, Generate, Request, SamplingParams, Sink, Work,
};
use crate::sampler::Sampler;
use crate::step_loop::StepLoop;
use crate::{AdapterSource, Handle, Prepared, SchedulerConfig, build};

/// What a test sees of one sequence.
#[derive(Clone, Default)]
pub(crate) struct Stream(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    events: Vec<Event>,
    closed: bool,
    has_enough: bool,
}

impl Sink for Stream {
    fn send(&mut self, event: Event) -> Result<(), Closed> {
        let mut seen = self.0.lock().unwrap();
        if seen.closed {
            return Err(Closed);
        }
        seen.events.push(event);
        Ok(())
    }

    fn is_closed(&self) -> bool {
        self.0.lock().unwrap().closed
    }

    fn has_enough(&self) -> bool {
        self.0.lock().unwrap().has_enough
    }
}

impl Stream {
    pub(crate) fn hang_up(&self) {
        self.0.lock().unwrap().closed = true;
    }

    /// Wants nothing more, and is content.
    pub(crate) fn is_content(&self) {
        let mut seen = self.0.lock().unwrap();
        (seen.closed, seen.has_enough) = (true, true);
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        self.0.lock().unwrap().events.clone()
    }

    pub(crate) fn tokens(&self) -> Vec<u32> {
        let token = |event: &Event| match event {
            Event::Token { token, .. } => Some(*token),
            _ => None,
        };
        self.events().iter().filter_map(token).collect()
    }

    pub(crate) fn cached(&self) -> Option<u32> {
        self.events().iter().find_map(|event| match event {
            Event::Started { cached_tokens, .. } => Some(*cached_tokens),
            _ => None,
        })
    }

    pub(crate) fn finish(&self) -> Option<FinishReason> {
        self.events().iter().find_map(|event| match event {
            Event::Finished(reason) => Some(*reason),
            _ => None,
        })
    }

    pub(crate) fn scores(&self) -> Option<Vec<f32>> {
        self.events().into_iter().find_map(|event| match event {
            Event::Scores(scores) => Some(scores),
            _ => None,
        })
    }

    pub(crate) fn failure(&self) -> Option<Failure> {
        self.events().iter().find_map(|event| match event {
            Event::Failed(failure) => Some(failure.clone()),
            _ => None,
        })
    }

    pub(crate) fn is_over(&self) -> bool {
        let last = |event: &Event| !matches!(event, Event::Started { .. } | Event::Token { .. });
        self.events().last().is_some_and(last)
    }
}

/// An adapter of one byte, which a test may take away or pin.
#[derive(Default)]
pub(crate) struct Content {
    pub(crate) is_gone: AtomicBool,
    pub(crate) is_pinned: bool,
    pub(crate) num_held: AtomicUsize,
    pub(crate) num_loads: AtomicUsize,
}

struct Here;

impl Prepared for Here {
    fn path(&self) -> &Path {
        env!("CARGO_MANIFEST_DIR").as_ref()
    }
}

impl AdapterSource for Content {
    fn size_bytes(&self) -> u64 {
        1
    }

    fn prepared(&self) -> Option<Arc<dyn Prepared>> {
        (!self.is_gone.load(Ordering::Relaxed)).then(|| Arc::new(Here) as Arc<dyn Prepared>)
    }

    fn is_pinned(&self) -> bool {
        self.is_pinned
    }

    fn note_held(&self, is_held: bool) {
        match is_held {
            true => {
                self.num_loads.fetch_add(1, Ordering::Relaxed);
                self.num_held.fetch_add(1, Ordering::Relaxed)
            }
            false => self.num_held.fetch_sub(1, Ordering::Relaxed),
        };
    }
}

/// Draws for the fake engine as the scheduler draws by itself, to the last bit.
pub(crate) const HOST_DRAWER: Drawer = |logits, draw, position, mask| {
    let quern_engine::Draw { temperature, top_k, top_p, min_p, seed, .. } = draw;
    let params = SamplingParams { temperature, top_k, top_p, min_p, seed, ..SamplingParams::default() };
    let mut fixed = mask.map(|mask| Fixed(mask.to_vec()));
    let constraint = fixed.as_mut().map(|fixed| fixed as &mut dyn Constraint);
    let drawn = Sampler::new(params, &[], None).sample(logits, position.into(), constraint);
    drawn.ok().map(|drawn| drawn.token)
};

/// A mask that stays.
#[derive(Clone)]
struct Fixed(Vec<u32>);

impl Constraint for Fixed {
    fn mask(&mut self, mask: &mut [u32]) -> Result<(), ConstraintError> {
        mask.copy_from_slice(&self.0);
        Ok(())
    }

    fn accept(&mut self, _token: u32) -> Result<(), ConstraintError> {
        Ok(())
    }

    fn is_finished(&self) -> bool {
        false
    }

    fn clone_box(&self) -> Box<dyn Constraint> {
        Box::new(self.clone())
    }
}

/// A scheduler on a fake engine, with its books checked after every step.
pub(crate) struct Bench {
    pub(crate) scheduler: StepLoop,
    pub(crate) handle: Handle,
    pub(crate) fake: FakeConfig,
    next_request: u64,
}

impl Bench {
    pub(crate) fn new(fake: FakeConfig, config: SchedulerConfig) -> Bench {
        Bench::with(fake, config, None, None)
    }

    pub(crate) fn with(
        fake: FakeConfig,
        mut config: SchedulerConfig,
        planner: Option<Box<dyn Planner>>,
        drafter: Option<Box<dyn Drafter>>,
    ) -> Bench {
        config.check_invariants = true;
        for adapter in 1..4 {
            config.adapters.insert(AdapterId(adapter), Arc::new(Content::default()));
        }
        let engine = FakeEngine::new(fake.clone());
        let queue = crate::Queue::new(config.max_queued);
        let (scheduler, handle) = build(&queue, Box::new(engine), config, planner, drafter);
        Bench { scheduler, handle, fake, next_request: 0 }
    }

    /// Small numbers, so that limits are met early.
    pub(crate) fn tiny(kv_capacity: usize, max_sequences: usize) -> FakeConfig {
        let capabilities = Capabilities {
            kv_capacity,
            max_sequences,
            max_sequence_len: kv_capacity.min(256),
            max_rows: 64,
            max_outputs: 16,
            ..FakeConfig::default().capabilities
        };
        FakeConfig { capabilities, ..FakeConfig::default() }
    }

    pub(crate) fn request(&mut self, prompt: &[u32], work: Work) -> Request {
        self.next_request += 1;
        Request {
            id: self.next_request,
            prompt: prompt.into(),
            adapter: AdapterId::BASE,
            tenant: 0,
            priority: DEFAULT_PRIORITY,
            deadline: None,
            arrived: Instant::now(),
            work,
        }
    }

    pub(crate) fn submit(&mut self, request: Request) {
        let permit = self.handle.reserve().unwrap();
        self.handle.submit(permit, request).unwrap();
    }

    /// As [`Bench::ask`], with an adapter.
    pub(crate) fn ask_with(&mut self, adapter: AdapterId, prompt: &[u32], max_new: u32) -> Stream {
        let stream = Stream::default();
        let request = self.request(prompt, greedy(&[&stream], max_new));
        self.submit(Request { adapter, ..request });
        stream
    }

    /// Asks for `max_new` greedy tokens.
    pub(crate) fn ask(&mut self, prompt: &[u32], max_new: u32) -> Stream {
        let stream = Stream::default();
        let request = self.request(prompt, greedy(&[&stream], max_new));
        self.submit(request);
        stream
    }

    /// One turn of the loop, without blocking.
    pub(crate) fn turn(&mut self) {
        let plan = {
            assert!(self.scheduler.ingest_now());
            self.scheduler.plan()
        };
        self.scheduler.assemble(&plan);
        self.scheduler.publish_load();
        let held = self.scheduler.waiting.len() + self.scheduler.running.len();
        assert_eq!(self.handle.is_idle(), held == 0, "what the handle says during a step");
        self.scheduler.step();
        self.scheduler.commit();
    }

    /// Turns until nothing is left, at most `limit` times.
    pub(crate) fn run(&mut self, limit: usize) {
        for _ in 0..limit {
            self.turn();
            if self.scheduler.waiting.is_empty() && self.scheduler.running.is_empty() {
                return;
            }
        }
        panic!("still busy after {limit} steps");
    }

    pub(crate) fn expected(&self, adapter: AdapterId, prompt: &[u32], num_new: usize) -> Vec<u32> {
        FakeEngine::expected(&self.fake, adapter, prompt, num_new)
    }
}

/// The built-in policy, with plans that may be held.
pub(crate) struct Holding {
    inner: BuiltinPlanner,
    steps: u32,
    /// Leaves chunks to the step loop.
    open: bool,
    pub(crate) asked: Arc<AtomicUsize>,
    pub(crate) stands: Arc<AtomicBool>,
}

impl Holding {
    pub(crate) fn steps(steps: u32) -> Holding {
        Holding {
            inner: BuiltinPlanner::default(),
            steps,
            open: false,
            asked: Arc::default(),
            stands: Arc::new(AtomicBool::new(true)),
        }
    }

    pub(crate) fn open(self) -> Holding {
        Holding { open: true, ..self }
    }
}

impl Planner for Holding {
    fn name(&self) -> &str {
        "holding"
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let plan = self.inner.plan(snapshot)?;
        let mut plan = Plan { hold_steps: self.steps, ..plan };
        if self.open {
            plan.admit_chunk.clear();
            plan.running_chunk.clear();
        }
        Some(plan)
    }

    fn stands(&self) -> bool {
        self.stands.load(Ordering::Relaxed)
    }
}

/// Guesses what the repetitive fake engine mostly says, so that drafts are
/// accepted in part.
pub(crate) struct Successor;

impl Drafter for Successor {
    fn name(&self) -> &str {
        "successor"
    }

    fn draft(&mut self, asks: &[DraftAsk<'_>], out: &mut Vec<Vec<u32>>) {
        for ask in asks {
            let last = ask.tokens.last().copied().unwrap_or(0);
            out.push((1..=ask.max).map(|ahead| (last + ahead) % 320).collect());
        }
    }

    fn forget(&mut self, _seq: u64) {}
}

/// Greedy generation without stop tokens, one choice for each stream.
pub(crate) fn greedy(streams: &[&Stream], max_new: u32) -> Work {
    Work::Generate(Generate {
        sinks: streams.iter().map(|&stream| Box::new(stream.clone()) as Box<dyn Sink>).collect(),
        sampling: SamplingParams::default(),
        max_new,
        stop_tokens: Arc::from([]),
        constraint: None,
        logprobs: None,
        speculate: true,
    })
}

/// A prompt of `len` tokens that differs from others' by `salt`.
pub(crate) fn prompt(salt: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|idx| (salt * 31 + idx * 7 + idx * idx) % 320).collect()
}
