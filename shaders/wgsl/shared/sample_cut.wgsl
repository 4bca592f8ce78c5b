// Which tokens may be drawn. Top-k, top-p and min-p all keep the first of the tokens by descending
// logit, ties by ascending token. So a cut is the key of the last one kept and how many tokens
// of that key are kept, the lowest; and it is found by bisecting keys, without a sort.

struct Cut {
    key: u32,
    num_ties: u32,
}

const KEEP_ALL: Cut = Cut(0u, 0u);

// Set by the entry point, alike in all threads.
var<private> local: u32;
var<private> row_idx: u32;
var<private> row: SampleRow;
var<private> peak_key: u32;
var<private> peak: f32;
// Blocks that may hold tokens that are kept, and whether those are simply all.
var<private> num_hot: u32;
var<private> is_whole: bool;

fn block_scan(block: u32) -> BlockScan {
    return scan[row_idx * shape.num_blocks + block];
}

fn hot_block(idx: u32) -> u32 {
    if is_whole {
        return idx;
    }
    return hot[row_idx * shape.num_blocks + idx];
}

fn key_of(token: u32) -> u32 {
    return token_key(row.logits_row, row.mask_row, token);
}

fn weight_of(key: u32) -> f32 {
    return weight(key, peak, row.scale);
}

// The logit at which a weight of 2^-bits is certainly passed, as a key. One key lower than
// computed, and by a hundredth of a bit, so that rounding loses no token.
fn floor_at(bits: f32) -> u32 {
    if row.scale < 1e-30 {
        return 1u;
    }
    let logit = max(peak - (bits + 0.01) / row.scale, -3.4028234e38);
    return max(logit_key(bitcast<u32>(logit)), 2u) - 1u;
}

// The peak of the block that is in `place` when blocks are ordered by their peaks.
fn floor_of_place(place: u32) -> u32 {
    var low = 1u;
    var high = peak_key;
    while low < high {
        let middle = high - (high - low) / 2u;
        var count = 0.0;
        for (var block = local; block < shape.num_blocks; block += 256u) {
            count += select(0.0, 1.0, block_scan(block).peak_key >= middle);
        }
        if sum_floats(local, count) >= f32(place) {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    return low;
}

// Lists the blocks whose peaks reach `floor`, in their order.
fn list_hot(floor: u32) {
    let each = (shape.num_blocks + 255u) / 256u;
    let start = min(local * each, shape.num_blocks);
    let end = min(start + each, shape.num_blocks);
    var count = 0u;
    for (var block = start; block < end; block++) {
        count += select(0u, 1u, block_scan(block).peak_key >= floor);
    }
    words[local] = count;
    workgroupBarrier();
    if local == 0u {
        var sum = 0u;
        for (var i = 0u; i < 256u; i++) {
            let own = words[i];
            words[i] = sum;
            sum += own;
        }
        word_result = sum;
    }
    num_hot = workgroupUniformLoad(&word_result);
    var next = row_idx * shape.num_blocks + words[local];
    for (var block = start; block < end; block++) {
        if block_scan(block).peak_key >= floor {
            hot[next] = block;
            next++;
        }
    }
    storageBarrier();
    workgroupBarrier();
}

// How many tokens of the hot blocks have at least this key, or what they weigh. A count is
// exact: no vocabulary has 2^24 tokens.
fn at_least(key: u32, by_mass: bool) -> f32 {
    var sum = 0.0;
    for (var slot = local; slot < num_hot * BLOCK_TOKENS; slot += 256u) {
        let own = key_of(hot_block(slot / BLOCK_TOKENS) * BLOCK_TOKENS + slot % BLOCK_TOKENS);
        if own >= key {
            sum += select(1.0, weight_of(own), by_mass);
        }
    }
    return sum_floats(local, sum);
}

// The largest key in low..=peak_key that `target` tokens reach, or tokens of that mass; `low`
// when there is none.
fn bisect(from_key: u32, target_sum: f32, by_mass: bool) -> u32 {
    var low = from_key;
    var high = peak_key;
    while low < high {
        let middle = high - (high - low) / 2u;
        if at_least(middle, by_mass) >= target_sum {
            low = middle;
        } else {
            high = middle - 1u;
        }
    }
    return low;
}

fn cut_at_count(count: u32, floor: u32) -> Cut {
    let key = bisect(floor, f32(count), false);
    if at_least(key, false) < f32(count) {
        return KEEP_ALL;
    }
    return Cut(key, count - u32(at_least(key + 1u, false)));
}

// What the tokens above the cut and its ties weigh together.
fn mass_of(cut: Cut) -> f32 {
    return at_least(cut.key + 1u, true) + f32(cut.num_ties) * weight_of(cut.key);
}

// Narrows a cut to the fewest tokens that weigh `target_mass`.
fn cut_at_mass(cut: Cut, target_mass: f32, floor: u32) -> Cut {
    var key = cut.key;
    var num_ties = cut.num_ties;
    if cut.key < peak_key {
        let above = bisect(max(cut.key + 1u, floor), target_mass, true);
        if at_least(above, true) >= target_mass {
            key = above;
            num_ties = u32(at_least(above, false) - at_least(above + 1u, false));
        }
    }
    let each = weight_of(key);
    if key == 0u || each == 0.0 {
        return cut;
    }
    let missing = ceil((target_mass - at_least(key + 1u, true)) / each);
    return Cut(key, u32(clamp(missing, 1.0, f32(num_ties))));
}
