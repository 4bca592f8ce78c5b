// A matrix times a few columns: out[c][out_base + m] = sum over k of W[m][k] * x[c][k].
//
// A thread computes ROWS rows of one or more panels for COLS columns; those past the end are computed again
// from the last one and not written. shared/product.wgsl says what W, x and out are.
//
// An output's sum is made in one order, whatever COLS is and whatever stands in the other columns: within a
// group one weight after the other, then groups one after the other within a slice of K, then slices. So
// a row's result does not depend on the batch that it came in.
//
// SHARE: subgroups are eight threads, the rows of one panel. Each fetches an eighth of the columns' next 32
// values and hands them to the others; loads are what costs most on a CPU that pretends to be a GPU. There,
// K is one slice, because a load of what all threads need alike is only cheap where it is the same place.

#if SHARE
#set ROWS 4
#set PANELS 4
#set SLICES 1
#else
#set ROWS 1
#set PANELS 1
#set SLICES 16
#endif

#include "shared/product.wgsl"

const PANELS: u32 = $PANELSu;
const LANES: u32 = PANELS * 8u;
const SLICES: u32 = $SLICESu;
#if !SHARE
var<workgroup> sums: array<f32, LANES * SLICES * $COLSu>;
#endif

@compute @workgroup_size(LANES, SLICES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_id) id: vec3<u32>) {
    let num_columns = step_info[params.columns_at];
    let row = id.x % 8u;
#for r in ROWS
    let panel$r = (workgroup.x * PANELS + id.x / 8u) * $ROWSu + $ru;
    let read$r = min(panel$r, params.panels - 1u);
#endfor
#for c in COLS
    let column$c = workgroup.y * $COLSu + $cu;
    let from$c = min(column$c, num_columns - 1u);
#endfor
#for r in ROWS
#for c in COLS
    var sum$r$c = 0.0;
#endfor
#endfor
#if SHARE
    let first = 0u;
    let end = params.groups;
#else
    let each = (params.groups + SLICES - 1u) / SLICES;
    let first = id.y * each;
    let end = min(first + each, params.groups);
#endif
    for (var g = first; g < end; g++) {
#for r in ROWS
        let group$r = load_group(read$r, row, g);
#endfor
#for c in COLS
#if SHARE
        let mine$c = values(from$c, g * 8u + row);
#endif
#if MIN
        var total$c = 0.0;
#endif
#for r in ROWS
        var part$r$c = 0.0;
#endfor
#endfor
#for h in 2
#for j in 4
#for r in ROWS
        let w$r$h$j = numbers_$h$j(group$r);
#endfor
#for c in COLS
#if SHARE
        let x$c$h$j = subgroupBroadcast(mine$c, $hu * 4u + $ju);
#else
        let x$c$h$j = values(from$c, g * 8u + $hu * 4u + $ju);
#endif
#if MIN
        total$c += (x$c$h$j.x + x$c$h$j.y) + (x$c$h$j.z + x$c$h$j.w);
#endif
#for r in ROWS
        part$r$c = fma(w$r$h$j.x, x$c$h$j.x, part$r$c);
        part$r$c = fma(w$r$h$j.y, x$c$h$j.y, part$r$c);
        part$r$c = fma(w$r$h$j.z, x$c$h$j.z, part$r$c);
        part$r$c = fma(w$r$h$j.w, x$c$h$j.w, part$r$c);
#endfor
#endfor
#endfor
#if TWO_SCALES
#for r in ROWS
#for c in COLS
        sum$r$c = fma(group$r.scale[$h], part$r$c, sum$r$c);
        part$r$c = 0.0;
#endfor
#endfor
#endif
#endfor
#for r in ROWS
#for c in COLS
#if !TWO_SCALES
        sum$r$c = fma(group$r.scale[0], part$r$c, sum$r$c);
#endif
#if MIN
        sum$r$c = fma(group$r.least, total$c, sum$r$c);
#endif
#endfor
#endfor
    }
#if SHARE
#for r in ROWS
#for c in COLS
    write(panel$r * 8u + row, column$c, num_columns, sum$r$c);
#endfor
#endfor
#else
#for c in COLS
    sums[($cu * SLICES + id.y) * LANES + id.x] = sum0$c;
#endfor
    workgroupBarrier();
    // The first slices' threads each add up one column or more.
    for (var c = id.y; c < $COLSu; c += SLICES) {
        var sum = 0.0;
        for (var slice = 0u; slice < SLICES; slice++) {
            sum += sums[(c * SLICES + slice) * LANES + id.x];
        }
        write(panel0 * 8u + row, workgroup.y * $COLSu + c, num_columns, sum);
    }
#endif
}
