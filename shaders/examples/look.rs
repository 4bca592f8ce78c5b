//! What the machine's adapters offer, and what a dispatch costs on the one that would be taken: the first thing to
//! know of a GPU, because it decides how far kernels should be fused.
//!
//! ```text
//! cargo run --release -p quern-shaders --example look -- [adapter=PART_OF_ITS_NAME]
//! ```
//!
//! The last lines are medians by the host's clock: an empty submit with the wait for it, and a pass of 1,000
//! dispatches of one workgroup that each write what the one before wrote.

use std::time::Duration;

use quern_shaders::harness::Content;
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::timing::time_chain;
use quern_shaders::{Device, DeviceOptions, survey};

const CHAIN: u32 = 1000;
const RUNS: usize = 11;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut options = DeviceOptions::default();
    for arg in std::env::args().skip(1) {
        match arg.split_once('=') {
            Some(("adapter", name)) => options.adapter = name.to_owned(),
            _ => return Err(format!("{arg} is not adapter=NAME").into()),
        }
    }
    for adapter in survey(&options) {
        println!("{} ({}, {}), {}", adapter.name, adapter.backend, adapter.kind, adapter.driver);
        println!(
            "  would be {}",
            adapter.refusal.map_or("opened".to_owned(), |why| format!("refused: {why}"))
        );
        let [least, most] = adapter.subgroup_sizes;
        println!("  subgroups: {}, {least} to {most} threads", there(adapter.has_subgroups));
        println!(
            "  halves: {}; clock for passes: {}",
            there(adapter.has_halves),
            there(adapter.has_timestamps)
        );
        println!(
            "  a binding: {} MiB; a buffer: {} MiB",
            adapter.max_binding_bytes >> 20,
            adapter.max_buffer_bytes >> 20
        );
        println!(
            "  a workgroup: {} threads, {} KiB shared; a kernel: {} buffers",
            adapter.workgroup_threads,
            adapter.workgroup_bytes >> 10,
            adapter.storage_buffers
        );
        let matrices = &adapter.cooperative_matrices;
        println!(
            "  cooperative matrices: {}",
            if matrices.is_empty() { "none".to_owned() } else { matrices.join("; ") }
        );
    }
    let device = Device::open(&options)?;
    let kernel = Kernel::new(&device, &Text::new("copy", &[]))?;
    let contents = [("x", Content::of(&[1_u32; 4])), ("out", Content::poisoned(4))];
    let median = |count| -> Result<Duration, quern_shaders::DeviceError> {
        // The first is to warm up.
        let times = (0..=RUNS).map(|_| time_chain(&device, &kernel, &contents, count));
        let mut times: Vec<Duration> = times.skip(1).collect::<Result<_, _>>()?;
        times.sort_unstable();
        Ok(times[RUNS / 2])
    };
    let (empty, chain) = (median(0)?, median(CHAIN)?);
    println!("\n{}:", device.profile().name);
    println!("  an empty submit: {:.1} us", empty.as_secs_f64() * 1e6);
    let each = chain.saturating_sub(empty).as_secs_f64() * 1e6 / f64::from(CHAIN);
    println!(
        "  {CHAIN} dispatches, each after the other: {:.2} ms, {each:.2} us each",
        chain.as_secs_f64() * 1e3
    );
    Ok(())
}

fn there(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}
