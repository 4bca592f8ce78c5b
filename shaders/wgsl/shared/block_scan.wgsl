// What is known of a block of tokens after the first pass.

struct BlockScan {
    peak_key: u32,    // 0 where nothing can be drawn
    weights: f32,     // their sum, relative to the block's own peak
}
