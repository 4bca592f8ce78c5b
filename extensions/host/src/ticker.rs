//! The clock of deadlines: a thread that moves the engine's epoch on.
//!
//! It ticks every [`PERIOD`] while a call is in flight or was a moment ago, and
//! sleeps otherwise, so that an idle node does not wake up thousands of times a
//! second.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::EngineWeak;

/// Time between two ticks.
pub(crate) const PERIOD: Duration = Duration::from_micros(250);

/// Ticks without a call after which the thread sleeps: 2 ms. Waking it costs a call
/// some microseconds, and a tick costs the same, on a core that could compute.
const LINGER: u32 = 8;

/// How far the kernel may move a wake-up of the thread.
#[cfg(target_os = "linux")]
const SLACK_NS: u64 = 20_000;

/// Ticks after which a call that began now is stopped, so that it has at least
/// `limit` and at most one period more.
pub(crate) fn ticks(limit: Duration) -> u64 {
    let ticks = limit.as_nanos().div_ceil(PERIOD.as_nanos());
    u64::try_from(ticks).unwrap_or(u64::MAX / 2) + 1
}

#[derive(Default)]
struct Shared {
    in_flight: AtomicU32,
    /// Set by the thread before it sleeps; whoever begins a call then wakes it.
    asleep: AtomicBool,
    /// Whether a call began since the last tick.
    called: AtomicBool,
    stop: AtomicBool,
}

/// The thread; it stops when this is dropped.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// While one exists, the thread ticks.
pub(crate) struct InFlight<'a>(&'a Shared);

impl Ticker {
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub(crate) fn start(engine: EngineWeak) -> std::io::Result<Ticker> {
        let shared = Arc::new(Shared::default());
        let for_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("quern-epoch".into())
            .stack_size(64 << 10)
            .spawn(move || for_thread.run(&engine))?;
        Ok(Ticker { shared, thread: Some(thread) })
    }

    /// To be held during a call.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        let shared = &*self.shared;
        // The order of this and of the load below mirrors the thread's: one of
        // the two sees what the other wrote, so that no call goes without ticks.
        shared.in_flight.fetch_add(1, Ordering::SeqCst);
        shared.called.store(true, Ordering::Relaxed);
        if shared.asleep.load(Ordering::SeqCst)
            && let Some(thread) = &self.thread
        {
            thread.thread().unpark();
        }
        InFlight(shared)
    }
}

impl Shared {
    fn run(&self, engine: &EngineWeak) {
        // A refusal only makes deadlines coarser.
        #[cfg(target_os = "linux")]
        let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(SLACK_NS));
        let mut quiet = 0;
        while !self.stop.load(Ordering::Acquire) {
            let busy =
                self.called.swap(false, Ordering::Relaxed) || self.in_flight.load(Ordering::Relaxed) > 0;
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet > LINGER {
                self.sleep();
                quiet = 0;
            }
            std::thread::sleep(PERIOD);
            let Some(engine) = engine.upgrade() else { return };
            engine.increment_epoch();
        }
    }

    fn sleep(&self) {
        self.asleep.store(true, Ordering::SeqCst);
        while self.in_flight.load(Ordering::SeqCst) == 0
            && !self.called.load(Ordering::Relaxed)
            && !self.stop.load(Ordering::Acquire)
        {
            std::thread::park();
        }
        self.asleep.store(false, Ordering::SeqCst);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Release);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It ends within a period; that it panicked would change nothing.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_its_whole_time_and_little_more() {
        assert_eq!(ticks(Duration::from_micros(500)), 3);
        assert_eq!(ticks(Duration::from_micros(501)), 4);
        assert_eq!(ticks(Duration::ZERO), 1);
    }

    fn wait_until(mut done: impl FnMut() -> bool) {
        let began = std::time::Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(60), "it never came");
            std::thread::yield_now();
        }
    }

    #[test]
    fn it_sleeps_while_nobody_calls_and_wakes_for_a_call() {
        let engine = wasmtime::Engine::default();
        let ticker = Ticker::start(engine.weak()).unwrap();
        let asleep = || ticker.shared.asleep.load(Ordering::SeqCst);
        for _ in 0..3 {
            wait_until(asleep);
            let call = ticker.begin();
            wait_until(|| !asleep());
            drop(call);
        }
    }
}
