// Sums and extremes over a workgroup of 256, in one fixed order, and the same for every thread:
// column sums of a 16 x 16 square, then the sum of those. All threads must call together.

var<workgroup> floats: array<f32, 256>;
var<workgroup> words: array<u32, 256>;
var<workgroup> float_result: f32;
var<workgroup> word_result: u32;

fn sum_floats(local: u32, value: f32) -> f32 {
    floats[local] = value;
    workgroupBarrier();
    if local < 16u {
        var sum = floats[local];
        for (var i = local + 16u; i < 256u; i += 16u) {
            sum += floats[i];
        }
        floats[local] = sum;
    }
    workgroupBarrier();
    if local == 0u {
        var sum = floats[0];
        for (var i = 1u; i < 16u; i++) {
            sum += floats[i];
        }
        float_result = sum;
    }
    return workgroupUniformLoad(&float_result);
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
