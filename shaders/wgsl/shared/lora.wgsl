// Where an adapter's matrices lie, and which row uses which. Positions in pools are in units of
// eight f16.

const NO_SLOT: u32 = 0xffffffffu;
const MAX_RANK: u32 = 64u;
const RANKS_A_UNIT: u32 = 8u;

struct LoraSlot {
    start: u32,
    rank: u32,        // 8, 16, 32 or 64
    modules: u32,     // a bit for each module that the adapter changes
    unused: u32,
}

struct LoraModule {
    start: u32,       // in a slot of rank 8; other ranks in proportion
    bit: u32,         // its position in `LoraSlot.modules`
    first_column: u32, // of its output in a row of `out`
    output: u32,      // number of its output's columns
}

// Modules that read the same input, up to three.
struct LoraShape {
    input: u32,
    input_units: u32,
    out_width: u32,   // columns in a row of `out`
    num_modules: u32,
    modules: array<LoraModule, 3>,
}

@group(0) @binding(0) var<uniform> shape: LoraShape;
// [num_slots]
@group(0) @binding(1) var<storage, read> slots: array<LoraSlot>;
// [num_rows], a slot or NO_SLOT
@group(0) @binding(2) var<storage, read> row_slots: array<u32>;
// One layer's pool: for each slot and module A [rank, input_units * 8], then B [output, rank]
@group(0) @binding(3) var<storage, read> pool: array<vec4<u32>>;

// The slot of a row where its adapter changes the module; rank 0 where it does not.
fn slot_of(row: u32, placed: LoraModule) -> LoraSlot {
    let slot_idx = row_slots[row];
    if slot_idx == NO_SLOT {
        return LoraSlot(0u, 0u, 0u, 0u);
    }
    var slot = slots[slot_idx];
    if ((slot.modules >> placed.bit) & 1u) == 0u {
        slot.rank = 0u;
    }
    return slot;
}

fn start_of_a(slot: LoraSlot, placed: LoraModule) -> u32 {
    return slot.start + slot.rank / RANKS_A_UNIT * placed.start;
}

fn start_of_b(slot: LoraSlot, placed: LoraModule) -> u32 {
    return start_of_a(slot, placed) + slot.rank * shape.input_units;
}
