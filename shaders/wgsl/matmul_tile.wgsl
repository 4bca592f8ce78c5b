// A matrix times many columns, to the last bit what matmul.wgsl gives for one of them.
//
// A workgroup takes 64 rows and 32 columns. Group by group of 32 weights, its threads unpack the rows' weights
// into memory that they share, so that a weight is read and unpacked once for all columns, and fetch the
// columns' values beside them; then each thread adds to four rows and four columns. shared/product.wgsl says
// what W, x and out are. Rows and columns past the end are computed again from the last one and not written.
//
// Sums are made in matmul.wgsl's order, as without SHARE: within a group one weight after the other, then
// groups within a slice of K, then slices. There, slices are other threads' work; here, they come one by one.

#include "shared/product.wgsl"

const SLICES: u32 = 16u;
const ROWS: u32 = 64u;
const COLS: u32 = 32u;
const ROW_LANES: u32 = 16u;
const COL_LANES: u32 = 8u;
const THREADS: u32 = ROW_LANES * COL_LANES;
// From one column's values to the next one's, in vectors of four: odd, so that columns lie in other banks.
const STRIDE: u32 = 9u;

// [vectors of a group, rows], before scaling.
var<workgroup> weights: array<vec4<f32>, 8u * ROWS>;
// The two scales and the least of each row's group.
var<workgroup> folds: array<vec4<f32>, ROWS>;
var<workgroup> inputs: array<vec4<f32>, COLS * STRIDE>;
#if MIN
// The sum of each column's values.
var<workgroup> totals: array<f32, COLS>;
#endif

@compute @workgroup_size(ROW_LANES, COL_LANES)
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(local_invocation_id) id: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let num_columns = step_info[params.columns_at];
    let first_row = workgroup.x * ROWS;
    let first_column = workgroup.y * COLS;
    // Two threads unpack a row, a half of its group each.
    let unpacked = thread % ROWS;
    let panel = min((first_row + unpacked) / 8u, params.panels - 1u);
    let each = (params.groups + SLICES - 1u) / SLICES;
#for r in 4
#for c in 4
    var whole$r$c = 0.0;
#endfor
#endfor
    for (var slice = 0u; slice < SLICES; slice++) {
#for r in 4
#for c in 4
        var sum$r$c = 0.0;
#endfor
#endfor
        let end = min((slice + 1u) * each, params.groups);
        for (var g = slice * each; g < end; g++) {
            // Everybody is done with the group before.
            workgroupBarrier();
            let group = load_group(panel, unpacked % 8u, g);
            if thread < ROWS {
#for j in 4
                weights[$ju * ROWS + unpacked] = numbers_0$j(group);
#endfor
                folds[unpacked] = vec4<f32>(group.scale[0], group.scale[1], group.least, 0.0);
            } else {
#for j in 4
                weights[(4u + $ju) * ROWS + unpacked] = numbers_1$j(group);
#endfor
            }
            for (var i = thread; i < COLS * 8u; i += THREADS) {
                let column = min(first_column + i / 8u, num_columns - 1u);
                inputs[i / 8u * STRIDE + i % 8u] = values(column, g * 8u + i % 8u);
            }
#if MIN
            if thread < COLS {
                let column = min(first_column + thread, num_columns - 1u);
                var total = 0.0;
                for (var i = 0u; i < 8u; i++) {
                    let x = values(column, g * 8u + i);
                    total += (x.x + x.y) + (x.z + x.w);
                }
                totals[thread] = total;
            }
#endif
            workgroupBarrier();

#for r in 4
            let fold$r = folds[id.x + $ru * ROW_LANES];
#for c in 4
            var part$r$c = 0.0;
#endfor
#endfor
#for h in 2
#for j in 4
#for r in 4
            let w$r$h$j = weights[($hu * 4u + $ju) * ROWS + id.x + $ru * ROW_LANES];
#endfor
#for c in 4
            let x$c$h$j = inputs[(id.y + $cu * COL_LANES) * STRIDE + $hu * 4u + $ju];
#for r in 4
            part$r$c = fma(w$r$h$j.x, x$c$h$j.x, part$r$c);
            part$r$c = fma(w$r$h$j.y, x$c$h$j.y, part$r$c);
            part$r$c = fma(w$r$h$j.z, x$c$h$j.z, part$r$c);
            part$r$c = fma(w$r$h$j.w, x$c$h$j.w, part$r$c);
#endfor
#endfor
#endfor
#if TWO_SCALES
#for r in 4
#for c in 4
            sum$r$c = fma(fold$r[$h], part$r$c, sum$r$c);
            part$r$c = 0.0;
#endfor
#endfor
#endif
#endfor
#for c in 4
#if MIN
            let total$c = totals[id.y + $cu * COL_LANES];
#endif
#for r in 4
#if !TWO_SCALES
            sum$r$c = fma(fold$r.x, part$r$c, sum$r$c);
#endif
#if MIN
            sum$r$c = fma(fold$r.z, total$c, sum$r$c);
#endif
#endfor
#endfor
        }
#for r in 4
#for c in 4
        whole$r$c += sum$r$c;
#endfor
#endfor
    }
#for r in 4
#for c in 4
    write(first_row + id.x + $ru * ROW_LANES, first_column + id.y + $cu * COL_LANES, num_columns, whole$r$c);
#endfor
#endfor
}
