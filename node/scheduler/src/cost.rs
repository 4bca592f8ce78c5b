//! What a step costs, learned from the steps that ran.
//!
//! A step takes about `fixed + rows * row + outputs * output`: reading the
//! weights once, a pass through the layers for each row, and the vocabulary's
//! matrix for each row that has an output. The three are followed by a Kalman
//! filter whose state walks at random (R. E. Kalman, "A New Approach to Linear
//! Filtering and Prediction Problems", 1960), so that they keep up with longer
//! contexts and busier machines, and so that a thousand steps of one kind, which
//! cannot tell them apart, do not bend what other steps taught.

/// How far a cost may wander from one step to the next, as a part of itself.
const WANDER: f64 = 0.02;

/// How much steps of one kind differ, as a part of their time.
const NOISE: f64 = 0.15;

/// Learned costs, in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StepCost {
    /// Of a step, however small.
    pub(crate) fixed_us: u32,
    /// Of each row.
    pub(crate) row_us: u32,
    /// Of each output, beyond its row's.
    pub(crate) output_us: u32,
}

/// Follows the costs of steps. Empty until the first step was noted.
#[derive(Debug, Default)]
pub(crate) struct CostModel {
    /// Fixed, a row, an output; in microseconds.
    costs: [f64; 3],
    /// How little is known of them.
    covariance: [[f64; 3]; 3],
}

impl CostModel {
    /// Learns from a step.
    pub(crate) fn note(&mut self, rows: usize, outputs: usize, took_us: f64) {
        let took = took_us.max(1.0);
        let step = [1.0, rows as f64, outputs as f64];
        if self.costs == [0.0; 3] {
            // A guess that any second kind of step corrects: its spread is as large as itself.
            self.costs = [took / 4.0, took / rows.max(1) as f64 / 2.0, took / rows.max(1) as f64 / 4.0];
            for idx in 0..3 {
                self.covariance[idx][idx] = self.costs[idx].powi(2);
            }
        }
        for idx in 0..3 {
            self.covariance[idx][idx] += (WANDER * self.costs[idx]).powi(2);
        }
        // How each cost varies together with the time of such a step.
        let with_time = self.covariance.map(|row| dot(&row, &step));
        let spread = dot(&with_time, &step) + (NOISE * took).powi(2);
        let surprise = took - dot(&self.costs, &step);
        for (cost, with_time) in self.costs.iter_mut().zip(with_time) {
            *cost = (*cost + with_time / spread * surprise).max(f64::MIN_POSITIVE);
        }
        for (row, with_time_row) in self.covariance.iter_mut().zip(with_time) {
            for (known, with_time_column) in row.iter_mut().zip(with_time) {
                *known -= with_time_row * with_time_column / spread;
            }
        }
    }

    /// The costs as they are known now; all 0 before the first step.
    pub(crate) fn now(&self) -> StepCost {
        let [fixed, row, output] = self.costs;
        let row_us = if row > 0.0 { row.max(1.0) } else { 0.0 };
        StepCost { fixed_us: fixed as u32, row_us: row_us as u32, output_us: output as u32 }
    }
}

fn dot(left: &[f64; 3], right: &[f64; 3]) -> f64 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

#[cfg(test)]
mod tests {
    use rand::{Rng as _, SeedableRng as _};

    use super::*;

    const TRUE_COST: [f64; 3] = [16_000.0, 6_500.0, 6_000.0];

    fn true_us(rows: usize, outputs: usize, noise: f64) -> f64 {
        dot(&TRUE_COST, &[1.0, rows as f64, outputs as f64]) * noise
    }

    #[track_caller]
    fn close(found: u32, expected: f64, part: f64) {
        assert!((f64::from(found) / expected - 1.0).abs() < part, "{found} is not near {expected}");
    }

    #[test]
    fn tells_rows_from_outputs_through_noise() {
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(5);
        let mut model = CostModel::default();
        assert_eq!(model.now(), StepCost::default());
        for _ in 0..400 {
            let decoding = random.random_range(0..9);
            let prefill = if random.random_bool(0.5) { random.random_range(1..80) } else { 0 };
            let (rows, outputs) = (decoding + prefill + 1, decoding + 1);
            model.note(rows, outputs, true_us(rows, outputs, random.random_range(0.8..1.25)));
        }
        let cost = model.now();
        close(cost.row_us, TRUE_COST[1], 0.1);
        // What a step of eight streams and a chunk takes, which planning asks for.
        let expected = true_us(8 + 40, 8, 1.0);
        close(cost.fixed_us + 48 * cost.row_us + 8 * cost.output_us, expected, 0.1);
    }

    #[test]
    fn many_steps_of_one_kind_do_not_bend_the_rest() {
        let mut model = CostModel::default();
        for idx in 0..60 {
            let (rows, outputs) = if idx % 2 == 0 { (4, 4) } else { (64, 1) };
            model.note(rows, outputs, true_us(rows, outputs, 1.0));
        }
        // Streams grow longer, and their steps slower.
        for idx in 0..1000 {
            model.note(4, 4, true_us(4, 4, 1.0 + f64::from(idx) / 4000.0));
        }
        close(model.now().row_us, TRUE_COST[1], 0.3);
    }

    #[test]
    fn keeps_up_with_a_machine_that_slows_down() {
        let mut model = CostModel::default();
        for slowness in [1.0, 3.0] {
            for idx in 0..200 {
                let (rows, outputs) = [(4, 4), (64, 1), (30, 5)][idx % 3];
                model.note(rows, outputs, true_us(rows, outputs, slowness));
            }
            close(model.now().row_us, TRUE_COST[1] * slowness, 0.1);
        }
    }
}
