// 32 weights of one row: how they lie in the planes, and their values before scaling.
//
// Rows stand in panels of eight, so that eight threads side by side, one a row, read 16 bytes each that lie
// side by side, and need no sum over threads. Within a panel, group by group of 32 columns:
//   quants: VECTORS x 8 rows of 16 bytes,
//   highs:  HIGH x 8 rows of a word (the upper bits of numbers of 5 and 6 bits),
//   scales: 8 rows of two bytes, 8 rows of a word, or for each superblock of eight groups 5 x 8 rows of a word.
// `src/weights/format.rs` has the same table. Weights come in two halves of four vectors of four.
// TEXELS: planes are textures, a panel a row; a texel is 16 bytes of quants, or a word.
// Before: params.groups (of a row).

#if TEXELS
@group(0) @binding(2) var quants: texture_storage_2d<rgba32uint, read>;
@group(0) @binding(3) var highs: texture_storage_2d<r32uint, read>;
@group(0) @binding(4) var scales: texture_storage_2d<r32uint, read>;

fn quants_at(panel: u32, at: u32) -> vec4<u32> {
    return textureLoad(quants, vec2<u32>(at, panel));
}

fn high_at(panel: u32, at: u32) -> u32 {
    return textureLoad(highs, vec2<u32>(at, panel)).x;
}

fn scale_at(panel: u32, at: u32) -> u32 {
    return textureLoad(scales, vec2<u32>(at, panel)).x;
}
#else
@group(0) @binding(2) var<storage, read> quants: array<vec4<u32>>;
@group(0) @binding(3) var<storage, read> highs: array<u32>;
@group(0) @binding(4) var<storage, read> scales: array<u32>;

fn quants_at(panel: u32, at: u32) -> vec4<u32> {
    return quants[panel * params.groups * $VECTORSu * 8u + at];
}

fn high_at(panel: u32, at: u32) -> u32 {
    return highs[panel * params.groups * $HIGHu * 8u + at];
}

fn scale_at(panel: u32, at: u32) -> u32 {
#if SCALE_HALF
    return scales[panel * params.groups * 4u + at];
#else
#if SCALE_PAIR
    return scales[panel * params.groups * 8u + at];
#else
    return scales[panel * (params.groups / 8u) * 40u + at];
#endif
#endif
}
#endif

struct Group {
    low: array<vec4<u32>, $VECTORS>,
#if HIGH
    high: array<u32, $HIGH>,
#endif
    // Of the first 16 weights and of the others; the same but where TWO_SCALES is set.
    scale: array<f32, 2>,
    // Added to each weight; 0 but where MIN is set.
    least: f32,
}

fn load_group(panel: u32, row: u32, g: u32) -> Group {
    var group: Group;
#for v in VECTORS
    group.low[$v] = quants_at(panel, (g * $VECTORSu + $vu) * 8u + row);
#endfor
#for h in HIGH
    group.high[$h] = high_at(panel, (g * $HIGHu + $hu) * 8u + row);
#endfor
    group.scale = array<f32, 2>(1.0, 1.0);
    group.least = 0.0;
#if SCALE_HALF
    // Two rows share a word.
    let scale = unpack2x16float(scale_at(panel, g * 4u + row / 2u) >> (row % 2u * 16u)).x;
    group.scale = array<f32, 2>(scale, scale);
#endif
#if SCALE_PAIR
    let pair = unpack2x16float(scale_at(panel, g * 8u + row));
    group.scale = array<f32, 2>(pair.x, pair.x);
    group.least = pair.y;
#endif
#if SCALE_SUPER
    let super_at = g / 8u * 40u + row;
    let pair = unpack2x16float(scale_at(panel, super_at));
    let own = scale_at(panel, super_at + 8u + g % 8u / 2u * 8u) >> (g % 2u * 16u);
    let scale = pair.x * f32(own & 255u);
    group.scale = array<f32, 2>(scale, scale);
    group.least = -(pair.y * f32((own >> 8u) & 255u));
#endif
#if SCALE_SIX
    let super_at = g / 8u * 40u + row;
    let whole = bitcast<f32>(scale_at(panel, super_at));
    let own = bitcast<i32>(scale_at(panel, super_at + 8u + g % 8u / 2u * 8u) << (16u - g % 2u * 16u));
    group.scale = array<f32, 2>(whole * f32((own << 8u) >> 24u), whole * f32(own >> 24u));
#endif
    return group;
}

#for h in 2
#for j in 4
// Weights 16 * $h + 4 * $j and the next three.
fn numbers_$h$j(group: Group) -> vec4<f32> {
#if BITS32
    return bitcast<vec4<f32>>(group.low[$h * 4 + $j]);
#endif
#if BITS16
    let words = vec2<u32>(group.low[$h * 2 + $j / 2][$j % 2 * 2], group.low[$h * 2 + $j / 2][$j % 2 * 2 + 1]);
#if BRAIN
    let low = words << vec2<u32>(16u);
    let high = words & vec2<u32>(0xffff0000u);
    return bitcast<vec4<f32>>(vec4<u32>(low.x, high.x, low.y, high.y));
#else
    return vec4<f32>(unpack2x16float(words.x), unpack2x16float(words.y));
#endif
#endif
#if BITS8
    let word = vec4<i32>(bitcast<i32>(group.low[$h][$j]));
    return vec4<f32>((word << vec4<u32>(24u, 16u, 8u, 0u)) >> vec4<u32>(24u));
#endif
#if BITS4
    let word = group.low[0][$h * 2 + $j / 2] >> ($ju % 2u * 16u);
    var numbers = (vec4<u32>(word) >> vec4<u32>(0u, 4u, 8u, 12u)) & vec4<u32>(15u);
#if HIGH1
    let upper = (group.high[0] >> ($hu * 16u + $ju * 4u)) << 4u;
    numbers |= (vec4<u32>(upper) >> vec4<u32>(0u, 1u, 2u, 3u)) & vec4<u32>(16u);
#endif
#if HIGH2
    let upper = (group.high[$h] >> ($ju * 8u)) << 4u;
    numbers |= (vec4<u32>(upper) >> vec4<u32>(0u, 2u, 4u, 6u)) & vec4<u32>(48u);
#endif
    return vec4<f32>(vec4<i32>(numbers) - vec4<i32>($OFFSET));
#endif
}
#endfor
#endfor
