// Rows of f32 as halves, each divided by a power of two that brings its largest value to between 1024 and 2048.
//
// x: [rows, 4 * vectors]; halves: [rows, 4 * vectors], two halves a word; powers: [rows]. A workgroup takes one
// row. A row whose largest value is 0 keeps the power 1. Halves have five bits of exponent: without the power,
// values above 65504 would be lost, as activations of large models have them.

const THREADS: u32 = 128u;

struct Params {
    vectors: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> halves: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> powers: array<f32>;

var<workgroup> largest: array<f32, THREADS>;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = workgroup.x * params.vectors;
    var most = 0.0;
    for (var i = thread; i < params.vectors; i += THREADS) {
        let values = abs(x[row + i]);
        most = max(most, max(max(values.x, values.y), max(values.z, values.w)));
    }
    largest[thread] = most;
    workgroupBarrier();
    for (var half = THREADS / 2u; half > 0u; half /= 2u) {
        if thread < half {
            largest[thread] = max(largest[thread], largest[thread + half]);
        }
        workgroupBarrier();
    }
    // 2^e with 2^e * 1024 <= largest < 2^e * 2048, and its inverse, from the exponent's bits. The smallest
    // exponents, below which f32 has no inverse, are left.
    let exponent = clamp(bitcast<u32>(largest[0]) >> 23u, 32u, 240u);
    let is_zero = largest[0] == 0.0;
    let power = select(bitcast<f32>((exponent - 10u) << 23u), 1.0, is_zero);
    let inverse = select(bitcast<f32>((254u + 10u - exponent) << 23u), 1.0, is_zero);
    for (var i = thread; i < params.vectors; i += THREADS) {
        let values = x[row + i] * inverse;
        halves[row + i] = vec2<u32>(pack2x16float(values.xy), pack2x16float(values.zw));
    }
    if thread == 0u {
        powers[workgroup.x] = power;
    }
}
