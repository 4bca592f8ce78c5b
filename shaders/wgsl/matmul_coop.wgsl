// A matrix times many columns, by the device's cooperative matrices: halves in, f32 sums out.
//
// A workgroup takes 64 rows and 64 columns. Group by group of 32 weights, its threads unpack the rows' weights
// into halves that they share; then each of its four subgroups multiplies 16 rows with all columns. Columns are
// read as halves that halve.wgsl made, with a power of two for each, which is multiplied back in the end.
// `halves` has room for whole workgroups' columns; shared/product.wgsl says what W and out are.
//
// Sums are not matmul.wgsl's to the last bit: weights and columns are rounded to halves, and the order of a
// sum is the device's. A column's sum does not depend on the other columns.
//
// LANES: threads of a subgroup. WIDE: cooperative matrices are of 16 x 16 values, else of 8 x 8.

enable f16;
enable wgpu_cooperative_matrix;

#set HALVES 1
#if WIDE
#set SIZE 16
#set ROW_TILES 1
#set COL_TILES 4
#else
#set SIZE 8
#set ROW_TILES 2
#set COL_TILES 8
#endif
#include "shared/product.wgsl"

const ROWS: u32 = 64u;
const COLS: u32 = 64u;
const SIZE: u32 = $SIZEu;
const THREADS: u32 = 4u * $LANESu;

// [32 weights, rows], scaled.
var<workgroup> weights: array<f16, 32u * ROWS>;
// For each subgroup one matrix of sums on its way out, column after column.
var<workgroup> sums: array<f32, 4u * SIZE * SIZE>;

// A half of 32 weights, scaled, to where the matrices are loaded from.
fn keep(first: u32, row: u32, numbers: vec4<f32>, scale: f32, least: f32) {
#for e in 4
    weights[(first + $eu) * ROWS + row] = f16(fma(numbers[$e], scale, least));
#endfor
}

@compute @workgroup_size(THREADS)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
) {
    let num_columns = step_info[params.columns_at];
    let first_row = workgroup.x * ROWS;
    let first_column = workgroup.y * COLS;
    let width = params.groups * 32u;
#for r in ROW_TILES
#for c in COL_TILES
    var sum$r$c: coop_mat$SIZEx$SIZE<f32, C>;
#endfor
#endfor
    for (var g = 0u; g < params.groups; g++) {
        // Everybody is done with the group before.
        workgroupBarrier();
        for (var i = thread; i < 2u * ROWS; i += THREADS) {
            let row = i % ROWS;
            let group = load_group(min((first_row + row) / 8u, params.panels - 1u), row % 8u, g);
            if i < ROWS {
#for j in 4
                keep(4u * $ju, row, numbers_0$j(group), group.scale[0], group.least);
#endfor
            } else {
#for j in 4
                keep(16u + 4u * $ju, row, numbers_1$j(group), group.scale[1], group.least);
#endfor
            }
        }
        workgroupBarrier();
        for (var k = 0u; k < 32u; k += SIZE) {
#for r in ROW_TILES
            let weights$r = coopLoad<coop_mat$SIZEx$SIZE<f16, A>>(
                &weights[k * ROWS + subgroup * 16u + $ru * SIZE], ROWS);
#endfor
#for c in COL_TILES
            let column$c = coopLoad<coop_mat$SIZEx$SIZE<f16, B>>(
                &halves[(first_column + $cu * SIZE) * width + g * 32u + k], width);
#for r in ROW_TILES
            sum$r$c = coopMultiplyAdd(weights$r, column$c, sum$r$c);
#endfor
#endfor
        }
    }
    let own = subgroup * SIZE * SIZE;
#for r in ROW_TILES
#for c in COL_TILES
    coopStore(sum$r$c, &sums[own], SIZE);
    workgroupBarrier();
    for (var i = lane; i < SIZE * SIZE; i += $LANESu) {
        let row = first_row + subgroup * 16u + $ru * SIZE + i % SIZE;
        let column = first_column + $cu * SIZE + i / SIZE;
        write(row, column, num_columns, sums[own + i] * powers[min(column, num_columns - 1u)]);
    }
    workgroupBarrier();
#endfor
#endfor
}
