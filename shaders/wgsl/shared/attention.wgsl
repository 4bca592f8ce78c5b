// What `attention` and `attention_merge` share: what some of a row's keys come to, and how two such sums
// become one.
//
// A row's keys are cut into parts of `part_keys`, the first of which begins at position 0. Each part is summed
// from nothing, and parts are folded in order, whether one workgroup takes them all or each has its own. So the
// order of a row's sums depends on its position and on nothing else.
// Before: the constant DIM.

const TILE: u32 = 128u;
const WORDS: u32 = DIM / 2u;
// Threads have a word of values each; those of a strip have all words between them.
const STRIPS: u32 = TILE / WORDS;
const LOWEST: f32 = -3.0e38;

struct Params {
    heads: u32,
    kv_heads: u32,
    rows_at: u32,
    // 1 / sqrt(DIM), times what the model says.
    scale: f32,
    // A multiple of TILE.
    part_keys: u32,
    // Words of step_info that say how many rows there are, and where their parts begin: for each row its first
    // part, then for each part its row.
    num_rows_at: u32,
    parts_at: u32,
}

// What some keys come to for one head and one thread: the largest score, the sum of weights, and a word of
// weighted values of one strip. Weights are relative to the largest score.
struct Sums {
    largest: f32,
    total: f32,
    values: vec2<f32>,
}

const NO_KEYS: Sums = Sums(LOWEST, 0.0, vec2<f32>(0.0));

// Keys so far, and the part behind them.
fn fold(whole: Sums, part: Sums) -> Sums {
    // What is folded to nothing stays as it is, to the last bit: rows of one part are not folded at all where
    // no row of the step has more.
    if whole.total == 0.0 {
        return part;
    }
    let largest = max(whole.largest, part.largest);
    let shrink = exp(whole.largest - largest);
    let weight = exp(part.largest - largest);
    let total = fma(whole.total, shrink, part.total * weight);
    return Sums(largest, total, fma(whole.values, vec2<f32>(shrink), part.values * weight));
}

var<workgroup> strips: array<vec2<f32>, TILE>;

// The sum of a word over all strips. For all threads at once.
fn over_strips(values: vec2<f32>, thread: u32) -> vec2<f32> {
    strips[thread] = values;
    workgroupBarrier();
    var sum = strips[thread % WORDS];
    for (var s = 1u; s < STRIPS; s++) {
        sum += strips[s * WORDS + thread % WORDS];
    }
    workgroupBarrier();
    return sum;
}
