//! Tokens that a step draws: two dispatches behind those that make logits, which then need not leave the
//! device. See `sampling.rs` for how it is done.

use super::RunnerError;
use super::dispatch::{Grid, Op};
use super::layout::Batch;
use crate::buffers::{Buffer, Use};
use crate::device::Device;
use crate::error::DeviceError;
use crate::kernels::Text;
use crate::sampling::{Draw, ROW_WORDS, SampleRow, SampleShape};

/// A row whose next token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DrawnRow {
    /// An index into [`Batch::rows`]. The token is drawn for the position behind that row's.
    pub row: u32,
    /// How.
    pub draw: Draw,
    /// Which of [`Batch::masks`] says what may be drawn; `None` allows every token.
    pub mask: Option<u32>,
}

/// What the sampling kernels work on, for as many rows as there may be outputs.
#[derive(Debug)]
pub(super) struct Drawing {
    shape: SampleShape,
    /// The shape as kernels read it.
    sizes: Buffer,
    /// `[outputs, ROW_WORDS]`.
    rows: Buffer,
    /// `[outputs, mask_words]`.
    masks: Buffer,
    /// Peaks and weights, `[outputs, num_blocks, 2]`.
    scan: Buffer,
    /// `[outputs, num_blocks]`.
    hot: Buffer,
    /// What was drawn, `[outputs]`.
    pub tokens: Buffer,
}

impl Drawing {
    pub fn new(device: &Device, vocab_size: u32, max_outputs: u32) -> Result<Drawing, RunnerError> {
        let shape = SampleShape { vocab_size };
        // None of these is larger than the logits are.
        let outputs = |what: &str, words: u32| {
            Buffer::new(device, what, u64::from(max_outputs) * u64::from(words) * 4, Use::Storage)
        };
        let sizes = [shape.vocab_size, shape.num_blocks(), shape.mask_words(), 0];
        let buffer = Buffer::new(device, "a vocabulary's sizes", 16, Use::Uniform)?;
        buffer.write(device, 0, bytemuck::cast_slice(&sizes));
        Ok(Drawing {
            shape,
            sizes: buffer,
            rows: outputs("draws", ROW_WORDS as u32)?,
            masks: outputs("masks of draws", shape.mask_words())?,
            scan: outputs("blocks of logits", shape.num_blocks() * 2)?,
            hot: outputs("blocks with likely tokens", shape.num_blocks())?,
            tokens: outputs("drawn tokens", 1)?,
        })
    }

    pub fn bytes(&self) -> u64 {
        let all = [&self.sizes, &self.rows, &self.masks, &self.scan, &self.hot, &self.tokens];
        all.into_iter().map(Buffer::size_bytes).sum()
    }

    /// The dispatches, one for each pass over `logits`.
    pub fn ops(&self, device: &Device, logits: &Buffer) -> Result<Vec<Op>, DeviceError> {
        let all = [
            ("logits", logits),
            ("masks", &self.masks),
            ("rows", &self.rows),
            ("shape", &self.sizes),
            ("scan", &self.scan),
            ("hot", &self.hot),
            ("tokens", &self.tokens),
        ];
        // A workgroup of the first pass takes 16 blocks.
        let passes = [
            ("sample_scan", Grid::Each(self.shape.num_blocks().div_ceil(16))),
            ("sample_draw", Grid::Rows(1)),
        ];
        let op = |(name, grid): (&str, Grid)| -> Result<Op, DeviceError> {
            let kernel = device.kernel(&Text::new(name, &[]))?;
            let is_bound = |(name, _): &&(&str, &Buffer)| kernel.bindings().any(|(bound, _)| bound == *name);
            let buffers: Vec<_> =
                all.iter().filter(is_bound).map(|(name, buffer)| (*name, buffer.whole())).collect();
            let bound = kernel.bind(device, &buffers)?;
            Ok(Op::new(vec![kernel], bound, grid))
        };
        passes.into_iter().map(op).collect()
    }

    /// Tells the kernels what to draw. The rows' logits stand behind those that are wanted themselves.
    ///
    /// # Panics
    /// When a row names a mask that is not there, or there are more masks than outputs.
    pub fn write(&self, device: &Device, batch: &Batch<'_>) {
        if batch.drawn.is_empty() {
            return;
        }
        let num_masks = batch.masks.len() / self.shape.mask_words() as usize;
        let mut words = Vec::with_capacity(batch.drawn.len() * ROW_WORDS);
        for (logits_row, drawn) in (batch.logits.len() as u32..).zip(batch.drawn) {
            assert!(
                drawn.mask.is_none_or(|mask| (mask as usize) < num_masks),
                "{drawn:?} of {num_masks} masks"
            );
            let position = batch.rows[drawn.row as usize].position + 1;
            words.extend(SampleRow::new(drawn.draw, position, logits_row, drawn.mask).words());
        }
        self.rows.write(device, 0, bytemuck::cast_slice(&words));
        if !batch.masks.is_empty() {
            let bytes: &[u8] = bytemuck::cast_slice(batch.masks);
            assert!(bytes.len() as u64 <= self.masks.size_bytes(), "{num_masks} masks are too many");
            self.masks.write(device, 0, bytes);
        }
    }
}
