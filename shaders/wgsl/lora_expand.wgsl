// out += B y for each row's own adapter, after the base's product is in `out`.
//
// A thread takes one column of one row. Rows without an adapter, and columns of modules that the
// adapter does not change, stay as they are.

#include "shared/lora.wgsl"

// [num_rows, shape.num_modules, MAX_RANK]
@group(0) @binding(4) var<storage, read> shrunk: array<f32>;
// [num_rows, shape.out_width]
@group(0) @binding(5) var<storage, read_write> out: array<f32>;

// What a module adds to its column `column` of a row.
fn delta(slot: LoraSlot, row: u32, module_idx: u32, column: u32) -> f32 {
    let units = slot.rank / RANKS_A_UNIT;
    let b = start_of_b(slot, shape.modules[module_idx]) + column * units;
    let y = (row * shape.num_modules + module_idx) * MAX_RANK;
    var sum = 0.0;
    for (var unit = 0u; unit < units; unit++) {
        let halves = pool[b + unit];
        let at = y + unit * 8u;
        sum += dot(vec4<f32>(unpack2x16float(halves.x), unpack2x16float(halves.y)),
            vec4<f32>(shrunk[at], shrunk[at + 1u], shrunk[at + 2u], shrunk[at + 3u]));
        sum += dot(vec4<f32>(unpack2x16float(halves.z), unpack2x16float(halves.w)),
            vec4<f32>(shrunk[at + 4u], shrunk[at + 5u], shrunk[at + 6u], shrunk[at + 7u]));
    }
    return sum;
}

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let column = id.x;
    let row = id.y;
    for (var i = 0u; i < shape.num_modules; i++) {
        let placed = shape.modules[i];
        // Wraps around for columns before the first.
        let own = column - placed.first_column;
        if own >= placed.output || column < placed.first_column {
            continue;
        }
        let slot = slot_of(row, placed);
        if slot.rank > 0u {
            out[row * shape.out_width + column] += delta(slot, row, i, own);
        }
    }
}
