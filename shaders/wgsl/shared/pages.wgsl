// Where keys and values lie in a layer's part of the KV cache: words of two f16, page after page, each of 32
// slots, first all key heads, then all value heads.
//   keys:   [head][dim / 8][slot][8], so that threads side by side, one a slot, read side by side;
//   values: [head][slot][dim].
// A row of the step is four words of `step_info`: token, position, slot (page * 32 + slot within it), and
// where its sequence's list of pages begins.
// Before: the constants DIM and `params.kv_heads`.

const SLOTS: u32 = 32u;
const HEAD_WORDS: u32 = SLOTS * DIM / 2u;
const ROW_WORDS: u32 = 4u;

fn key_word(page: u32, head: u32, slot: u32, word: u32) -> u32 {
    return (page * 2u * params.kv_heads + head) * HEAD_WORDS + (word / 4u * SLOTS + slot) * 4u + word % 4u;
}

fn value_word(page: u32, head: u32, slot: u32, word: u32) -> u32 {
    return ((page * 2u + 1u) * params.kv_heads + head) * HEAD_WORDS + slot * (DIM / 2u) + word;
}
