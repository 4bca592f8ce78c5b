// One value from all threads of a workgroup: within subgroups first, where the device has them, or in a
// tree. The order depends on the variant and on WIDTH alone. Every thread must come here.
// Before: the constant WIDTH, a power of two, and shared/threads.wgsl.

var<workgroup> partial: array<f32, WIDTH>;

#if SUBGROUPS
fn sum_of_all(value: f32, thread: Thread) -> f32 {
    let sum = subgroupAdd(value);
    if thread.lane == 0u {
        partial[thread.subgroup] = sum;
    }
    workgroupBarrier();
    var total = 0.0;
    for (var i = 0u; i < thread.num_subgroups; i++) {
        total += partial[i];
    }
    workgroupBarrier();
    return total;
}
#else
fn sum_of_all(value: f32, thread: Thread) -> f32 {
    partial[thread.index] = value;
    workgroupBarrier();
    for (var half = WIDTH / 2u; half > 0u; half /= 2u) {
        if thread.index < half {
            partial[thread.index] += partial[thread.index + half];
        }
        workgroupBarrier();
    }
    let total = partial[0];
    workgroupBarrier();
    return total;
}
#endif
