// An f32 as the bits of the nearest f16, to even in the middle. pack2x16float leaves the rounding to the
// device, and some cut. What is too large becomes the largest f16, so that no infinity gets into the cache.
fn half_bits(value: f32) -> u32 {
    let bits = bitcast<u32>(value);
    let sign = (bits >> 16u) & 0x8000u;
    let size = bits & 0x7fffffffu;
    if size > 0x7f800000u {
        return sign | 0x7e00u;
    }
    if size >= 0x477ff000u {
        return sign | 0x7bffu;
    }
    if size < 0x38800000u {
        // Below the smallest normal f16, steps are 2^-24.
        return sign | u32(round(bitcast<f32>(size) * 16777216.0));
    }
    let shifted = size - 0x38000000u;
    return sign | ((shifted + 0xfffu + ((shifted >> 13u) & 1u)) >> 13u);
}
