// y = A x for each row's own adapter.
//
// A workgroup takes eight ranks of one module for one row: each thread eight columns at a time, then
// a tree. Rows, modules and ranks know nothing of each other, so a row's result does not depend on
// its company. Rows without an adapter write nothing.

#include "shared/lora.wgsl"

const WIDTH: u32 = 64u;

// [num_rows, shape.input]
@group(0) @binding(4) var<storage, read> x: array<f32>;
// [num_rows, shape.num_modules, MAX_RANK]; ranks past a slot's are not written
@group(0) @binding(5) var<storage, read_write> shrunk: array<f32>;

var<workgroup> partial: array<array<f32, WIDTH>, RANKS_A_UNIT>;

// Column `column` of a row, 0 past its end: the stored A is longer, and what follows is another row.
fn x_at(row: u32, column: u32) -> f32 {
    if column >= shape.input {
        return 0.0;
    }
    return x[row * shape.input + column];
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first_rank = group.x * RANKS_A_UNIT;
    let row = group.y;
    let placed = shape.modules[group.z];
    let slot = slot_of(row, placed);
    if first_rank >= slot.rank {
        return;
    }

    let a = start_of_a(slot, placed) + first_rank * shape.input_units;
    var sums: array<f32, RANKS_A_UNIT>;
    for (var unit = local; unit < shape.input_units; unit += WIDTH) {
        let column = unit * 8u;
        let low = vec4<f32>(x_at(row, column), x_at(row, column + 1u), x_at(row, column + 2u), x_at(row, column + 3u));
        let high = vec4<f32>(x_at(row, column + 4u), x_at(row, column + 5u), x_at(row, column + 6u), x_at(row, column + 7u));
        for (var rank = 0u; rank < RANKS_A_UNIT; rank++) {
            let halves = pool[a + rank * shape.input_units + unit];
            sums[rank] += dot(vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y)), low)
                + dot(vec4<f32>(unpack2x16float(halves.z), unpack2x16float(halves.w)), high);
        }
    }

    for (var rank = 0u; rank < RANKS_A_UNIT; rank++) {
        partial[rank][local] = sums[rank];
    }
    workgroupBarrier();
    for (var half = WIDTH / 2u; half > 0u; half /= 2u) {
        if local < half {
            for (var rank = 0u; rank < RANKS_A_UNIT; rank++) {
                partial[rank][local] += partial[rank][local + half];
            }
        }
        workgroupBarrier();
    }
    if local < RANKS_A_UNIT {
        shrunk[(row * shape.num_modules + group.z) * MAX_RANK + first_rank + local] = partial[local][0];
    }
}
