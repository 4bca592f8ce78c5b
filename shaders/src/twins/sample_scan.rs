//! The twin of `wgsl/sample_scan.wgsl`.

use crate::sampling::{BLOCK_TOKENS, SampleRow, SampleShape};

/// What is known of a block of tokens: its largest logit, if anything in it can be drawn, and the
/// sum of its weights relative to that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockScan {
    /// The largest logit; `None` where there are only NaN, negative infinities and masked tokens.
    pub peak: Option<f32>,
    /// 0 for rows that do not need it: greedy ones, and blocks with a peak at positive infinity.
    pub weights: f64,
}

/// Scans the blocks of each row, `[num_rows, num_blocks]`. `logits` is `[num_logits_rows, vocab_size]`,
/// `masks` is `[num_masks, mask_words]`.
///
/// # Panics
/// When a row names logits or a mask that are not there.
#[must_use]
pub fn sample_scan(shape: SampleShape, logits: &[f32], masks: &[u32], rows: &[SampleRow]) -> Vec<BlockScan> {
    let blocks_of = |row: &SampleRow| {
        let allowed = allowed_logits(shape, logits, masks, row);
        let blocks = allowed.chunks(BLOCK_TOKENS as usize).map(|block| scan_block(row, block));
        blocks.collect::<Vec<_>>()
    };
    rows.iter().flat_map(blocks_of).collect()
}

/// A row's logits; `None` for what cannot be drawn.
pub(super) fn allowed_logits(
    shape: SampleShape,
    logits: &[f32],
    masks: &[u32],
    row: &SampleRow,
) -> Vec<Option<f32>> {
    let vocab_size = shape.vocab_size as usize;
    let logits = &logits[row.logits_row as usize * vocab_size..][..vocab_size];
    let mask = row.mask_row().map(|idx| &masks[(idx * shape.mask_words()) as usize..]);
    let is_allowed = |token: usize| mask.is_none_or(|mask| (mask[token / 32] >> (token % 32)) & 1 == 1);
    let logit = |(token, &logit): (usize, &f32)| {
        (is_allowed(token) && !logit.is_nan() && logit > f32::NEG_INFINITY).then_some(logit)
    };
    logits.iter().enumerate().map(logit).collect()
}

/// e^((logit - peak) / temperature), and 0 where the host sampler says 0.
pub(super) fn weight(logit: f32, peak: f32, scale: f32) -> f64 {
    const LOWEST_BITS: f64 = 46.166_24;
    let bits = (f64::from(logit) - f64::from(peak)) * f64::from(scale);
    if bits >= -LOWEST_BITS { bits.exp2() } else { 0.0 }
}

fn scan_block(row: &SampleRow, block: &[Option<f32>]) -> BlockScan {
    let drawable = || block.iter().flatten().copied();
    let peak = drawable().reduce(f32::max);
    let weights = match peak {
        Some(peak) if !row.is_greedy && peak < f32::INFINITY => {
            drawable().map(|logit| weight(logit, peak, row.scale)).sum()
        }
        _ => 0.0,
    };
    BlockScan { peak, weights }
}
