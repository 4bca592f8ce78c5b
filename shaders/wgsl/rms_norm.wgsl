// Each row divided by the root of its mean square, times a weight a column. A workgroup takes one row.
//
// x: [rows, width], weight: [width], out: [workgroups, width]. Row i of `out` is of row `step_info[rows_at + i]`,
// or of row i itself where `rows_at` is 0.

const WIDTH: u32 = 128u;
#include "shared/threads.wgsl"
#include "shared/reduce.wgsl"

struct Params {
    // Vectors of four in a row.
    width4: u32,
    // Where the list of rows begins in `step_info`, or 0.
    rows_at: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> weight: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(WIDTH)
fn main(thread: Thread) {
    let to = thread.group.x * params.width4;
    var row = thread.group.x;
    if params.rows_at > 0u {
        row = step_info[params.rows_at + row];
    }
    let start = row * params.width4;
    var squares = 0.0;
    for (var i = thread.index; i < params.width4; i += WIDTH) {
        let value = x[start + i];
        squares += dot(value, value);
    }
    let mean = sum_of_all(squares, thread) / f32(4u * params.width4);
    let scale = 1.0 / sqrt(mean + params.epsilon);
    for (var i = thread.index; i < params.width4; i += WIDTH) {
        out[to + i] = x[start + i] * scale * weight[i];
    }
}
