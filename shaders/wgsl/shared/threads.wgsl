// Who a thread is. Subgroups' numbers are there only where the device has them.
struct Thread {
    @builtin(local_invocation_index) index: u32,
    @builtin(workgroup_id) group: vec3<u32>,
#if SUBGROUPS
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) lane: u32,
    @builtin(num_subgroups) num_subgroups: u32,
#endif
}
