//! Perplexities that are known beforehand, on an engine that says what a test wants.

use std::path::Path;

use quern_engine::{Capabilities, SeqId, StepOutput, check_batch};

use super::*;

const VOCAB: usize = 50;

/// Expects the successor of each token with a fixed lead over all others, and keeps
/// account of what it was asked.
struct Successor {
    caps: Capabilities,
    lead: f32,
    logits: Vec<f32>,
    len: u32,
    num_windows: usize,
    /// The positions of each window's outputs.
    outputs: Vec<u32>,
    first_tokens: Vec<TokenId>,
}

impl Successor {
    fn new(lead: f32) -> Successor {
        let caps = Capabilities {
            vocab_size: VOCAB,
            hidden_size: 1,
            kv_capacity: 64,
            max_sequences: 1,
            max_sequence_len: 64,
            max_rows: 7,
            max_outputs: 3,
            mixes_adapters: false,
            mixes_outputs: false,
            samples: false,
            row_tile: 1,
            walks_idle_state: false,
        };
        let (logits, outputs, first_tokens) = (Vec::new(), Vec::new(), Vec::new());
        Successor { caps, lead, logits, len: 0, num_windows: 0, outputs, first_tokens }
    }
}

impl Engine for Successor {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        check_batch(&self.caps, rows, &[])?;
        self.logits.clear();
        for row in rows {
            assert_eq!(row.pos, self.len, "rows continue their sequence");
            self.len += 1;
            if row.pos == 0 {
                self.first_tokens.push(row.token);
            }
            if row.output == Output::Logits {
                self.outputs.push(row.pos);
                let next = (row.token as usize + 1) % VOCAB;
                self.logits.extend((0..VOCAB).map(|token| if token == next { self.lead } else { 0.0 }));
            }
        }
        Ok(StepOutput { logits: &self.logits, ..StepOutput::default() })
    }

    fn fork(&mut self, _: SeqId, _: SeqId, _: u32) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("fork"))
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        assert_eq!((seq, len), (0, 0));
        self.num_windows += 1;
        self.len = 0;
        Ok(())
    }

    fn save(&mut self, _: SeqId) -> Result<Vec<u8>, EngineError> {
        Err(EngineError::Unsupported("save"))
    }

    fn restore(&mut self, _: SeqId, _: &[u8]) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("restore"))
    }

    fn load_adapter(&mut self, _: AdapterId, _: &Path) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("adapters"))
    }

    fn unload_adapter(&mut self, _: AdapterId) -> Result<(), EngineError> {
        Err(EngineError::Unsupported("adapters"))
    }
}

fn run(engine: &mut Successor, tokens: &[TokenId], cut: Cut) -> Vec<f32> {
    let mut num_rows = 0;
    let losses = judge(engine, AdapterId::BASE, tokens, &cut, &mut |rows| num_rows += rows);
    assert_eq!(num_rows, cut.num_windows(tokens.len()) * (cut.context - 1), "the last row predicts nothing");
    losses.expect("the engine has room")
}

fn perplexity(losses: &[f32]) -> f64 {
    (losses.iter().copied().map(f64::from).sum::<f64>() / losses.len() as f64).exp()
}

const WHOLE: Cut = Cut { context: 16, stride: 16, max_windows: usize::MAX, bos: None };

#[test]
fn a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity() {
    let tokens: Vec<TokenId> = (0..100).map(|idx| idx * 7 % VOCAB as u32).collect();
    let losses = run(&mut Successor::new(0.0), &tokens, WHOLE);
    assert!((perplexity(&losses) - VOCAB as f64).abs() < 1e-4, "{}", perplexity(&losses));
}

#[test]
fn each_prediction_is_held_against_the_token_behind_it() {
    // Of all weights' sum, exp(lead) is the successor's and 1 is any other token's.
    let lead = 4.0f64;
    let sum = lead.exp() + (VOCAB - 1) as f64;
    let counting: Vec<TokenId> = (0..90).map(|idx| idx % VOCAB as u32).collect();
    let losses = run(&mut Successor::new(4.0), &counting, WHOLE);
    assert!((perplexity(&losses) - sum / lead.exp()).abs() < 1e-4, "{}", perplexity(&losses));
    let losses = run(&mut Successor::new(4.0), &[9; 90], WHOLE);
    assert!((perplexity(&losses) - sum).abs() < 1e-2, "{}", perplexity(&losses));
}

#[test]
fn the_second_half_of_each_window_is_judged() {
    let tokens: Vec<TokenId> = (0..(16 * 3 + 15)).map(|idx| idx % VOCAB as u32).collect();
    let mut engine = Successor::new(1.0);
    let losses = run(&mut engine, &tokens, WHOLE);
    assert_eq!((engine.num_windows, losses.len()), (3, 3 * 7));
    assert_eq!(engine.outputs, (8..15).cycle().take(21).collect::<Vec<u32>>());
    assert_eq!(engine.first_tokens, [0, 16, 32]);
    // llama.cpp's own numbers at its default context.
    let usual = Cut { context: 512, stride: 512, ..WHOLE };
    assert_eq!((usual.num_judged(), usual.judged()), (255, 256..511));
    assert_eq!([511, 512, 1023, 1024].map(|len| usual.num_windows(len)), [0, 1, 1, 2]);
    assert_eq!(Cut { context: 5, stride: 5, ..WHOLE }.judged(), 2..4);
}

#[test]
fn a_stride_judges_no_token_twice() {
    let tokens: Vec<TokenId> = (0..40).collect();
    let cut = Cut { context: 16, stride: 4, max_windows: 5, bos: Some(49) };
    let mut engine = Successor::new(2.0);
    let losses = run(&mut engine, &tokens, cut);
    assert_eq!((engine.num_windows, losses.len()), (5, 20));
    assert_eq!(engine.outputs, (11..15).cycle().take(20).collect::<Vec<u32>>());
    assert_eq!(engine.first_tokens, [49; 5]);
    // Judged are 12 to 15, 16 to 19 and so on, all of which follow on their predecessors.
    let sum = 2f64.exp() + (VOCAB - 1) as f64;
    assert!((perplexity(&losses) - sum / 2f64.exp()).abs() < 1e-4);
}

#[test]
fn likelihoods_do_not_depend_on_the_number_of_rows() {
    let logits: Vec<f32> = (0..9 * VOCAB).map(|idx| (idx * 37 % 101) as f32 / 10.0).collect();
    let targets: Vec<TokenId> = (0..9).map(|idx| idx * 5).collect();
    let all = negative_log_likelihoods(&logits, VOCAB, &targets);
    let single = logits.chunks(VOCAB).zip(&targets);
    let single: Vec<f32> =
        single.flat_map(|(row, target)| negative_log_likelihoods(row, VOCAB, &[*target])).collect();
    assert_eq!(all, single);
    assert!(negative_log_likelihoods(&[], VOCAB, &[]).is_empty());
}
