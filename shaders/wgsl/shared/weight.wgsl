// e^((logit - peak) / temperature) as the host sampler computes it: a power of two, its whole
// part added to the exponent and a polynomial of degree 5 for the rest. 1 for the peak, 0 below
// 2^-LOWEST_BITS. `scale` is log2(e) / temperature.

const LOWEST_BITS: f32 = 46.16624;

fn weight(key: u32, peak: f32, scale: f32) -> f32 {
    if key == 0u {
        return 0.0;
    }
    let t = (key_logit(key) - peak) * scale;
    if !(t >= -LOWEST_BITS) {
        return 0.0;
    }
    let whole = round(t);
    let f = t - whole;
    let f2 = f * f;
    let low = 1.0 + f * 0.6931472;
    let middle = 0.2402235 + f * 0.05550381;
    let high = 0.009666368 + f * 0.0013381302;
    let p = low + f2 * (middle + f2 * high);
    return bitcast<f32>(bitcast<u32>(p) + (bitcast<u32>(i32(whole)) << 23u));
}
