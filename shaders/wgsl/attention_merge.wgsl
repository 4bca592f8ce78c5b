// Attention of rows whose parts had a workgroup each: folds what the parts came to, in order.
//
// partials: [parts, heads, TILE + 1], as `attention` wrote them; out: [rows, heads, DIM]. A workgroup takes one
// row and one query head.

const DIM: u32 = $DIMu;

#include "shared/attention.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(2) var<storage, read> partials: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;

#include "shared/pages.wgsl"

@compute @workgroup_size(TILE)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let row = workgroup.x;
    let head = workgroup.y;
    let position = step_info[params.rows_at + row * ROW_WORDS + 1u];
    let first = step_info[step_info[params.parts_at] + row];
    let last = first + position / params.part_keys;
    var whole = NO_KEYS;
    for (var part = first; part <= last; part++) {
        let partial_at = (part * params.heads + head) * (TILE + 1u);
        let sums = partials[partial_at + TILE];
        whole = fold(whole, Sums(sums.x, sums.y, partials[partial_at + thread]));
    }
    let sum = over_strips(whole.values, thread);
    if thread < WORDS {
        let out_at = (row * params.heads + head) * DIM + 2u * thread;
        out[out_at] = sum.x / whole.total;
        out[out_at + 1u] = sum.y / whole.total;
    }
}
