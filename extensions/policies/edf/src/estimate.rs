//! How long a sequence still takes, from what the node has learned about steps.

use quern_policy_sdk::tables::{Running, Step, Waiting};

/// The part of what is new in the learned pace of steps: one in this many.
const MEMORY: u32 = 16;

/// How long steps with prefill and decode together take: a stream's next token
/// waits for others' prefill too, which the costs of its own row do not tell.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    step_us: u32,
}

impl Pace {
    /// Takes in how long the last step took.
    pub(crate) fn note(&mut self, step: &Step) {
        let old = u64::from(if self.step_us == 0 { step.last_step_us } else { self.step_us });
        let mixed = old * u64::from(MEMORY - 1) + u64::from(step.last_step_us);
        self.step_us = (mixed / u64::from(MEMORY)) as u32;
    }
}

/// What steps cost, and how long answers are.
pub(crate) struct Estimate {
    /// Each row of prefill.
    row_us: i64,
    /// A step with one of a stream's tokens.
    decode_us: i64,
    fixed_us: i64,
    /// How long answers are, as far as the deadline covers them.
    new_tokens: u32,
}

impl Estimate {
    pub(crate) fn new(step: &Step, num_running: usize, pace: &Pace, new_tokens: u32) -> Estimate {
        let stream_us = i64::from(step.row_us) + i64::from(step.output_us);
        let fixed_us = i64::from(step.fixed_us);
        let alone_us = fixed_us + stream_us * (num_running as i64 + 1);
        let decode_us = alone_us.max(i64::from(pace.step_us));
        Estimate { row_us: i64::from(step.row_us), decode_us, fixed_us, new_tokens }
    }

    /// Of a sequence that starts now.
    pub(crate) fn waiting_us(&self, waiting: &Waiting, row: usize) -> i64 {
        self.fresh_us(waiting.work(row), waiting.max_new[row])
    }

    /// Of a sequence that runs.
    pub(crate) fn running_us(&self, running: &Running, row: usize) -> i64 {
        let new = self.new_tokens.min(running.max_new[row]).saturating_sub(running.generated[row]);
        if running.decodes(row) {
            return i64::from(new.max(1)) * self.decode_us;
        }
        self.fresh_us(running.prompt_left[row], new)
    }

    /// Of a sequence that runs, if it were paused now and had to begin again.
    pub(crate) fn again_us(&self, running: &Running, row: usize) -> i64 {
        self.running_us(running, row) + self.fixed_us + i64::from(running.kv[row]) * self.row_us
    }

    fn fresh_us(&self, prompt: u32, max_new: u32) -> i64 {
        // The prompt's last step draws the first token.
        let new = self.new_tokens.min(max_new).saturating_sub(1);
        self.fixed_us + i64::from(prompt) * self.row_us + i64::from(new) * self.decode_us
    }
}
