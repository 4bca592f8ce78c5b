//! The engine for tests: deterministic, exact about its state, and able to
//! stand still or fail on demand.
//!
//! A row's logits are a hash of the sequence's tokens and adapters up to that
//! row, so any mix-up of state (a wrong fork, a stale prefix, a missing
//! truncate) changes the output. It counts cells as llama.cpp's unified cache
//! does: tokens shared by a fork take their room once.

use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use crate::draw::mask_words;
use crate::{
    AdapterId, Capabilities, Draw, Engine, EngineError, Output, Row, SeqId, StepOutput, TokenId, check_batch,
};

/// Draws a token for a position from logits, `[vocab]`, of those that a mask allows.
pub type Drawer = fn(&[f32], Draw, u32, Option<&[u32]>) -> Option<TokenId>;

/// How the fake engine behaves.
#[derive(Debug, Clone)]
pub struct FakeConfig {
    /// What it claims to be able to do, and holds to.
    pub capabilities: Capabilities,
    /// Every step takes at least this long; for load tests, never for unit tests.
    pub step_time: Duration,
    /// Holds steps back while it is closed.
    pub gate: Option<Gate>,
    /// The step with this number (from 0) fails, once.
    pub fail_at_step: Option<u64>,
    /// The step with this number (from 0) finds the engine lost, and so does every later one.
    pub lose_at_step: Option<u64>,
    /// Each token's successor in the vocabulary follows it, but at every eighth
    /// position: text repeats itself and speculation has something to find.
    pub repetitive: bool,
    /// Draws tokens for rows that ask for one; with it, the engine says that it samples.
    pub drawer: Option<Drawer>,
}

impl Default for FakeConfig {
    fn default() -> Self {
        FakeConfig {
            capabilities: Capabilities {
                vocab_size: 320,
                hidden_size: 16,
                kv_capacity: 4096,
                max_sequences: 64,
                max_sequence_len: 2048,
                max_rows: 512,
                max_outputs: 64,
                mixes_adapters: false,
                mixes_outputs: false,
                samples: false,
                row_tile: 1,
                walks_idle_state: false,
            },
            step_time: Duration::ZERO,
            gate: None,
            fail_at_step: None,
            lose_at_step: None,
            repetitive: false,
            drawer: None,
        }
    }
}

/// A gate in front of each step, open or closed by a test.
#[derive(Debug, Clone, Default)]
pub struct Gate(Arc<(Mutex<bool>, Condvar)>);

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn new() -> Gate {
        Gate::default()
    }

    /// Holds every later step until [`Gate::open`].
    pub fn close(&self) {
        *self.0.0.lock().expect("no test panics while it holds the gate") = true;
    }

    /// Lets steps through.
    pub fn open(&self) {
        *self.0.0.lock().expect("no test panics while it holds the gate") = false;
        self.0.1.notify_all();
    }

    fn pass(&self) {
        let closed = self.0.0.lock().expect("no test panics while it holds the gate");
        drop(self.0.1.wait_while(closed, |closed| *closed).expect("no test panics while it holds the gate"));
    }
}

/// One token of state: the hash of all tokens up to here, and its cell.
#[derive(Debug, Clone, Copy)]
struct Entry {
    hash: u64,
    cell: usize,
}

/// See the module's text.
#[derive(Debug)]
pub struct FakeEngine {
    config: FakeConfig,
    sequences: Vec<Vec<Entry>>,
    /// How many sequences share each cell.
    cells: Vec<u32>,
    free_cells: Vec<usize>,
    adapters: Vec<AdapterId>,
    num_steps: u64,
    logits: Vec<f32>,
    hidden: Vec<f32>,
    tokens: Vec<Option<TokenId>>,
}

impl FakeEngine {
    /// An engine with nothing in it.
    #[must_use]
    pub fn new(mut config: FakeConfig) -> FakeEngine {
        let caps = &mut config.capabilities;
        caps.samples = config.drawer.is_some();
        FakeEngine {
            sequences: vec![Vec::new(); caps.max_sequences],
            cells: vec![0; caps.kv_capacity],
            free_cells: (0..caps.kv_capacity).rev().collect(),
            adapters: Vec::new(),
            num_steps: 0,
            logits: Vec::new(),
            hidden: Vec::new(),
            tokens: Vec::new(),
            config,
        }
    }

    /// Tokens of state in use; shared ones count once.
    #[must_use]
    pub fn kv_used(&self) -> usize {
        self.cells.len() - self.free_cells.len()
    }

    /// The tokens that a greedy run gives after `prompt`: what any scheduler
    /// must produce, whatever it does in between.
    #[must_use]
    pub fn expected(config: &FakeConfig, adapter: AdapterId, prompt: &[u32], num_new: usize) -> Vec<u32> {
        let mut hash = prompt.iter().fold(SEED, |hash, &token| extend(hash, token, adapter));
        let (mut len, mut last, mut out) = (prompt.len(), prompt.last().copied(), Vec::new());
        let mut logits = Vec::new();
        for _ in 0..num_new {
            logits.clear();
            write_logits(config, hash, len, last, &mut logits);
            let best = argmax(&logits);
            out.push(best);
            hash = extend(hash, best, adapter);
            (len, last) = (len + 1, Some(best));
        }
        out
    }

    /// The logits behind `tokens`: what any scheduler must have got, whatever it did in
    /// between.
    #[must_use]
    pub fn logits_after(config: &FakeConfig, adapter: AdapterId, tokens: &[u32]) -> Vec<f32> {
        let hash = tokens.iter().fold(SEED, |hash, &token| extend(hash, token, adapter));
        let mut logits = Vec::new();
        write_logits(config, hash, tokens.len(), tokens.last().copied(), &mut logits);
        logits
    }

    /// The hidden state behind `tokens`.
    #[must_use]
    pub fn hidden_after(config: &FakeConfig, adapter: AdapterId, tokens: &[u32]) -> Vec<f32> {
        let hash = tokens.iter().fold(SEED, |hash, &token| extend(hash, token, adapter));
        let mut hidden = Vec::new();
        write_hidden(config, hash, &mut hidden);
        hidden
    }

    fn take_cell(&mut self) -> usize {
        let cell = self.free_cells.pop().expect("room was checked before the batch");
        self.cells[cell] = 1;
        cell
    }

    fn drop_cell(&mut self, cell: usize) {
        self.cells[cell] -= 1;
        if self.cells[cell] == 0 {
            self.free_cells.push(cell);
        }
    }

    fn check_positions(&self, rows: &[Row]) -> Result<(), EngineError> {
        let mut lens: Vec<usize> = self.sequences.iter().map(Vec::len).collect();
        for (idx, row) in rows.iter().enumerate() {
            let len = &mut lens[row.seq as usize];
            if row.pos as usize != *len {
                let why = "position does not continue its sequence";
                return Err(EngineError::InvalidBatch { row: idx, why });
            }
            if row.adapter != AdapterId::BASE && !self.adapters.contains(&row.adapter) {
                return Err(EngineError::InvalidBatch { row: idx, why: "adapter is not loaded" });
            }
            *len += 1;
        }
        Ok(())
    }
}

impl Engine for FakeEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.config.capabilities
    }

    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        self.step_masked(rows, &[])
    }

    fn step_masked(&mut self, rows: &[Row], masks: &[u32]) -> Result<StepOutput<'_>, EngineError> {
        check_batch(&self.config.capabilities, rows, masks)?;
        self.check_positions(rows)?;
        if rows.len() > self.free_cells.len() {
            return Err(EngineError::OutOfKv { wanted: rows.len() });
        }
        if let Some(gate) = &self.config.gate {
            gate.pass();
        }
        if !self.config.step_time.is_zero() {
            std::thread::sleep(self.config.step_time);
        }
        let step = self.num_steps;
        self.num_steps += 1;
        if self.config.fail_at_step == Some(step) {
            return Err(EngineError::Failed("told to".into()));
        }
        if self.config.lose_at_step.is_some_and(|lost_at| lost_at <= step) {
            return Err(EngineError::Lost("told to".into()));
        }

        self.logits.clear();
        self.hidden.clear();
        self.tokens.clear();
        for row in rows {
            let cell = self.take_cell();
            let sequence = &mut self.sequences[row.seq as usize];
            let before = sequence.last().map_or(SEED, |entry| entry.hash);
            let hash = extend(before, row.token, row.adapter);
            sequence.push(Entry { hash, cell });
            let len = sequence.len();
            match row.output {
                Output::None => {}
                Output::Logits => write_logits(&self.config, hash, len, Some(row.token), &mut self.logits),
                Output::Hidden => write_hidden(&self.config, hash, &mut self.hidden),
                Output::Token(draw) => {
                    let drawn = draw_token(&self.config, draw, masks, (hash, len, row.token));
                    self.tokens.push(drawn);
                }
            }
        }
        Ok(StepOutput { logits: &self.logits, hidden: &self.hidden, tokens: &self.tokens })
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        let (from, to, len) = (from as usize, to as usize, len as usize);
        if from >= self.sequences.len() || to >= self.sequences.len() {
            return Err(EngineError::Failed("no such sequence number".into()));
        }
        if !self.sequences[to].is_empty() || len > self.sequences[from].len() {
            return Err(EngineError::Failed(
                "fork into a sequence that is not empty, or past the end".into(),
            ));
        }
        self.sequences[to] = self.sequences[from][..len].to_vec();
        for entry in &self.sequences[to] {
            self.cells[entry.cell] += 1;
        }
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        let sequence =
            self.sequences.get_mut(seq as usize).ok_or(EngineError::Failed("no such sequence".into()))?;
        let cut = sequence.split_off(sequence.len().min(len as usize));
        for entry in cut {
            self.drop_cell(entry.cell);
        }
        Ok(())
    }

    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError> {
        let sequence =
            self.sequences.get(seq as usize).ok_or(EngineError::Failed("no such sequence".into()))?;
        let hashes: Vec<u64> = sequence.iter().map(|entry| entry.hash).collect();
        let numbers = std::iter::once(checksum(&hashes)).chain(hashes.iter().copied());
        Ok(numbers.flat_map(u64::to_le_bytes).collect())
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError> {
        if !self.sequences.get(seq as usize).is_some_and(Vec::is_empty) {
            return Err(EngineError::Failed("restore into a sequence that is not empty".into()));
        }
        let numbers: Vec<u64> =
            state.chunks(8).map_while(|bytes| bytes.try_into().ok().map(u64::from_le_bytes)).collect();
        let Some((&sum, hashes)) = numbers.split_first().filter(|_| state.len() == numbers.len() * 8) else {
            return Err(EngineError::Failed("not a state of this engine".into()));
        };
        if sum != checksum(hashes) {
            return Err(EngineError::Failed("a damaged state".into()));
        }
        if hashes.len() > self.free_cells.len() {
            return Err(EngineError::OutOfKv { wanted: hashes.len() });
        }
        for &hash in hashes {
            let cell = self.take_cell();
            self.sequences[seq as usize].push(Entry { hash, cell });
        }
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, path: &Path) -> Result<(), EngineError> {
        if id == AdapterId::BASE || self.adapters.contains(&id) {
            let why = "its number is taken".to_owned();
            return Err(EngineError::Adapter { path: path.display().to_string(), why });
        }
        if !path.exists() {
            let why = "there is no such file".to_owned();
            return Err(EngineError::Adapter { path: path.display().to_string(), why });
        }
        self.adapters.push(id);
        Ok(())
    }

    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError> {
        let Some(idx) = self.adapters.iter().position(|&loaded| loaded == id) else {
            return Err(EngineError::Adapter { path: String::new(), why: "it is not loaded".into() });
        };
        self.adapters.swap_remove(idx);
        Ok(())
    }
}

const SEED: u64 = 0x243f_6a88_85a3_08d3;

fn extend(hash: u64, token: u32, adapter: AdapterId) -> u64 {
    mix(hash ^ mix(u64::from(token) | (u64::from(adapter.0) << 32)))
}

/// Tells a saved state from other bytes, and from part of one.
fn checksum(hashes: &[u64]) -> u64 {
    hashes.iter().fold(mix(hashes.len() as u64), |sum, &hash| mix(sum ^ hash))
}

/// SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014).
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A number in [-4, 4) from a hash.
fn unit(hash: u64) -> f32 {
    (hash >> 40) as f32 / (1u64 << 24) as f32 * 8.0 - 4.0
}

fn write_logits(config: &FakeConfig, hash: u64, len: usize, last: Option<u32>, out: &mut Vec<f32>) {
    let vocab = config.capabilities.vocab_size;
    let start = out.len();
    out.extend((0..vocab).map(|idx| unit(mix(hash.wrapping_add(idx as u64)))));
    if config.repetitive
        && !len.is_multiple_of(8)
        && let Some(last) = last
    {
        out[start + (last as usize + 1) % vocab] = 12.0;
    }
}

/// Draws behind the token that a sequence of this hash and length ends with.
fn draw_token(
    config: &FakeConfig,
    draw: Draw,
    masks: &[u32],
    (hash, len, last): (u64, usize, TokenId),
) -> Option<TokenId> {
    let drawer = config.drawer.expect("the batch was checked");
    let mut logits = Vec::new();
    write_logits(config, hash, len, Some(last), &mut logits);
    let mask = draw.mask.and_then(|idx| masks.chunks(mask_words(logits.len())).nth(idx as usize));
    drawer(&logits, draw, len as u32, mask)
}

fn write_hidden(config: &FakeConfig, hash: u64, out: &mut Vec<f32>) {
    let size = config.capabilities.hidden_size as u64;
    out.extend((1..=size).map(|idx| unit(mix(hash ^ idx))));
}

fn argmax(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().fold(0, |best, (idx, &x)| if x > logits[best] { idx } else { best });
    best as u32
}
