//! `matmul`, `matmul_tile` and `embed` against their twins, for every type.

mod common;

use quern_shaders::Device;
use quern_shaders::harness::{Content, assert_close, assert_same, devices, run};
use quern_shaders::kernels::{Kernel, Text};
use quern_shaders::texels::Texel;
use quern_shaders::twins;
use quern_shaders::weights::format::{GROUP, PANEL_ROWS};
use quern_shaders::weights::{Format, Planes, repack};

/// A matrix in planes.
struct Matrix {
    num_rows: usize,
    num_groups: usize,
    planes: Planes,
}

impl Matrix {
    fn random(format: Format, num_rows: usize, num_columns: usize) -> Matrix {
        let rows = common::rows(format.kind, 3, num_rows, num_columns);
        let mut planes = Planes::default();
        repack(format, num_columns, &rows, &mut planes);
        Matrix { num_rows, num_groups: num_columns / GROUP, planes }
    }

    /// The planes; in textures with a panel a row where `texels` is "1".
    fn planes(&self, texels: &str) -> [(&'static str, Content); 3] {
        let num_panels = self.num_rows.div_ceil(PANEL_ROWS);
        // A plane that a type does not have is bound to something that it must not use.
        let plane = |words: &[u32], texel: Texel| {
            let content = if words.is_empty() { Content::poisoned(4) } else { Content::of(words) };
            let panel_words = (words.len() / num_panels).max(4) as u32;
            if texels == "1" { content.in_rows_of(texel, panel_words * 4 / texel.bytes()) } else { content }
        };
        [
            ("quants", plane(&self.planes.quants, Texel::Words)),
            ("highs", plane(&self.planes.highs, Texel::Word)),
            ("scales", plane(&self.planes.scales, Texel::Word)),
        ]
    }

    /// Runs the kernel for `x` of whole columns. Outputs stand in rows that are `3` longer than they must
    /// be, from the second place on, so that nothing else may be written.
    fn times(&self, on: &On, x: &[f32], flags: u32, bias: &[f32], before: &[f32]) -> Vec<f32> {
        let num_columns = x.len() / (self.num_groups * GROUP);
        let stride = self.num_rows + 3;
        let width = (self.num_groups * GROUP / 4) as u32;
        let num_panels = self.num_rows.div_ceil(PANEL_ROWS);
        let params = [
            self.num_groups as u32,
            num_panels as u32,
            self.num_rows as u32,
            width,
            1,
            stride as u32,
            2,
            4,
            flags,
        ];
        let contents = [
            ("params", Content::of(&params)),
            ("step_info", Content::of(&[u32::MAX, u32::MAX, num_columns as u32])),
            (
                "bias",
                if bias.is_empty() {
                    Content::poisoned(1)
                } else {
                    Content::of(&[&[f32::NAN; 4], bias].concat())
                },
            ),
            (
                "x",
                if on.texels == "1" {
                    Content::of(x).in_rows_of(Texel::Floats, width)
                } else {
                    Content::of(x)
                },
            ),
            (
                "out",
                if before.is_empty() { Content::poisoned(num_columns * stride) } else { Content::of(before) },
            ),
        ];
        let contents: Vec<_> = contents.into_iter().chain(self.planes(on.texels)).collect();
        let workgroups = [num_panels.div_ceil(on.panels) as u32, num_columns.div_ceil(on.cols) as u32, 1];
        let out = run(on.device, &on.kernel, &contents, workgroups).expect("a kernel runs").floats("out");
        let mut rows = Vec::new();
        for (idx, value) in out.iter().enumerate() {
            if (1..=self.num_rows).contains(&(idx % stride)) {
                rows.push(*value);
            } else {
                let was = before.get(idx).copied();
                assert!(
                    was.map_or(value.is_nan(), |was| was == *value),
                    "{value} was written beside the output"
                );
            }
        }
        rows
    }
}

/// `matmul_coop` on columns that `halve` made halves of. The last columns of its tile are NaN.
fn by_cooperative_matrices(device: &Device, format: Format, matrix: &Matrix, x: &[f32]) -> Vec<f32> {
    let width = matrix.num_groups * GROUP;
    let (num_rows, num_columns) = (matrix.num_rows, x.len() / width);
    let profile = device.profile();
    let lanes = if profile.subgroup_size == Some(8) { "8" } else { "32" };
    let wide = if profile.cooperative_size == Some(16) { "1" } else { "0" };
    let axes = [("QUANT", format.axis), ("LANES", lanes), ("WIDE", wide)];
    let kernel = Kernel::new(device, &Text::new("matmul_coop", &axes)).expect("a variant compiles");
    let halved: Vec<_> = x.chunks(width).map(twins::halve).collect();
    let mut halves: Vec<u16> =
        halved.iter().flat_map(|row| row.halves.iter().map(|half| half.to_bits())).collect();
    halves.resize(num_columns.next_multiple_of(64) * width, 0x7fff);
    let powers: Vec<f32> = halved.iter().map(|row| row.power).collect();
    let num_panels = num_rows.div_ceil(PANEL_ROWS) as u32;
    let params = [matrix.num_groups as u32, num_panels, num_rows as u32, 0, 0, num_rows as u32, 0, 0, 0];
    let contents = [
        ("params", Content::of(&params)),
        ("step_info", Content::of(&[num_columns as u32])),
        ("bias", Content::poisoned(1)),
        ("halves", Content::of(&halves)),
        ("powers", Content::of(&powers)),
        ("out", Content::poisoned(num_columns * num_rows)),
    ];
    let contents: Vec<_> = contents.into_iter().chain(matrix.planes("0")).collect();
    let workgroups = [num_panels.div_ceil(8), num_columns.div_ceil(64) as u32, 1];
    run(device, &kernel, &contents, workgroups).expect("a kernel runs").floats("out")
}

/// A compiled variant of `matmul` or `matmul_tile`, and the columns and panels of its workgroups.
struct On<'a> {
    device: &'a Device,
    kernel: Kernel,
    cols: usize,
    panels: usize,
    texels: &'static str,
}

impl<'a> On<'a> {
    fn new(device: &'a Device, format: Format, cols: usize) -> On<'a> {
        On::reading(device, format, cols, common::texels(device))
    }

    /// With this value of the axis `TEXELS`.
    fn reading(device: &'a Device, format: Format, cols: usize, texels: &'static str) -> On<'a> {
        let (count, share) = (cols.to_string(), common::share(device));
        let axes = [("QUANT", format.axis), ("COLS", count.as_str()), ("SHARE", share), ("TEXELS", texels)];
        let kernel = Kernel::new(device, &Text::new("matmul", &axes)).expect("a variant compiles");
        On { device, kernel, cols, panels: if share == "1" { 16 } else { 1 }, texels }
    }

    /// The variant for many columns, with this value of the axis `TEXELS`.
    fn tile(device: &'a Device, format: Format, texels: &'static str) -> On<'a> {
        let axes = [("QUANT", format.axis), ("TEXELS", texels)];
        let kernel = Kernel::new(device, &Text::new("matmul_tile", &axes)).expect("a variant compiles");
        On { device, kernel, cols: 32, panels: 8, texels }
    }
}

#[test]
fn every_type_times_few_and_many_columns() {
    for &format in Format::all() {
        let matrix = Matrix::random(format, 141, 512);
        let x = common::floats(4, 11 * 512);
        let want = twins::matmul(format, 141, 512 / GROUP, &matrix.planes, &x);
        for device in devices() {
            // 11 columns end in the middle of each variant's tile but the first's.
            let together = matrix.times(&On::new(device, format, 8), &x, 0, &[], &[]);
            assert_close(format.axis, &together, &want, 1e-9);
            for cols in [2, 4, 16] {
                let other = matrix.times(&On::new(device, format, cols), &x, 0, &[], &[]);
                assert_same(&format!("{} in tiles of {cols}", format.axis), &other, &together);
            }
            // Buffers are for GPUs, and textures for CPUs; here, both run on either.
            let other = if common::texels(device) == "1" { "0" } else { "1" };
            let other = matrix.times(&On::reading(device, format, 2, other), &x, 0, &[], &[]);
            assert_same(&format!("{} in buffers and in textures", format.axis), &other, &together);
            // Columns without company, to the last bit.
            let single = On::new(device, format, 1);
            for column in [0, 5, 10] {
                let alone = matrix.times(&single, &x[column * 512..][..512], 0, &[], &[]);
                let what = format!("{}, column {column} alone", format.axis);
                assert_same(&what, &alone, &together[column * 141..][..141]);
            }
        }
    }
}

#[test]
fn many_columns_are_as_few_to_the_last_bit() {
    // More groups than slices, in superblocks of eight; rows and columns of more than a tile and less than two.
    let (num_rows, num_columns, columns) = (85, 1280, 39);
    let x = common::floats(5, columns * num_columns);
    for &format in Format::all() {
        let matrix = Matrix::random(format, num_rows, num_columns);
        let want = twins::matmul(format, num_rows, num_columns / GROUP, &matrix.planes, &x);
        // Where threads share what they read, sums are made in another order, and steps take no tiles.
        for device in devices().iter().filter(|device| common::share(device) == "0") {
            let few = matrix.times(&On::new(device, format, 8), &x, 0, &[], &[]);
            for texels in ["0", "1"] {
                let many = matrix.times(&On::tile(device, format, texels), &x, 0, &[], &[]);
                assert_close(&format!("{} in tiles", format.axis), &many, &want, 1e-9);
                assert_same(&format!("{} in tiles and in eights", format.axis), &many, &few);
            }
        }
    }
}

#[test]
fn cooperative_matrices_come_near() {
    let Some(device) = common::cooperative() else { return };
    let (num_rows, num_columns, columns) = (141, 512, 70);
    // Columns of very different sizes, two of which halves could not hold.
    let mut x = common::floats(5, columns * num_columns);
    for (column, power) in [(3, 1e6_f32), (4, 1e-6), (69, 1e5)] {
        x[column * num_columns..][..num_columns].iter_mut().for_each(|value| *value *= power);
    }
    for &format in Format::all() {
        let matrix = Matrix::random(format, num_rows, num_columns);
        let want = twins::matmul(format, num_rows, num_columns / GROUP, &matrix.planes, &x);
        let got = by_cooperative_matrices(&device, format, &matrix, &x);
        for column in 0..columns {
            let part = column * num_rows..(column + 1) * num_rows;
            let what = format!("{}, column {column}", format.axis);
            assert_close(&what, &got[part.clone()], &want[part], 1e-6);
        }
        let alone = by_cooperative_matrices(&device, format, &matrix, &x[69 * num_columns..]);
        assert_same(&format!("{}, a column alone", format.axis), &alone, &got[69 * num_rows..]);
    }
}

#[test]
fn rows_become_halves_and_a_power() {
    let mut rows = [common::floats(6, 300), vec![0.0; 300], common::floats(7, 300), common::floats(8, 300)];
    rows[2].iter_mut().for_each(|value| *value *= 3e7);
    rows[3].iter_mut().for_each(|value| *value *= 2e-9);
    rows[3][7] = -1024.0;
    let x: Vec<f32> = rows.concat();
    for device in devices() {
        let kernel = Kernel::new(device, &Text::new("halve", &[])).expect("a variant compiles");
        let contents = [
            ("params", Content::of(&[75_u32, 0, 0, 0])),
            ("x", Content::of(&x)),
            ("halves", Content::poisoned(4 * 150)),
            ("powers", Content::poisoned(4)),
        ];
        let written = run(device, &kernel, &contents, [4, 1, 1]).expect("a kernel runs");
        let halves: Vec<u16> = bytemuck::pod_collect_to_vec(&written.words("halves"));
        let halves: Vec<half::f16> = halves.into_iter().map(half::f16::from_bits).collect();
        for (idx, row) in rows.iter().enumerate() {
            let want = twins::halve(row);
            assert_eq!(written.floats("powers")[idx], want.power, "row {idx}");
            // Devices round a half to either neighbour.
            let near = |(got, want): (&half::f16, &half::f16)| {
                (got.to_f32() - want.to_f32()).abs() <= want.to_f32().abs() / 1000.0 + 6e-8
            };
            let got = &halves[idx * 300..][..300];
            assert!(got.iter().zip(&want.halves).all(near), "row {idx}: {got:?}");
        }
        assert_eq!(written.floats("powers")[1], 1.0);
        assert_eq!(written.floats("powers")[3], 1.0);
    }
}

#[test]
fn shapes_that_end_in_the_middle_of_everything() {
    for kind in [quern_gguf::TensorType::Q5_0, quern_gguf::TensorType::F32] {
        let format = Format::of(kind).expect("the type is known");
        for (num_rows, num_columns, columns) in [(1, 32, 1), (7, 96, 3), (8, 32, 2), (129, 864, 5)] {
            let matrix = Matrix::random(format, num_rows, num_columns);
            let x = common::floats(6, columns * num_columns);
            let want = twins::matmul(format, num_rows, num_columns / GROUP, &matrix.planes, &x);
            for device in devices() {
                let got = matrix.times(&On::new(device, format, 4), &x, 0, &[], &[]);
                let what = format!("{num_rows} x {num_columns} x {columns}");
                assert_close(&what, &got, &want, 1e-9);
                let got = matrix.times(&On::tile(device, format, "0"), &x, 0, &[], &[]);
                assert_close(&format!("{what} in a tile"), &got, &want, 1e-9);
            }
        }
    }
}

#[test]
fn a_bias_and_what_was_there_are_added() {
    let format = Format::of(quern_gguf::TensorType::Q8_0).expect("the type is known");
    let matrix = Matrix::random(format, 20, 64);
    let (x, bias, before) = (common::floats(7, 2 * 64), common::floats(8, 20), common::floats(9, 2 * 23));
    let product = twins::matmul(format, 20, 2, &matrix.planes, &x);
    for device in devices() {
        let (on, tile) = (On::new(device, format, 2), On::tile(device, format, "0"));
        for flags in 0..4 {
            let want: Vec<f32> = (0..40)
                .map(|idx| {
                    let bias = if flags & 1 == 1 { bias[idx % 20] } else { 0.0 };
                    let before = if flags & 2 == 2 { before[idx / 20 * 23 + 1 + idx % 20] } else { 0.0 };
                    product[idx] + bias + before
                })
                .collect();
            for on in [&on, &tile] {
                let got = matrix.times(on, &x, flags, &bias, &before);
                assert_close(&format!("flags {flags}"), &got, &want, 1e-9);
            }
        }
    }
}

#[test]
fn every_type_is_embedded_from_parts() {
    for &format in Format::all() {
        let matrix = Matrix::random(format, 24, 512);
        let num_groups = 512 / GROUP;
        // Tokens 8 to 23 lie in this part; the others' rows stay as they are.
        let (tokens, first) = ([23u32, 8, 7, 24, 12], 8);
        let part = |token: &u32| (first..24).contains(token).then_some(*token);
        let words = format.panel_words(num_groups);
        let mut planes = matrix.planes.clone();
        for (plane, words) in
            [&mut planes.quants, &mut planes.highs, &mut planes.scales].into_iter().zip(words)
        {
            plane.drain(..words);
        }
        let part_of = Matrix { planes, num_rows: 16, ..matrix };
        let rows: Vec<u32> = tokens.iter().flat_map(|token| [*token, u32::MAX, u32::MAX, u32::MAX]).collect();
        let params = [num_groups as u32, first, 16, 1, 4, 0, 0, 0];
        for device in devices() {
            let texels = common::texels(device);
            let axes = [("QUANT", format.axis), ("TEXELS", texels)];
            let kernel = Kernel::new(device, &Text::new("embed", &axes)).expect("a variant compiles");
            let contents = [
                ("params", Content::of(&params)),
                ("step_info", Content::of(&[[7].as_slice(), &rows].concat())),
                ("out", Content::poisoned(tokens.len() * 512)),
            ];
            let contents: Vec<_> = contents.into_iter().chain(part_of.planes(texels)).collect();
            let out = run(device, &kernel, &contents, [tokens.len() as u32, 1, 1])
                .expect("a kernel runs")
                .floats("out");
            for (row, token) in out.chunks(512).zip(&tokens) {
                match part(token) {
                    None => {
                        assert!(row.iter().all(|value| value.is_nan()), "token {token} is not of this part")
                    }
                    Some(token) => {
                        let want = twins::embed(format, num_groups, &part_of.planes, &[token - first]);
                        assert_close(format.axis, row, &want, 1e-14);
                    }
                }
            }
        }
    }
}
