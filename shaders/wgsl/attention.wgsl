// Attention of each row over its sequence so far, in pages.
//
// qkv: [rows, heads + 2 * kv_heads, DIM], of which queries are read; out: [rows, heads, DIM]. A workgroup
// takes one row and one key-value head with the GROUP query heads that share it, so that each page is read
// once for all of them. It goes through the sequence in tiles of 128 keys and keeps the largest score so
// far, the sum of weights and the weighted values. Tiles begin at multiples of 128 and are taken in order:
// a row's result does not depend on what else is in the batch, nor on how the prompt was cut into steps.
//
// In a tile a thread first has one key, then a sixteenth of one head's scores, then a word of values in one
// of STRIPS strips of the keys.
//
// PARTS: how rows that are longer than a part are taken; see `shared/attention.wgsl`.
//   one:  no row of the step is.
//   all:  a workgroup takes all parts of its row.
//   each: a workgroup takes one part and writes what it came to, for `attention_merge` to fold.
//         partials: [parts, heads, TILE + 1], each thread's values and then (largest score, sum of weights).
//
// SHARE: subgroups are eight threads. What all threads need alike, an eighth is read by each and handed to the
// others: on a CPU that pretends to be a GPU, each read costs more than the arithmetic around it.

const DIM: u32 = $DIMu;
const GROUP: u32 = $GROUPu;

#include "shared/attention.wgsl"

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(2) var<storage, read> qkv: array<f32>;
#if SHARE
@group(0) @binding(3) var<storage, read> kv: array<vec4<u32>>;
#else
@group(0) @binding(3) var<storage, read> kv: array<u32>;
#endif
#if PARTS=each
@group(0) @binding(4) var<storage, read_write> partials: array<vec2<f32>>;
#else
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
#endif

#include "shared/pages.wgsl"

var<workgroup> queries: array<f32, GROUP * DIM>;
var<workgroup> scores: array<f32, GROUP * TILE>;
// A value for each sixteenth of a head's scores, and one for the head.
var<workgroup> sixteenths: array<f32, GROUP * 16u>;
var<workgroup> wholes: array<f32, GROUP>;

@compute @workgroup_size(TILE)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
#if PARTS=each
    let parts_at = step_info[params.parts_at];
    let row = step_info[parts_at + step_info[params.num_rows_at] + workgroup.x];
#else
    let row = workgroup.x;
#endif
    let row_at = params.rows_at + row * ROW_WORDS;
    let length = step_info[row_at + 1u] + 1u;
    let pages_at = step_info[row_at + 3u];
#if PARTS=each
    let first = (workgroup.x - step_info[parts_at + row]) * params.part_keys;
    let last = min(length, first + params.part_keys);
#else
    let first = 0u;
    let last = length;
#endif
    let kv_head = workgroup.y;
    let query_at = (row * (params.heads + 2u * params.kv_heads) + kv_head * GROUP) * DIM;
    for (var i = thread; i < GROUP * DIM; i += TILE) {
        queries[i] = qkv[query_at + i] * params.scale;
    }
    let word = thread % WORDS;
    let strip = thread / WORDS;
#for h in GROUP
    var largest$h = LOWEST;
    var total$h = 0.0;
    var values$h = vec2<f32>(0.0);
#if PARTS=all
    var whole$h = NO_KEYS;
#endif
#endfor
    workgroupBarrier();

    for (var start = first; start < last; start += TILE) {
#if PARTS=all
        // Another part begins.
        if start > 0u && start % params.part_keys == 0u {
#for h in GROUP
            whole$h = fold(whole$h, Sums(largest$h, total$h, values$h));
            largest$h = LOWEST;
            total$h = 0.0;
            values$h = vec2<f32>(0.0);
#endfor
        }
#endif
        // A thread a key.
        let key = start + thread;
#for h in GROUP
        var score$h = 0.0;
#endfor
#if SHARE
        // Subgroups whose keys all lie behind the end have nothing to do. Others' threads all stay, with the
        // last key where theirs lies behind it: each is needed for what it reads.
        let turns = select(0u, WORDS / 4u, start + thread / 8u * 8u < length);
        let read = min(key, length - 1u);
        let page = step_info[pages_at + read / SLOTS];
        for (var i = 0u; i < turns; i++) {
            let words = kv[key_word(page, kv_head, read % SLOTS, 4u * i) / 4u];
#for h in GROUP
            let mine$h = queries[$hu * DIM + 8u * i + thread % 8u];
#endfor
#for w in 4
            let pair$w = unpack2x16float(words[$w]);
#for h in GROUP
            score$h = fma(subgroupBroadcast(mine$h, 2u * $wu), pair$w.x, score$h);
            score$h = fma(subgroupBroadcast(mine$h, 2u * $wu + 1u), pair$w.y, score$h);
#endfor
#endfor
        }
#else
        if key < length {
            let page = step_info[pages_at + key / SLOTS];
            for (var i = 0u; i < WORDS; i++) {
                let pair = unpack2x16float(kv[key_word(page, kv_head, key % SLOTS, i)]);
#for h in GROUP
                score$h = fma(queries[$hu * DIM + 2u * i], pair.x, score$h);
                score$h = fma(queries[$hu * DIM + 2u * i + 1u], pair.y, score$h);
#endfor
            }
        }
#endif
#for h in GROUP
        score$h = select(LOWEST, score$h, key < length);
#endfor
#for h in GROUP
        scores[$hu * TILE + thread] = score$h;
#endfor
        workgroupBarrier();

        // A thread a sixteenth of a head's scores.
        for (var i = thread; i < GROUP * 16u; i += TILE) {
            var largest = LOWEST;
            for (var k = 0u; k < TILE / 16u; k++) {
                largest = max(largest, scores[i * (TILE / 16u) + k]);
            }
            sixteenths[i] = largest;
        }
        workgroupBarrier();
        if thread < GROUP {
            var largest = LOWEST;
            for (var i = 0u; i < 16u; i++) {
                largest = max(largest, sixteenths[thread * 16u + i]);
            }
            wholes[thread] = largest;
        }
        workgroupBarrier();
#for h in GROUP
        let next$h = max(largest$h, wholes[$h]);
        let shrink$h = exp(largest$h - next$h);
        largest$h = next$h;
#endfor
        // Every thread knows every head's largest score by now, and takes the weights of its own key.
#for h in GROUP
        scores[$hu * TILE + thread] = select(0.0, exp(score$h - largest$h), key < length);
#endfor
        workgroupBarrier();
        for (var i = thread; i < GROUP * 16u; i += TILE) {
            var sum = 0.0;
            for (var k = 0u; k < TILE / 16u; k++) {
                sum += scores[i * (TILE / 16u) + k];
            }
            sixteenths[i] = sum;
        }
        workgroupBarrier();
        if thread < GROUP {
            var sum = 0.0;
            for (var i = 0u; i < 16u; i++) {
                sum += sixteenths[thread * 16u + i];
            }
            wholes[thread] = sum;
        }
        workgroupBarrier();

        // A thread a word of values, over the keys of its strip.
#for h in GROUP
        total$h = fma(total$h, shrink$h, wholes[$h]);
        values$h *= shrink$h;
#endfor
        let end = min(length - start, (strip + 1u) * (TILE / STRIPS));
#if SHARE
        for (var k = strip * (TILE / STRIPS); k < end; k += 8u) {
#for h in GROUP
            let mine$h = scores[$hu * TILE + k + thread % 8u];
#endfor
            // A page holds all eight: it begins at a multiple of 32.
            let page = step_info[pages_at + (start + k) / SLOTS];
            // Keys behind the end weigh nothing.
#for e in 8
            let at$e = value_word(page, kv_head, min(k + $eu, end - 1u) % SLOTS, word);
            let pair$e = unpack2x16float(kv[at$e / 4u][at$e % 4u]);
#for h in GROUP
            values$h = fma(vec2<f32>(subgroupBroadcast(mine$h, $eu)), pair$e, values$h);
#endfor
#endfor
        }
#else
        for (var k = strip * (TILE / STRIPS); k < end; k++) {
            let page = step_info[pages_at + (start + k) / SLOTS];
            let pair = unpack2x16float(kv[value_word(page, kv_head, k % SLOTS, word)]);
#for h in GROUP
            values$h = fma(vec2<f32>(scores[$hu * TILE + k]), pair, values$h);
#endfor
        }
#endif
        workgroupBarrier();
    }

#if PARTS=each
    let partial_at = (workgroup.x * params.heads + kv_head * GROUP) * (TILE + 1u);
#for h in GROUP
    partials[partial_at + $hu * (TILE + 1u) + thread] = values$h;
    if thread == 0u {
        partials[partial_at + $hu * (TILE + 1u) + TILE] = vec2<f32>(largest$h, total$h);
    }
#endfor
#else
    let out_at = (row * params.heads + kv_head * GROUP) * DIM + 2u * word;
#for h in GROUP
#if PARTS=all
    let sums$h = fold(whole$h, Sums(largest$h, total$h, values$h));
#else
    let sums$h = Sums(largest$h, total$h, values$h);
#endif
    let sum$h = over_strips(sums$h.values, thread);
    if strip == 0u {
        out[out_at + $hu * DIM] = sum$h.x / sums$h.total;
        out[out_at + $hu * DIM + 1u] = sum$h.y / sums$h.total;
    }
#endfor
#endif
}
