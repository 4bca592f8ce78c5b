//! The engine contract on a runner and a book of pages.
//!
//! The book says who holds which page and refuses what does not fit, before the device sees anything; so a
//! refused batch changes nothing.

use std::path::Path;
use std::sync::Arc;

use quern_engine::{
    AdapterId, Capabilities, Draw, Engine, EngineError, Output, Row, SeqId, StepOutput, check_batch, saved,
};
use quern_shaders::DeviceError;
use quern_shaders::pages::{Append, PageBook, PageError};
use quern_shaders::sampling;
use quern_shaders::step::{Batch, BatchRow, DrawnRow, Runner, StepLimits};

use crate::adapter;
use crate::load::{LoadError, WgslModel};

/// A model on a device, with keys and values of its own.
#[derive(Debug)]
pub struct WgslEngine {
    runner: Runner,
    book: PageBook,
    caps: Capabilities,
    /// What makes saved sequences ours.
    fingerprint: u64,
}

impl WgslEngine {
    /// Makes an engine on weights that are loaded. Its sequences and memory for them are its own; it
    /// computes beside others on the same weights. Blocks while kernels are compiled.
    ///
    /// # Errors
    /// [`LoadError`] when there is no room for it.
    pub fn on(model: &Arc<WgslModel>) -> Result<WgslEngine, LoadError> {
        let (config, shape) = (&model.config, &model.model.shape);
        let num_pages = config.num_pages();
        let wanted_len =
            if config.max_sequence_len == 0 { shape.trained_len } else { config.max_sequence_len };
        let limits = StepLimits {
            max_rows: config.max_rows,
            max_outputs: config.max_outputs,
            num_pages,
            max_sequence_len: wanted_len.min(config.kv_capacity),
            adapter_slots: config.adapter_slots,
            draws: config.sample_on_device.unwrap_or(!model.profile().is_cpu),
        };
        let runner = Runner::new(&model.device, &model.model, limits)?;
        let book = PageBook::new(num_pages, config.max_sequences as usize);
        let caps = Capabilities {
            vocab_size: shape.vocab as usize,
            hidden_size: shape.hidden as usize,
            kv_capacity: book.capacity_tokens(),
            max_sequences: config.max_sequences as usize,
            max_sequence_len: limits.max_sequence_len as usize,
            max_rows: config.max_rows as usize,
            max_outputs: config.max_outputs as usize,
            mixes_adapters: true,
            mixes_outputs: true,
            samples: limits.draws,
            row_tile: 1,
            walks_idle_state: false,
        };
        let path = model.path.to_string_lossy();
        let parts = [path.as_bytes(), &model.model.size_bytes.to_le_bytes(), &shape.vocab.to_le_bytes()];
        let fingerprint = saved::fingerprint(&parts);
        let [kv_bytes, buffer_bytes] = runner.memory_bytes();
        let profile = model.profile();
        tracing::info!(
            device = profile.name,
            backend = profile.backend,
            driver = profile.driver,
            weight_bytes = model.size_bytes(),
            kv_bytes,
            buffer_bytes,
            dispatches = runner.num_dispatches(),
            samples_on_device = caps.samples,
            "engine ready"
        );
        Ok(WgslEngine { runner, book, caps, fingerprint })
    }

    /// Checks that each row continues its sequence, and counts each sequence's rows in the order in which
    /// sequences come first.
    fn appends(&self, rows: &[Row]) -> Result<Vec<Append>, EngineError> {
        let mut appends: Vec<Append> = Vec::new();
        for (idx, row) in rows.iter().enumerate() {
            let bad = |why| Err(EngineError::InvalidBatch { row: idx, why });
            if row.adapter != AdapterId::BASE && !self.runner.has_adapter(row.adapter.0) {
                return bad("no such adapter is loaded");
            }
            // Rows of one sequence mostly stand together: look from the end.
            let at = appends.iter().rposition(|append| append.seq_id == row.seq).unwrap_or_else(|| {
                appends.push(Append { seq_id: row.seq, num_tokens: 0 });
                appends.len() - 1
            });
            if row.pos != self.book.len(row.seq) + appends[at].num_tokens {
                return bad("position does not continue its sequence");
            }
            appends[at].num_tokens += 1;
        }
        Ok(appends)
    }

    /// Runs a batch whose tokens the book has counted in already.
    fn run(&mut self, rows: &[Row], masks: &[u32], appends: &[Append]) -> Result<(), DeviceError> {
        let lists: Vec<&[u32]> = appends.iter().map(|append| self.book.pages(append.seq_id)).collect();
        let list = |row: &Row| {
            let found = appends.iter().position(|append| append.seq_id == row.seq);
            found.expect("every row was counted")
        };
        let batch_rows: Vec<BatchRow> = rows
            .iter()
            .map(|row| BatchRow {
                token: row.token,
                position: row.pos,
                list: list(row),
                adapter_id: (row.adapter != AdapterId::BASE).then_some(row.adapter.0),
            })
            .collect();
        let with = |wanted: Output| -> Vec<u32> {
            let wanted = rows.iter().enumerate().filter(|(_, row)| row.output == wanted);
            wanted.map(|(idx, _)| idx as u32).collect()
        };
        let (logits, hidden) = (with(Output::Logits), with(Output::Hidden));
        let drawn: Vec<DrawnRow> =
            (0..).zip(rows).filter_map(|(idx, row)| drawn_row(idx, row.output)).collect();
        let batch = Batch {
            rows: &batch_rows,
            lists: &lists,
            logits: &logits,
            hidden: &hidden,
            drawn: &drawn,
            masks,
        };
        self.runner.run(&batch).map(|_| ())
    }

    fn check_seq(&self, seq: SeqId) -> Result<(), EngineError> {
        if (seq as usize) < self.caps.max_sequences {
            return Ok(());
        }
        Err(EngineError::Failed(format!("there is no sequence {seq}")))
    }
}

/// The draw that the row at `idx` asks for, if it asks for one.
fn drawn_row(idx: u32, output: Output) -> Option<DrawnRow> {
    let Output::Token(Draw { temperature, top_k, top_p, min_p, seed, mask }) = output else { return None };
    Some(DrawnRow { row: idx, draw: sampling::Draw { temperature, top_k, top_p, min_p, seed }, mask })
}

fn failed(error: impl std::fmt::Display) -> EngineError {
    EngineError::Failed(error.to_string())
}

/// Another step may go well on a device that failed, and none on one that is lost.
fn device_error(error: DeviceError) -> EngineError {
    match error {
        DeviceError::Lost { .. } => EngineError::Lost(error.to_string()),
        error => failed(error),
    }
}

impl Engine for WgslEngine {
    fn capabilities(&self) -> &Capabilities {
        &self.caps
    }

    fn step(&mut self, rows: &[Row]) -> Result<StepOutput<'_>, EngineError> {
        self.step_masked(rows, &[])
    }

    fn step_masked(&mut self, rows: &[Row], masks: &[u32]) -> Result<StepOutput<'_>, EngineError> {
        check_batch(&self.caps, rows, masks)?;
        let appends = self.appends(rows)?;
        let before: Vec<u32> = appends.iter().map(|append| self.book.len(append.seq_id)).collect();
        let copies = self.book.reserve(&appends).map_err(|error| match error {
            PageError::OutOfPages { .. } => EngineError::OutOfKv { wanted: rows.len() },
            other => failed(other),
        })?;
        self.runner.copy_pages(&copies);
        if let Err(error) = self.run(rows, masks, &appends) {
            for (append, len) in appends.iter().zip(before) {
                self.book.truncate(append.seq_id, len).map_err(failed)?;
            }
            return Err(device_error(error));
        }
        let result = self.runner.last();
        Ok(StepOutput { logits: result.logits, hidden: result.hidden, tokens: result.tokens })
    }

    fn fork(&mut self, from: SeqId, to: SeqId, len: u32) -> Result<(), EngineError> {
        self.book.fork(from, to, len).map_err(failed)
    }

    fn truncate(&mut self, seq: SeqId, len: u32) -> Result<(), EngineError> {
        self.book.truncate(seq, len).map_err(failed)
    }

    fn save(&mut self, seq: SeqId) -> Result<Vec<u8>, EngineError> {
        self.check_seq(seq)?;
        let mut bytes = saved::begin();
        bytes.extend(self.runner.read_pages(self.book.pages(seq)).map_err(device_error)?);
        saved::finish(&mut bytes, self.fingerprint, self.book.len(seq));
        Ok(bytes)
    }

    fn restore(&mut self, seq: SeqId, state: &[u8]) -> Result<(), EngineError> {
        self.check_seq(seq)?;
        if !self.book.is_empty(seq) {
            return Err(EngineError::Failed(format!("sequence {seq} is not empty")));
        }
        let (len, state) = saved::open(state, self.fingerprint).map_err(failed)?;
        self.book.reserve(&[Append { seq_id: seq, num_tokens: len }]).map_err(|error| match error {
            PageError::OutOfPages { .. } => EngineError::OutOfKv { wanted: len as usize },
            other => failed(other),
        })?;
        let pages = self.book.pages(seq);
        if state.len() != pages.len() * self.runner.page_bytes() {
            self.book.truncate(seq, 0).map_err(failed)?;
            return Err(failed("the saved sequence is damaged"));
        }
        self.runner.write_pages(pages, state);
        Ok(())
    }

    fn load_adapter(&mut self, id: AdapterId, path: &Path) -> Result<(), EngineError> {
        let refused = |why: String| EngineError::Adapter { path: path.display().to_string(), why };
        if id == AdapterId::BASE || self.runner.has_adapter(id.0) {
            return Err(refused(format!("adapter {} is in use", id.0)));
        }
        let modules = adapter::read(path, &self.runner.model().shape).map_err(refused)?;
        let matrices: Vec<_> = modules.iter().map(adapter::Module::matrices).collect();
        self.runner.load_adapter(id.0, &matrices).map_err(|error| refused(error.to_string()))
    }

    fn unload_adapter(&mut self, id: AdapterId) -> Result<(), EngineError> {
        let not_loaded = |why: String| EngineError::Adapter { path: String::new(), why };
        self.runner.unload_adapter(id.0).map_err(|error| not_loaded(error.to_string()))
    }
}
