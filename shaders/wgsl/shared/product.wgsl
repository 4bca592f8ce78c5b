// What kernels that multiply a matrix have in common: out[c][out_base + m] = sum over k of W[m][k] * x[c][k].
//
// W is packed as shared/group.wgsl says; x: [columns, groups * 32]; out: [columns, out_stride]. `x` and `out`
// have as many columns as `step_info[columns_at]` says.
//
// TEXELS: W's planes and x are textures, x with a column a row and four values a texel; see `src/texels.rs`.
// HALVES: x is what halve.wgsl makes of it.

struct Params {
    // Of a row of W.
    groups: u32,
    panels: u32,
    // Rows of W that are rows of the matrix; those after them fill the last panel.
    rows: u32,
    // Vectors of four from one column of x to the next.
    x_stride: u32,
    // Where W's first row goes, and values from one column of `out` to the next.
    out_base: u32,
    out_stride: u32,
    columns_at: u32,
    // Where W's first row stands in `bias`.
    first_row: u32,
    // 1: add `bias`, 2: add what `out` holds.
    flags: u32,
}

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var<storage, read> step_info: array<u32>;
@group(0) @binding(5) var<storage, read> bias: array<f32>;
#if HALVES
@group(0) @binding(6) var<storage, read> halves: array<f16>;
@group(0) @binding(8) var<storage, read> powers: array<f32>;
#else
#if TEXELS
@group(0) @binding(6) var x: texture_storage_2d<rgba32float, read>;
#else
@group(0) @binding(6) var<storage, read> x: array<vec4<f32>>;
#endif
#endif
@group(0) @binding(7) var<storage, read_write> out: array<f32>;

#include "shared/quant_$QUANT.wgsl"

#if !HALVES
// Values 4 * at and the next three of a column.
fn values(column: u32, at: u32) -> vec4<f32> {
#if TEXELS
    return textureLoad(x, vec2<u32>(at, column));
#else
    return x[column * params.x_stride + at];
#endif
}
#endif

fn write(row: u32, column: u32, num_columns: u32, sum: f32) {
    if row >= params.rows || column >= num_columns {
        return;
    }
    let at = column * params.out_stride + params.out_base + row;
    var value = sum;
    if (params.flags & 1u) != 0u {
        value += bias[params.first_row + row];
    }
    if (params.flags & 2u) != 0u {
        value += out[at];
    }
    out[at] = value;
}
