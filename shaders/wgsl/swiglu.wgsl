// The feed-forward part's middle: out = gate / (1 + exp(-gate)) * up.
//
// gate_up: [rows, 2 * width], gates first; out: [rows, width]. A thread takes four values.

struct Params {
    // Vectors of four in a row of `out`.
    width4: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> gate_up: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let i = workgroup.x * 64u + thread;
    if i >= params.width4 {
        return;
    }
    let at = workgroup.y * 2u * params.width4 + i;
    let gate = gate_up[at];
    out[workgroup.y * params.width4 + i] = gate / (1.0 + exp(-gate)) * gate_up[at + params.width4];
}
