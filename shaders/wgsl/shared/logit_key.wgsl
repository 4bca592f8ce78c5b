// Logits as integers that sort as they do. Two zeros are one logit; NaN, negative infinity
// and what a mask forbids are 0, which nothing draws.

const LARGEST_KEY: u32 = 0xff800000u; // positive infinity

fn logit_key(bits: u32) -> u32 {
    let magnitude = bits & 0x7fffffffu;
    if magnitude > 0x7f800000u || bits == 0xff800000u {
        return 0u;
    }
    if magnitude == 0u {
        return 0x80000000u;
    }
    return select(bits | 0x80000000u, ~bits, (bits >> 31u) == 1u);
}

// The logit of a key that is not 0.
fn key_logit(key: u32) -> f32 {
    return bitcast<f32>(select(~key, key & 0x7fffffffu, (key >> 31u) == 1u));
}
