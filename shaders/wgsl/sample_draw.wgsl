// Second pass of sampling: one workgroup for each row cuts and draws.
//
// The draw goes through tokens in order of their numbers until their weights sum to the random
// number's share of the total: first over threads' shares of the blocks, then over the blocks of
// one thread, then over the tokens of one block.

#include "shared/sample.wgsl"
#include "shared/block_scan.wgsl"
#include "shared/chacha8.wgsl"

const NO_TOKEN: u32 = 0xffffffffu;

// [num_rows, num_blocks]
@group(0) @binding(4) var<storage, read> scan: array<BlockScan>;
// [num_rows, num_blocks], scratch
@group(0) @binding(5) var<storage, read_write> hot: array<u32>;
// [num_rows]
@group(0) @binding(6) var<storage, read_write> tokens: array<u32>;

#include "shared/reduce256.wgsl"
#include "shared/sample_cut.wgsl"

// A part of the tokens that are kept: what those above the cut weigh, and its ties.
struct Share {
    mass: f32,
    num_ties: u32,
}

// Where a walk over shares stands. Shared by all threads, written by the first.
struct Walk {
    chosen: u32,
    sum: f32,
    ties_left: u32,
}

var<workgroup> walk: Walk;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) index: u32) {
    local = index;
    row_idx = group.x;
    let asked = rows[group.x];
    row = asked;
    let highest = find_peak();
    if highest == 0u {
        give(NO_TOKEN);
        return;
    }
    // A token at positive infinity is certain.
    if asked.is_greedy != 0u || highest == LARGEST_KEY {
        give(first_at(highest));
        return;
    }
    peak = key_logit(highest);
    let wish = Wish(asked.top_k, asked.top_p, asked.min_p, asked.scale, highest, key_logit(highest));
    give(draw(find_cut(wish)));
}

fn give(token: u32) {
    if local == 0u {
        tokens[row_idx] = token;
    }
}

fn find_peak() -> u32 {
    var best = 0u;
    for (var block = local; block < shape.num_blocks; block += 256u) {
        best = max(best, block_scan(block).peak_key);
    }
    return max_words(local, best);
}

// The lowest token with this key, which one has. The largest complement is the smallest number.
fn first_at(key: u32) -> u32 {
    var best = 0u;
    for (var block = local; block < shape.num_blocks; block += 256u) {
        if block_scan(block).peak_key == key {
            best = max(best, ~block);
        }
    }
    let first = ~max_words(local, best);
    let token = first * BLOCK_TOKENS + local;
    let is_peak = local < BLOCK_TOKENS && key_of(token) == key;
    return ~max_words(local, select(0u, ~token, is_peak));
}

// Finds the hot blocks and what is kept of them.
fn find_cut(wish: Wish) -> Cut {
    let limits_count = wish.top_k > 0u && wish.top_k < shape.vocab_size;
    let limits_mass = wish.top_p < 1.0;
    let keeps_all = !limits_count && !limits_mass && !(wish.min_p > 0.0);
    is_whole = keeps_all;
    num_hot = shape.num_blocks;
    if keeps_all {
        return KEEP_ALL;
    }

    var floor = 1u;
    var mass = 0.0;
    if limits_count {
        if wish.top_k <= shape.num_blocks {
            floor = floor_of_place(wish.top_k, wish);
        }
    } else if limits_mass {
        mass = whole_mass();
        let tail = (1.0 - wish.top_p) * mass / f32(shape.vocab_size);
        floor = floor_at(clamp(-log2(tail), 0.0, LOWEST_BITS), wish);
    } else {
        floor = floor_at(-log2(wish.min_p), wish);
    }
    list_hot(floor);

    return cut_hot(floor, limits_count, limits_mass, mass, wish);
}

// What all tokens of a block weigh, from the first pass.
fn block_mass(block: u32) -> f32 {
    let known = block_scan(block);
    return known.weights * weight_of(known.peak_key);
}

fn whole_mass() -> f32 {
    var sum = vec4<f32>();
    for (var block = local; block < shape.num_blocks; block += 256u) {
        sum.x += block_mass(block);
    }
    return sum_all(local, sum).x;
}

fn token_share(token: u32, cut: Cut) -> Share {
    let key = key_of(token);
    if key == cut.key {
        return Share(0.0, select(0u, 1u, key > 0u));
    }
    return Share(select(0.0, kept_weight(key), key > cut.key), 0u);
}

fn kept_weight(key: u32) -> f32 {
    let own = weight_of(key);
    return select(0.0, own, own >= row.min_p);
}

fn block_share(block: u32, cut: Cut) -> Share {
    if is_whole {
        return Share(block_mass(block), 0u);
    }
    var share = Share(0.0, 0u);
    for (var i = 0u; i < BLOCK_TOKENS; i++) {
        let own = token_share(block * BLOCK_TOKENS + i, cut);
        share.mass += own.mass;
        share.num_ties += own.num_ties;
    }
    return share;
}

fn draw(cut: Cut) -> u32 {
    let each = (num_hot + 255u) / 256u;
    let tie_weight = kept_weight(cut.key);

    // Over the threads.
    let start = min(local * each, num_hot);
    let end = min(start + each, num_hot);
    var share = Share(0.0, 0u);
    for (var i = start; i < end; i++) {
        let own = block_share(hot_block(i), cut);
        share.mass += own.mass;
        share.num_ties += own.num_ties;
    }
    publish(share);
    if local == 0u {
        walk = Walk(0u, 0.0, cut.num_ties);
        let total = go(256u, tie_weight, 3.4028234e38);
        sums_result.x = total * uniform_at(row.key, row.position);
        walk = Walk(0u, 0.0, cut.num_ties);
        go(256u, tie_weight, sums_result.x);
    }
    let target_sum = workgroupUniformLoad(&sums_result).x;

    // Over the blocks of one thread.
    let first = workgroupUniformLoad(&walk).chosen * each;
    let num_blocks = min(each, num_hot - first);
    if local < num_blocks {
        publish_own(block_share(hot_block(first + local), cut));
    }
    workgroupBarrier();
    if local == 0u {
        go(num_blocks, tie_weight, target_sum);
    }

    // Over the tokens of one block.
    let block = hot_block(first + workgroupUniformLoad(&walk).chosen);
    if local < BLOCK_TOKENS {
        publish_own(token_share(block * BLOCK_TOKENS + local, cut));
    }
    workgroupBarrier();
    if local == 0u {
        go(BLOCK_TOKENS, tie_weight, target_sum);
    }
    return block * BLOCK_TOKENS + workgroupUniformLoad(&walk).chosen;
}

fn publish_own(share: Share) {
    sums[local].x = share.mass;
    words[local] = share.num_ties;
}

fn publish(share: Share) {
    publish_own(share);
    workgroupBarrier();
}

// Walks over the first `count` published shares until the sum passes `target_sum`, and stands
// before the share that does it: the last that weighs anything when rounding leaves none. Gives
// the sum with that share. For one thread.
fn go(count: u32, tie_weight: f32, target_sum: f32) -> f32 {
    var sum = walk.sum;
    var ties_left = walk.ties_left;
    var at = Walk(0u, sum, ties_left);
    for (var i = 0u; i < count && sum <= target_sum; i++) {
        let num_ties = min(words[i], ties_left);
        let mass = sums[i].x + f32(num_ties) * tie_weight;
        if mass > 0.0 {
            at = Walk(i, sum, ties_left);
            sum += mass;
        }
        ties_left -= num_ties;
    }
    walk = at;
    return sum;
}
