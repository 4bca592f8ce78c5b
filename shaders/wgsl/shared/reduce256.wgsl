// Sums and extremes over a workgroup of 256, in one fixed order, and the same for every thread:
// over the columns of a 16 x 16 square, then over those. All threads must call together.

var<workgroup> sums: array<vec4<f32>, 256>;
var<workgroup> words: array<u32, 256>;
var<workgroup> sums_result: vec4<f32>;
var<workgroup> word_result: u32;

fn sum_all(local: u32, value: vec4<f32>) -> vec4<f32> {
    sums[local] = value;
    workgroupBarrier();
    if local < 16u {
        var sum = sums[local];
        for (var i = local + 16u; i < 256u; i += 16u) {
            sum += sums[i];
        }
        sums[local] = sum;
    }
    workgroupBarrier();
    if local == 0u {
        var sum = sums[0];
        for (var i = 1u; i < 16u; i++) {
            sum += sums[i];
        }
        sums_result = sum;
    }
    return workgroupUniformLoad(&sums_result);
}

fn max_words(local: u32, value: u32) -> u32 {
    words[local] = value;
    workgroupBarrier();
    if local < 16u {
        var best = words[local];
        for (var i = local + 16u; i < 256u; i += 16u) {
            best = max(best, words[i]);
        }
        words[local] = best;
    }
    workgroupBarrier();
    if local == 0u {
        var best = words[0];
        for (var i = 1u; i < 16u; i++) {
            best = max(best, words[i]);
        }
        word_result = best;
    }
    return workgroupUniformLoad(&word_result);
}
