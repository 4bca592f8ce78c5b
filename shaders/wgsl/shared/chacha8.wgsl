// ChaCha with 8 rounds, a counter of 64 bits and stream 0: the host sampler's generator.

fn quarter_round(s: ptr<function, array<u32, 16>>, a: u32, b: u32, c: u32, d: u32) {
    var x = vec4<u32>((*s)[a], (*s)[b], (*s)[c], (*s)[d]);
    x.x += x.y; x.w ^= x.x; x.w = (x.w << 16u) | (x.w >> 16u);
    x.z += x.w; x.y ^= x.z; x.y = (x.y << 12u) | (x.y >> 20u);
    x.x += x.y; x.w ^= x.x; x.w = (x.w << 8u) | (x.w >> 24u);
    x.z += x.w; x.y ^= x.z; x.y = (x.y << 7u) | (x.y >> 25u);
    (*s)[a] = x.x; (*s)[b] = x.y; (*s)[c] = x.z; (*s)[d] = x.w;
}

fn chacha8_block(key: array<u32, 8>, counter: u32) -> array<u32, 16> {
    let start = array<u32, 16>(
        0x61707865u, 0x3320646eu, 0x79622d32u, 0x6b206574u,
        key[0], key[1], key[2], key[3], key[4], key[5], key[6], key[7],
        counter, 0u, 0u, 0u,
    );
    var s = start;
    for (var i = 0u; i < 4u; i++) {
        for (var column = 0u; column < 4u; column++) {
            quarter_round(&s, column, column + 4u, column + 8u, column + 12u);
        }
        for (var column = 0u; column < 4u; column++) {
            quarter_round(&s, column, (column + 1u) % 4u + 4u, (column + 2u) % 4u + 8u, (column + 3u) % 4u + 12u);
        }
    }
    s[0] += start[0]; s[1] += start[1]; s[2] += start[2]; s[3] += start[3];
    s[4] += start[4]; s[5] += start[5]; s[6] += start[6]; s[7] += start[7];
    s[8] += start[8]; s[9] += start[9]; s[10] += start[10]; s[11] += start[11];
    s[12] += start[12]; s[13] += start[13]; s[14] += start[14]; s[15] += start[15];
    return s;
}

// The first 24 of the 53 random bits that the host takes at `position`: words 2 * position and
// the next are a number's low and high half.
fn uniform_at(key: array<u32, 8>, position: u32) -> f32 {
    var block = chacha8_block(key, position / 8u);
    return f32(block[position % 8u * 2u + 1u] >> 8u) * (1.0 / 16777216.0);
}
