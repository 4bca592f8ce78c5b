//! The shortest prompt first, with ageing.
//!
//! What counts is the work that a start means: tokens of the prompt that the
//! prefix cache does not hold. Serving short ones first makes the mean time to
//! first token as small as it can be, at the cost of long prompts, which a stream
//! of short ones would hold back for ever. So waiting makes a prompt count as
//! shorter: by `ageing-tokens-per-s` for each second. One of n tokens is held back
//! by newcomers for at most n / ageing seconds, whatever comes.
#![deny(missing_docs)]

use quern_policy_sdk::prelude::*;

/// See the module's text.
#[derive(Debug)]
pub struct ShortestPrefill {
    turns: AdapterTurns,
    arrivals: Arrivals,
    ageing_tokens_per_s: u64,
}

impl Default for ShortestPrefill {
    fn default() -> Self {
        ShortestPrefill {
            turns: AdapterTurns::default(),
            arrivals: Arrivals::default(),
            ageing_tokens_per_s: 500,
        }
    }
}

impl Policy for ShortestPrefill {
    fn init(&mut self, _saved: Option<&[u8]>) -> Result<(), String> {
        let mut settings = Settings::default();
        self.ageing_tokens_per_s =
            settings.number("ageing-tokens-per-s", self.ageing_tokens_per_s, 0..=1_000_000);
        self.turns = AdapterTurns::with_quantum(settings.number("quantum-steps", 16, 1..=100_000));
        settings.done()
    }
}

impl SchedulerPolicy for ShortestPrefill {
    fn plan(&mut self, step: &Step, waiting: &Waiting, running: &Running) -> Answer<Plan> {
        let (ageing, arrivals) = (self.ageing_tokens_per_s, &self.arrivals);
        // In millionths of a token, so that a microsecond of ageing is a whole number.
        let length = |tokens: u32, age_us: u64| {
            let credit = i64::try_from(age_us.saturating_mul(ageing)).unwrap_or(i64::MAX);
            i64::from(tokens) * 1_000_000 - credit
        };
        let of_running = |row: usize| match arrivals.age_us(step, running, row) {
            // Of those who decode, who has drawn the fewest tokens loses the least by
            // making room, and so comes last.
            _ if running.decodes(row) => -i64::from(running.generated[row]),
            Some(age_us) => length(running.prompt_left[row], age_us),
            // Nobody knows how long it has waited.
            None => i64::MIN,
        };
        let of_waiting = |row: usize| length(waiting.work(row), u64::from(waiting.age_us[row]));
        let plan = self.turns.plan(step, waiting, running, |plan| {
            plan.serve(of_running, of_waiting);
        });
        self.arrivals.note(step, waiting, running, &plan);
        Ok(Some(plan))
    }
}

export_policy!(ShortestPrefill: scheduler);
