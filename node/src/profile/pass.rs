//! A prefill and decode steps, with the times of their steps: the work that is profiled.

use std::time::{Duration, Instant};

use quern_engine::{AdapterId, Engine, EngineError, Output, Row, TokenId};
use quern_llama::{LlamaEngine, Operation};

/// What is computed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Work {
    pub(super) prefill_tokens: u32,
    /// Of one sequence behind the prefill, one token a step.
    pub(super) decode_steps: u32,
    /// Rows in a step; a longer prefill takes several.
    pub(super) max_rows: usize,
}

impl Work {
    /// Tokens of the sequence at its end.
    pub(super) fn num_tokens(&self) -> u64 {
        u64::from(self.prefill_tokens) + u64::from(self.decode_steps)
    }
}

/// One step, from the call of the engine to its return.
#[derive(Debug, Clone, Copy)]
pub(super) struct Step {
    pub(super) num_rows: usize,
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

impl Step {
    fn took(&self) -> Duration {
        self.ended - self.began
    }
}

/// The time in all steps together.
pub(super) fn sum(steps: &[Step]) -> Duration {
    steps.iter().map(Step::took).sum()
}

/// The work done once.
#[derive(Debug)]
struct Pass {
    prefill: Vec<Step>,
    decode: Vec<Step>,
}

/// One half of the work.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) name: &'static str,
    /// How long it took as a node computes it, before and behind the timed one.
    pub(super) untimed: [Duration; 2],
    /// With every operation computed alone.
    pub(super) steps: Vec<Step>,
    /// All of these steps' operations, in their order.
    pub(super) operations: Vec<Operation>,
}

/// Does the work with operations timed and, before and behind it, without: the machine's speed drifts.
pub(super) fn measure(engine: &mut LlamaEngine, work: Work) -> Result<[Phase; 2], EngineError> {
    // Pays for pages of the file and for buffers.
    pass(engine, Work { decode_steps: 1, ..work })?;
    let before = pass(engine, work)?;
    engine.time_operations();
    let timed = pass(engine, work)?;
    let mut prefill = engine.take_operations();
    let after = pass(engine, work)?;
    let decode_began = timed.decode[0].began;
    let decode = prefill.split_off(prefill.partition_point(|operation| operation.began < decode_began));
    Ok([
        Phase {
            name: "prefill",
            untimed: [sum(&before.prefill), sum(&after.prefill)],
            steps: timed.prefill,
            operations: prefill,
        },
        Phase {
            name: "decode",
            untimed: [sum(&before.decode), sum(&after.decode)],
            steps: timed.decode,
            operations: decode,
        },
    ])
}

fn pass(engine: &mut dyn Engine, work: Work) -> Result<Pass, EngineError> {
    let vocab_size = engine.capabilities().vocab_size;
    let row = |pos: u32, output| Row {
        seq: 0,
        pos,
        token: token(pos, vocab_size),
        adapter: AdapterId::BASE,
        output,
    };
    let last = work.prefill_tokens - 1;
    let prompt = (0..work.prefill_tokens).map(|pos| match pos == last {
        true => row(pos, Output::Logits),
        false => row(pos, Output::None),
    });
    let prompt: Vec<Row> = prompt.collect();
    let (mut prefill, mut decode) = (Vec::new(), Vec::new());
    for rows in prompt.chunks(work.max_rows.max(1)) {
        prefill.push(step(engine, rows)?);
    }
    for pos in (work.prefill_tokens..).take(work.decode_steps as usize) {
        decode.push(step(engine, &[row(pos, Output::Logits)])?);
    }
    engine.truncate(0, 0)?;
    Ok(Pass { prefill, decode })
}

fn step(engine: &mut dyn Engine, rows: &[Row]) -> Result<Step, EngineError> {
    let began = Instant::now();
    engine.step(rows)?;
    Ok(Step { num_rows: rows.len(), began, ended: Instant::now() })
}

/// Which tokens they are makes no difference to a dense model's operations; they are spread over the vocabulary, so
/// that their embeddings are not all in one place.
fn token(pos: u32, vocab_size: usize) -> TokenId {
    let spread = u64::from(pos) * 2_654_435_761 % (vocab_size as u64).max(1);
    spread as TokenId
}

#[cfg(test)]
mod tests {
    use quern_engine::fake::{FakeConfig, FakeEngine};

    use super::*;

    #[test]
    fn a_pass_prefills_in_steps_decodes_and_leaves_nothing() {
        let mut engine = FakeEngine::new(FakeConfig::default());
        let work = Work { prefill_tokens: 10, decode_steps: 3, max_rows: 4 };
        for _ in 0..2 {
            let Pass { prefill, decode } = pass(&mut engine, work).expect("it computes");
            assert_eq!(prefill.iter().map(|step| step.num_rows).collect::<Vec<_>>(), [4, 4, 2]);
            assert_eq!(decode.iter().map(|step| step.num_rows).collect::<Vec<_>>(), [1, 1, 1]);
            let steps: Vec<_> = prefill.into_iter().chain(decode).collect();
            assert!(steps.is_sorted_by(|a, b| a.ended <= b.began));
        }
    }

    #[test]
    fn a_step_that_fails_is_told() {
        let config = FakeConfig { fail_at_step: Some(1), ..FakeConfig::default() };
        let work = Work { prefill_tokens: 10, decode_steps: 3, max_rows: 64 };
        assert!(pass(&mut FakeEngine::new(config), work).is_err());
    }

    #[test]
    fn tokens_are_of_the_vocabulary() {
        assert!((0..10_000).all(|pos| token(pos, 320) < 320));
        assert!((0..64).map(|pos| token(pos, 320)).collect::<std::collections::BTreeSet<_>>().len() > 32);
    }
}
