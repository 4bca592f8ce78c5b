// out = x and nothing else: what memory gives to a kernel that asks for no more. Other kernels'
// speed is told as a share of this one's.

// [n], 16 bytes each
@group(0) @binding(0) var<storage, read> x: array<vec4<u32>>;
// [n]
@group(0) @binding(1) var<storage, read_write> out: array<vec4<u32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>) {
    for (var i = id.x; i < arrayLength(&x); i += groups.x * 256u) {
        out[i] = x[i];
    }
}
