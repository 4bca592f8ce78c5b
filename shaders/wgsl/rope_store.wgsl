// Queries and keys turned by their position, and keys and values put into the KV cache.
//
// qkv: [rows, heads + 2 * kv_heads, DIM]. A workgroup takes one head of one row: queries are turned in
// place, keys and values go to the cache as f16. Pairs are (i, i + DIM / 2), a thread each; `turns` has
// their cosines and sines, [positions, DIM / 2, 2]. NORM: queries and keys are first divided by the root of
// their mean square and multiplied with a weight a dimension, as Qwen3 does.

const DIM: u32 = $DIMu;
const WIDTH: u32 = DIM / 2u;
#include "shared/threads.wgsl"
#include "shared/reduce.wgsl"

struct Params {
    heads: u32,
    kv_heads: u32,
    rows_at: u32,
    epsilon: f32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(2) var<storage, read> turns: array<vec2<f32>>;
@group(0) @binding(3) var<storage, read> query_norm: array<f32>;
@group(0) @binding(4) var<storage, read> key_norm: array<f32>;
@group(0) @binding(5) var<storage, read_write> qkv: array<f32>;
@group(0) @binding(6) var<storage, read_write> kv: array<u32>;

#include "shared/pages.wgsl"
#include "shared/half.wgsl"

var<workgroup> turned: array<f32, DIM>;

@compute @workgroup_size(WIDTH)
fn main(thread: Thread) {
    let row_at = params.rows_at + thread.group.x * ROW_WORDS;
    let position = step_info[row_at + 1u];
    let slot = step_info[row_at + 2u];
    let head = thread.group.y;
    let i = thread.index;
    let at = (thread.group.x * (params.heads + 2u * params.kv_heads) + head) * DIM;
    var pair = vec2<f32>(qkv[at + i], qkv[at + i + WIDTH]);
    let is_query = head < params.heads;
    let is_value = head >= params.heads + params.kv_heads;
#if NORM
    let mean = sum_of_all(dot(pair, pair), thread) / f32(DIM);
    var weight = vec2<f32>(key_norm[i], key_norm[i + WIDTH]);
    if is_query {
        weight = vec2<f32>(query_norm[i], query_norm[i + WIDTH]);
    }
    if !is_value {
        pair = pair * (1.0 / sqrt(mean + params.epsilon)) * weight;
    }
#endif
    let turn = turns[position * WIDTH + i];
    if !is_value {
        pair = vec2<f32>(pair.x * turn.x - pair.y * turn.y, pair.x * turn.y + pair.y * turn.x);
    }
    turned[i] = pair.x;
    turned[i + WIDTH] = pair.y;
    workgroupBarrier();
    if is_query {
        qkv[at + i] = pair.x;
        qkv[at + i + WIDTH] = pair.y;
        return;
    }
    // Two neighbours share a word, so here a thread has another pair than above.
    let word = half_bits(turned[2u * i]) | (half_bits(turned[2u * i + 1u]) << 16u);
    if is_value {
        kv[value_word(slot / SLOTS, head - params.heads - params.kv_heads, slot % SLOTS, i)] = word;
    } else {
        kv[key_word(slot / SLOTS, head - params.heads, slot % SLOTS, i)] = word;
    }
}
