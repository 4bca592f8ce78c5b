//! `rms_norm` against its twin.

mod common;

use quern_shaders::harness::{Content, assert_close, devices, run};
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::twins;

#[track_caller]
fn check(num_rows: usize, width: usize, from: Option<&[u32]>) {
    let (x, weight) = (common::floats(1, num_rows * width), common::floats(2, width));
    let all: Vec<u32> = (0..num_rows as u32).collect();
    let rows = from.unwrap_or(&all);
    let want = twins::rms_norm(&x, &weight, 1e-6, rows);
    // Something else stands before the list of rows, so that where it begins counts.
    let step_info: Vec<u32> = [u32::MAX].into_iter().chain(rows.iter().copied()).collect();
    let params = [width as u32 / 4, u32::from(from.is_some()), 1e-6f32.to_bits(), 0];
    for device in devices() {
        let text = Text::new("rms_norm", &[("SUBGROUPS", common::subgroups(device))]);
        let kernel = Kernel::new(device, &text).expect("a variant compiles");
        let contents = [
            ("params", Content::of(&params)),
            ("step_info", Content::of(&step_info)),
            ("x", Content::of(&x)),
            ("weight", Content::of(&weight)),
            ("out", Content::poisoned(rows.len() * width)),
        ];
        let written = run(device, &kernel, &contents, [rows.len() as u32, 1, 1]).expect("a kernel runs");
        assert_close(text.name(), &written.floats("out"), &want, 1e-12);
    }
}

#[test]
fn rows_shorter_and_longer_than_a_workgroup() {
    check(1, 4, None);
    check(3, 896, None);
    check(2, 1028, None);
}

#[test]
fn a_list_of_rows_is_gathered() {
    check(5, 64, Some(&[4, 0, 0, 2]));
}
