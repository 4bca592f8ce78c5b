//! When those who run arrived, which only the waiting ones' table tells.

use crate::tables::{Plan, Running, Step, Waiting};

/// Remembers arrivals from the plans that started them, so that a policy whose order
/// knows ageing can place a prompt that has begun among those that have not.
#[derive(Debug, Default)]
pub struct Arrivals {
    /// Sequence and arrival in microseconds, by sequence.
    known: Vec<(u64, u64)>,
}

impl Arrivals {
    /// When a sequence arrived; none if another instance or policy started it.
    pub fn at_us(&self, id: u64) -> Option<u64> {
        let place = self.known.binary_search_by_key(&id, |&(id, _)| id).ok()?;
        Some(self.known[place].1)
    }

    /// How long ago a running row arrived.
    pub fn age_us(&self, step: &Step, running: &Running, row: usize) -> Option<u64> {
        self.at_us(running.id[row]).map(|at_us| step.now_us.saturating_sub(at_us))
    }

    /// Takes in what a plan starts, and sooner or later forgets those who run no more.
    pub fn note(&mut self, step: &Step, waiting: &Waiting, running: &Running, plan: &Plan) {
        // Now and then is enough to keep memory bounded.
        if self.known.len() > 2 * running.len() + 64 {
            let mut ids = running.id.clone();
            ids.sort_unstable();
            self.known.retain(|(id, _)| ids.binary_search(id).is_ok());
        }
        for &row in &plan.admit {
            let row = row as usize;
            let arrival = (waiting.id[row], step.now_us.saturating_sub(u64::from(waiting.age_us[row])));
            match self.known.binary_search_by_key(&arrival.0, |&(id, _)| id) {
                Ok(place) => self.known[place] = arrival,
                Err(place) => self.known.insert(place, arrival),
            }
        }
    }
}
