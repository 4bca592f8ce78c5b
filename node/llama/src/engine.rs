//! The engine contract on a llama.cpp session.
//!
//! What llama.cpp leaves open is settled here. Sequences' lengths are kept on
//! our side, so that a batch is refused before llama.cpp sees it, and so that a
//! failed computation can be rolled back: llama.cpp keeps the pieces of a batch
//! that it had finished.
//!
//! Hidden states are read out of the running computation, at the tensor behind
//! the final norm, for the rows that asked only. A step that asks for nothing
//! else ends there and never pays for the vocabulary; a step that also wants
//! logits computes them for all of its outputs.

use std::path::Path;
use std::sync::Arc;

use quern_engine::{
    AdapterId, Capabilities, Engine, EngineError, Output, Row, SeqId, StepOutput, check_batch, saved,
};

use crate::config::{FlashAttention, KvType, LlamaConfig};
use crate::ffi::{Decode, Session};
use crate::info::ModelInfo;
use crate::inputs::{Inputs, MatrixInputs};
use crate::load::{LlamaModel, LoadError};
use crate::log;
use crate::operations::{Operation, Operations};

/// A model in llama.cpp with one context on it.
pub struct LlamaEngine {
    session: Session,
    /// Kept so that others can make engines on the same weights.
    _model: Arc<LlamaModel>,
    caps: Capabilities,
    info: ModelInfo,
    /// Tokens of each sequence.
    lens: Vec<u32>,
    /// The adapter that the session computes with now.
    adapter: AdapterId,
    /// What makes saved sequences ours.
    fingerprint: u64,
}

impl std::fmt::Debug for LlamaEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LlamaEngine").field("model", &self.info.description).finish_non_exhaustive()
    }
}

impl LlamaEngine {
    /// Loads a GGUF file. Blocks until it can compute; `progress` is called
    /// with the part that is loaded, from 0 to 1, and ends the loading with `false`.
    ///
    /// # Errors
    /// [`LoadError`] names the file and the cause.
    pub fn load(
        path: &Path,
        config: &LlamaConfig,
        progress: &mut dyn FnMut(f32) -> bool,
    ) -> Result<LlamaEngine, LoadError> {
        LlamaEngine::on(&Arc::new(LlamaModel::load(path, config, progress)?))
    }

    /// Makes an engine on weights that are loaded. Its sequences, memory for them
    /// and threads are its own; it computes beside others on the same weights.
    ///
    /// # Errors
    /// [`LoadError`] when there is no room for it.
    pub fn on(model: &Arc<LlamaModel>) -> Result<LlamaEngine, LoadError> {
        let (session, info) = model.session()?;
        let config = model.config();
        let wanted_len =
            if config.max_sequence_len == 0 { info.trained_context } else { config.max_sequence_len };
        let kv_capacity = session.kv_capacity();
        let caps = Capabilities {
            vocab_size: info.vocab_size,
            hidden_size: info.hidden_size,
            kv_capacity,
            max_sequences: config.max_sequences as usize,
            max_sequence_len: kv_capacity.min(wanted_len as usize),
            max_rows: session.max_rows(),
            max_outputs: config.max_outputs as usize,
            mixes_adapters: false,
            mixes_outputs: true,
            samples: false,
            row_tile: row_tile(config),
            // One pool of state for all sequences. Its cost was measured on the CPU alone, and from
            // a GPU state would have to cross the bus.
            walks_idle_state: !crate::load::uses_gpu(config),
        };
        let shape = [info.num_params, info.size_bytes, u64::from(info.num_layers), info.vocab_size as u64];
        let shape = shape.map(u64::to_le_bytes).concat();
        let format = format!("{:?} {:?}", config.kv_type, config.flash_attention);
        let parts =
            [info.description.as_bytes(), &shape, format.as_bytes(), info.llama_cpp_version.as_bytes()];
        Ok(LlamaEngine {
            lens: vec![0; caps.max_sequences],
            adapter: AdapterId::BASE,
            fingerprint: saved::fingerprint(&parts),
            session,
            _model: Arc::clone(model),
            caps,
            info,
        })
    }

    /// What is loaded and what it takes.
    #[must_use]
    pub fn model_info(&self) -> &ModelInfo {
        &self.info
    }

    /// From the next step on, adds up the squares of what goes into each of the
    /// model's matrices. Steps take a little longer meanwhile. A matrix of the last
    /// layer sees only rows with an output.
    pub fn measure_inputs(&mut self) {
        self.session.set_inputs(Some(Inputs::default()));
    }

    /// Ends what [`LlamaEngine::measure_inputs`] began and gives what was measured,
    /// by the matrices' names; nothing where nothing was begun.
    pub fn take_inputs(&mut self) -> Vec<MatrixInputs> {
        self.session.set_inputs(None).map_or_else(Vec::new, Inputs::into_matrices)
    }

    /// From the next step on, has every operation computed alone, and times it. Results are the same up to
    /// rounding; steps take longer, because threads or the device come to rest behind each operation and none
    /// are fused. Operations that compute nothing, such as views, are left out. Costs some 300 bytes an operation.
    pub fn time_operations(&mut self) {
        self.session.set_operations(Some(Operations::new()));
    }

    /// Ends what [`LlamaEngine::time_operations`] began and gives the operations in the order in which they
    /// were computed; nothing where nothing was begun.
    pub fn take_operations(&mut self) -> Vec<Operation> {
        self.session.set_operations(None).map_or_else(Vec::new, Operations::into_done)
    }

    /// Checks that each row continues its sequence, and gives back the
    /// sequences' lengths after the batch, for those that it extends.
    fn check_positions(&self, rows: &[Row]) -> Result<Vec<(SeqId, u32)>, EngineError> {
        let mut after: Vec<(SeqId, u32)> = Vec::new();
        for (idx, row) in rows.iter().enumerate() {
            // Rows of one sequence mostly stand together: look from the end.
            let at = match after.iter().rposition(|(seq, _)| *seq == row.seq) {
                Some(at) => at,
                None => {
                    after.push((row.seq, self.lens[row.seq as usize]));
                    after.len() - 1
                }
            };
            if row.pos != after[at].1 {
                return Err(EngineError::InvalidBatch {
                    row: idx,
                    why: "position does not continue its sequence",
                });
            }
            after[at].1 += 1;
        }
        Ok(after)
    }

    /// Switches the session to an adapter. llama.cpp plans its computation anew
    /// with the next step then, so this does nothing where nothing changes.
    fn use_adapter(&mut self, adapter: AdapterId) -> Result<(), EngineError> {
        if adapter == self.adapter {
            return Ok(());
        }
        let id = (adapter != AdapterId::BASE).then_some(adapter.0);
        if !self.session.use_adapter(id) {
            return Err(EngineError::InvalidBatch { row: 0, why: "no such adapter is loaded" });
        }
        self.adapter = adapter;
        Ok(())
    }

    /// Undoes what a failed batch left of itself. A sequence that cannot be cut
    /// where it was is dropped.
    fn roll_back(&mut self, after: &[(SeqId, u32)]) {
        for &(seq, _) in after {
            if !self.session.cut_sequence(seq, self.lens[seq as usize]) {
                self.session.cut_sequence(seq, 0);
                self.lens[seq as usize] = 0;
            }
        }
    }

    fn outputs(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        let kinds: Vec<Output> =
            rows.iter().map(|row| row.output).filter(|output| *output != Output::None).collect();
        let num_hidden = kinds.iter().filter(|kind| **kind == Output::Hidden).count();
        let num_logits = kinds.len() - num_hidden;
        if num_hidden > 0 {
            let hidden = self.session.hidden();
            if hidden.len() != kinds.len() * self.caps.hidden_size {
                return Err(EngineError::Failed(
                    "this model's graph does not show its hidden states".to_owned(),
                ));
            }
            keep_rows(hidden, self.caps.hidden_size, &kinds, Output::Hidden);
            hidden.truncate(num_hidden * self.caps.hidden_size);
        }
        if num_logits > 0 {
            let no_logits = || EngineError::Failed("llama.cpp gave no logits".to_owned());
            let logits = self.session.logits(kinds.len()).ok_or_else(no_logits)?;
            keep_rows(logits, self.caps.vocab_size, &kinds, Output::Logits);
        }
        let (logits, hidden) = self.session.outputs(num_logits, num_hidden);
        Ok(StepOutput { logits, hidden, tokens: &[] })
    }
}

/// ggml's fused attention on the CPU reads keys and values once for each tile of
/// rows, but only in steps that fill a tile, and only where they are 16-bit.
fn row_tile(config: &LlamaConfig) -> usize {
    const TILE: usize = 64;
    let on_gpu = crate::load::uses_gpu(config);
    let tiled = config.flash_attention != FlashAttention::Off && config.kv_type == KvType::F16;
    if tiled && !on_gpu { TILE.min(config.max_rows as usize) } else { 1 }
}

/// Moves the rows of one kind to the front, keeping their order.
fn keep_rows(values: &mut [f32], row_len: usize, kinds: &[Output], wanted: Output) {
    let rows = kinds.iter().enumerate().filter(|(_, kind)| **kind == wanted).map(|(idx, _)| idx);
    for (to, from) in rows.enumerate() {
        if to != from {
            values.copy_within(from * row_len..(from + 1) * row_len, to * row_len);
        }
    }
}

impl Engine for LlamaEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        check_batch(&self.caps, rows, &[])?;
        let after = self.check_positions(rows)?;
        self.use_adapter(rows[0].adapter)?;
        match self.session.decode(rows) {
            Decode::Done => {
                self.session.synchronize();
                for (seq, len) in after {
                    self.lens[seq as usize] = len;
                }
                self.outputs(rows)
            }
            Decode::NoRoom => Err(EngineError::OutOfKv { wanted: rows.len() }),
            Decode::Failed(code) => {
                self.roll_back(&after);
                Err(EngineError::Failed(format!("llama_decode returned {code}")))
            }
        }
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        let have = self.len_of(from)?;
        if self.len_of(to)? != 0 {
            return Err(EngineError::Failed(format!("sequence {to} is not empty")));
        }
        if len > have || from == to {
            return Err(EngineError::Failed(format!(
                "sequence {from} has {have} tokens, not {len} to share"
            )));
        }
        if len > 0 {
            self.session.copy_sequence(from, to, len);
            self.lens[to as usize] = len;
        }
        Ok(())
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        if len >= self.len_of(seq)? {
            return Ok(());
        }
        if !self.session.cut_sequence(seq, len) {
            return Err(EngineError::Failed(format!("sequence {seq} cannot be cut at {len}")));
        }
        self.lens[seq as usize] = len;
        Ok(())
    }

    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError> {
        let len = self.len_of(seq)?;
        let mut bytes = saved::begin();
        if len > 0 && !self.session.save_sequence(seq, &mut bytes) {
            return Err(EngineError::Failed(format!("sequence {seq} could not be saved")));
        }
        saved::finish(&mut bytes, self.fingerprint, len);
        Ok(bytes)
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError> {
        if self.len_of(seq)? != 0 {
            return Err(EngineError::Failed(format!("sequence {seq} is not empty")));
        }
        let (len, state) =
            saved::open(state, self.fingerprint).map_err(|why| EngineError::Failed(why.to_owned()))?;
        if len == 0 {
            return Ok(());
        }
        // The bytes are known to be good, so that only room can be missing.
        if !self.session.restore_sequence(seq, state) {
            self.session.cut_sequence(seq, 0);
            return Err(EngineError::OutOfKv { wanted: len as usize });
        }
        self.lens[seq as usize] = len;
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, path: &Path) -> Result<(), EngineError> {
        let refused = |why: String| Err(EngineError::Adapter { path: path.display().to_string(), why });
        if id == AdapterId::BASE || self.session.has_adapter(id.0) {
            return refused(format!("adapter {} is in use", id.0));
        }
        match log::capture(|| self.session.load_adapter(id.0, path)) {
            (true, _) => Ok(()),
            (false, lines) => refused(lines.reason()),
        }
    }

    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError> {
        if id == AdapterId::BASE || !self.session.has_adapter(id.0) {
            let (path, why) = (String::new(), format!("adapter {} is not loaded", id.0));
            return Err(EngineError::Adapter { path, why });
        }
        // Letting go of another than the present one costs the next step nothing.
        if self.adapter == id {
            self.use_adapter(AdapterId::BASE)?;
        }
        self.session.forget_adapter(id.0);
        Ok(())
    }
}

impl LlamaEngine {
    fn len_of(&self, seq: SeqId) -> Result<u32, EngineError> {
        self.lens
            .get(seq as usize)
            .copied()
            .ok_or_else(|| EngineError::Failed(format!("there is no sequence {seq}")))
    }
}
