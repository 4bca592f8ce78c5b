// Rows of the embedding matrix, one for each row of the step: out[r] = W[token of r].
//
// W is packed as shared/group.wgsl says and may be a part of the matrix: tokens outside of it are left to
// the workgroup of another part. A workgroup takes one row of the step, a thread a group of 32 columns.

struct Params {
    // Of a row of W.
    groups: u32,
    // The first token of this part, and how many it has.
    first: u32,
    rows: u32,
    // Where the step's rows begin in `step_info`, and words of each; the first is the token.
    rows_at: u32,
    row_words: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(5) var<storage, read_write> out: array<vec4<f32>>;

#include "shared/quant_$QUANT.wgsl"

@compute @workgroup_size(32)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let token = step_info[params.rows_at + workgroup.x * params.row_words] - params.first;
    // A token before the first has wrapped around to a large number.
    if token >= params.rows {
        return;
    }
    for (var g = thread; g < params.groups; g += 32u) {
        let group = load_group(token / 8u, token % 8u, g);
        let at = (workgroup.x * params.groups + g) * 8u;
#for h in 2
#for j in 4
        out[at + $hu * 4u + $ju] = numbers_$h$j(group) * group.scale[$h] + group.least;
#endfor
#endfor
    }
}
