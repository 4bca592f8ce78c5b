//! Live progress: counters that the load writes, and the line on the terminal that shows them.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};

/// Counters of the phase under way.
#[derive(Debug, Default)]
pub struct Progress {
    label: Mutex<String>,
    num_ok: AtomicU64,
    num_failed: AtomicU64,
    num_tokens: AtomicU64,
}

impl Progress {
    /// Begins a phase: counters go back to zero.
    pub fn begin(&self, label: String) {
        for counter in [&self.num_ok, &self.num_failed, &self.num_tokens] {
            counter.store(0, Ordering::Relaxed);
        }
        *self.label.lock().expect("no holder of the lock can panic") = label;
    }

    /// A delta arrived.
    pub fn token(&self) {
        self.num_tokens.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ended.
    pub fn request(&self, is_ok: bool) {
        if is_ok { &self.num_ok } else { &self.num_failed }.fetch_add(1, Ordering::Relaxed);
    }

    fn line(&self) -> String {
        let label = self.label.lock().expect("no holder of the lock can panic");
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (ok, failed, tokens) = (get(&self.num_ok), get(&self.num_failed), get(&self.num_tokens));
        format!("{label}: {ok} done, {failed} failed, {tokens} tokens")
    }
}

/// The line on the terminal; nothing is drawn where there is no terminal.
pub struct ProgressLine(ProgressBar);

impl ProgressLine {
    /// Begins to draw.
    pub fn new() -> Self {
        let bar = ProgressBar::new_spinner();
        bar.set_style(
            ProgressStyle::with_template("{spinner} [{elapsed}] {msg}").expect("the template is a constant"),
        );
        Self(bar)
    }

    /// Draws the counters as they are now.
    pub fn draw(&self, progress: &Progress) {
        self.0.set_message(progress.line());
        self.0.tick();
    }
}

impl Default for ProgressLine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
