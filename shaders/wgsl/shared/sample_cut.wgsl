// Which tokens may be drawn. Top-k, top-p and min-p all keep the first of the tokens by descending
// logit, ties by ascending token. So a cut is the key of the last one kept and how many tokens
// of that key are kept, the lowest; and it is found by bisecting keys, without a sort.

struct Cut {
    key: u32,
    num_ties: u32,
    mass_above: f32,  // of the tokens with larger keys
}

const KEEP_ALL: Cut = Cut(0u, 0u, 0.0);

// What decides over loops and branches with barriers in them. It is handed on rather than private, because
// browsers refuse a text unless they see that all threads go the same way, and take no private variable to be
// the same in all threads.
struct Wish {
    top_k: u32,
    top_p: f32,
    min_p: f32,
    scale: f32,
    peak_key: u32,
    peak: f32,
}

// Set by the entry point, alike in all threads but for the first.
var<private> local: u32;
var<private> row_idx: u32;
var<private> row: SampleRow;
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
fn floor_at(bits: f32, wish: Wish) -> u32 {
    if wish.scale < 1e-30 {
        return 1u;
    }
    let logit = max(wish.peak - (bits + 0.01) / wish.scale, -3.4028234e38);
    return max(logit_key(bitcast<u32>(logit)), 2u) - 1u;
}

// The peak of the block that is in `place` when blocks are ordered by their peaks.
fn floor_of_place(place: u32, wish: Wish) -> u32 {
    var low = 1u;
    var high = wish.peak_key;
    while low < high {
        let middle = high - (high - low) / 2u;
        var count = vec4<f32>();
        for (var block = local; block < shape.num_blocks; block += 256u) {
            count.x += select(0.0, 1.0, block_scan(block).peak_key >= middle);
        }
        if sum_all(local, count).x >= f32(place) {
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

fn hot_key(slot: u32) -> u32 {
    return key_of(hot_block(slot / BLOCK_TOKENS) * BLOCK_TOKENS + slot % BLOCK_TOKENS);
}

// How many tokens of the hot blocks have at least each of these ascending keys, or what they weigh. A
// count is exact: no vocabulary has 2^24 tokens.
fn reach(keys: vec3<u32>, by_mass: bool) -> vec3<f32> {
    var sum = vec3<f32>();
    for (var slot = local; slot < num_hot * BLOCK_TOKENS; slot += 256u) {
        let own = hot_key(slot);
        if own >= keys.x {
            let one = select(1.0, weight_of(own), by_mass);
            sum += select(vec3<f32>(), vec3<f32>(one), vec3<u32>(own) >= keys);
        }
    }
    return sum_all(local, vec4<f32>(sum, 0.0)).xyz;
}

struct Tally {
    count_above: f32,
    mass_above: f32,
    num_ties: f32,
    mass: f32,        // with the ties
}

// What the hot blocks hold above a key and at it. Masses are summed in the order of `reach`.
fn tally(key: u32) -> Tally {
    var sum = vec4<f32>();
    for (var slot = local; slot < num_hot * BLOCK_TOKENS; slot += 256u) {
        let own = hot_key(slot);
        if own >= key {
            let each = weight_of(own);
            sum += select(vec4<f32>(1.0, each, 0.0, each), vec4<f32>(0.0, 0.0, 1.0, each), own == key);
        }
    }
    let all = sum_all(local, sum);
    return Tally(all.x, all.y, all.z, all.w);
}

// The largest key from `from_key` to the peak's that `goal` tokens reach, or tokens of that mass; `from_key` when there is
// none. Three keys are tried at once: a round's cost is its reads and its barriers.
fn bisect(from_key: u32, goal: f32, by_mass: bool, wish: Wish) -> u32 {
    var low = from_key;
    var high = wish.peak_key;
    while low < high {
        let part = (high - low) / 4u + 1u;
        let keys = min(vec3<u32>(low) + vec3<u32>(1u, 2u, 3u) * part, vec3<u32>(high));
        let reached = reach(keys, by_mass) >= vec3<f32>(goal);
        if reached.z {
            low = keys.z;
        } else if reached.y {
            low = keys.y;
            high = keys.z - 1u;
        } else if reached.x {
            low = keys.x;
            high = keys.y - 1u;
        } else {
            high = keys.x - 1u;
        }
    }
    return low;
}

// Cuts the hot blocks' tokens by count, and what is left by mass. `whole_mass` is that of all tokens,
// where no count is limited.
fn cut_hot(floor: u32, limits_count: bool, limits_mass: bool, whole_mass: f32, wish: Wish) -> Cut {
    var cut = KEEP_ALL;
    var mass = whole_mass;
    // One loop rather than two calls: compilers would make two copies of all of this.
    for (var phase = 0u; phase < 2u; phase++) {
        let by_mass = phase == 1u;
        if !select(limits_count, limits_mass, by_mass) {
            continue;
        }
        let goal = select(f32(wish.top_k), wish.top_p * mass, by_mass);
        let key = bisect(max(cut.key + 1u, floor), goal, by_mass, wish);
        let found = tally(key);
        let above = select(found.count_above, found.mass_above, by_mass);
        let each = weight(key, wish.peak, wish.scale);
        if select(found.count_above + found.num_ties, found.mass, by_mass) >= goal {
            let missing = ceil((goal - above) / select(1.0, each, by_mass));
            cut = Cut(key, u32(clamp(missing, 1.0, found.num_ties)), found.mass_above);
            mass = cut.mass_above + f32(cut.num_ties) * each;
        } else if !by_mass {
            // There are fewer tokens than that.
            mass = found.mass;
        } else if cut.key > 0u && weight(cut.key, wish.peak, wish.scale) > 0.0 {
            // The border lies among the ties of the cut that there is.
            let missing = ceil((goal - cut.mass_above) / weight(cut.key, wish.peak, wish.scale));
            cut.num_ties = u32(clamp(missing, 1.0, f32(cut.num_ties)));
        }
    }
    return cut;
}
