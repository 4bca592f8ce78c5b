// First pass of sampling: the peak and the weight of every block of a row.
//
// rows x blocks. A workgroup takes 16 blocks, 16 threads to each, so that neighbours read
// neighbours. Weights are relative to the block's own peak: the row's is not known yet.

#include "shared/sample.wgsl"
#include "shared/block_scan.wgsl"

// [num_rows, num_blocks]
@group(0) @binding(4) var<storage, read_write> scan: array<BlockScan>;

const LANES: u32 = 16u;
const TOKENS_A_LANE: u32 = BLOCK_TOKENS / LANES;

var<workgroup> keys: array<u32, 256>;
var<workgroup> sums: array<f32, 256>;

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let lane = local % LANES;
    let first = local - lane;
    let block = group.x * (256u / LANES) + local / LANES;
    let row_idx = group.y;
    let logits_row = rows[row_idx].logits_row;
    let mask_row = rows[row_idx].mask_row;
    let scale = rows[row_idx].scale;

    var own: array<u32, TOKENS_A_LANE>;
    var best = 0u;
    for (var i = 0u; i < TOKENS_A_LANE; i++) {
        own[i] = token_key(logits_row, mask_row, block * BLOCK_TOKENS + i * LANES + lane);
        best = max(best, own[i]);
    }
    keys[local] = best;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            keys[local] = max(keys[local], keys[local + half]);
        }
        workgroupBarrier();
    }
    let peak_key = keys[first];

    var sum = 0.0;
    if rows[row_idx].is_greedy == 0u && peak_key != 0u && peak_key != LARGEST_KEY {
        let peak = key_logit(peak_key);
        for (var i = 0u; i < TOKENS_A_LANE; i++) {
            sum += weight(own[i], peak, scale);
        }
    }
    sums[local] = sum;
    workgroupBarrier();
    for (var half = LANES / 2u; half > 0u; half /= 2u) {
        if lane < half {
            sums[local] += sums[local + half];
        }
        workgroupBarrier();
    }
    if lane == 0u && block < shape.num_blocks {
        scan[row_idx * shape.num_blocks + block] = BlockScan(peak_key, sums[local]);
    }
}
