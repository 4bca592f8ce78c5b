// What both sampling passes read. Logits stand as bits, so that no compiler may assume that
// they are numbers.

#include "shared/logit_key.wgsl"
#include "shared/weight.wgsl"

const BLOCK_TOKENS: u32 = 64u;
const NO_MASK: u32 = 0xffffffffu;

struct SampleRow {
    key: array<u32, 8>,
    position: u32,
    logits_row: u32,
    mask_row: u32,
    scale: f32,       // log2(e) / temperature
    is_greedy: u32,
    top_k: u32,       // 0 keeps all
    top_p: f32,       // 1 keeps all
    min_p: f32,       // 0 keeps all
}

struct SampleShape {
    vocab_size: u32,
    num_blocks: u32,
    mask_words: u32,
}

// [num_logits_rows, vocab_size], f32 as bits
@group(0) @binding(0) var<storage, read> logits: array<u32>;
// [num_masks, mask_words], a bit for each token
@group(0) @binding(1) var<storage, read> masks: array<u32>;
// [num_rows]
@group(0) @binding(2) var<storage, read> rows: array<SampleRow>;
@group(0) @binding(3) var<uniform> shape: SampleShape;

fn token_key(logits_row: u32, mask_row: u32, token: u32) -> u32 {
    if token >= shape.vocab_size {
        return 0u;
    }
    if mask_row != NO_MASK {
        let word = masks[mask_row * shape.mask_words + token / 32u];
        if ((word >> (token % 32u)) & 1u) == 0u {
            return 0u;
        }
    }
    return logit_key(logits[logits_row * shape.vocab_size + token]);
}
