//! Repacked weights keep their values: planes against what the files' own decoders say.

mod common;

use quern_adapters::{Codec, Plain};
use quern_gguf::TensorType;
use quern_shaders::twins::Group;
use quern_shaders::weights::format::GROUP;
use quern_shaders::weights::{Format, Planes, repack, widen_q5_0};

#[test]
fn every_type_keeps_its_values() {
    for &format in Format::all() {
        // The last panel is not full.
        let (num_rows, num_columns) = (11, 512);
        let rows = common::rows(format.kind, 5, num_rows, num_columns);
        let mut planes = Planes::default();
        repack(format, num_columns, &rows, &mut planes);
        let mut want = vec![0.0; num_rows * num_columns];
        Plain.decode(format.kind, &rows, &mut want).expect("the type can be decoded");
        for row in 0..num_rows {
            for group in 0..num_columns / GROUP {
                let got = Group::read(format, num_columns / GROUP, &planes, row, group).values();
                let want = &want[row * num_columns + group * GROUP..][..GROUP];
                // ggml rounds as often and in the same order, so that values are the same to the last bit.
                assert_eq!(got.as_slice(), want, "{} row {row} group {group}", format.kind);
            }
        }
    }
}

#[test]
fn planes_take_about_the_room_of_the_file() {
    for &format in Format::all() {
        let rows = common::rows(format.kind, 5, 64, 512);
        let mut planes = Planes::default();
        repack(format, 512, &rows, &mut planes);
        let words = planes.quants.len() + planes.highs.len() + planes.scales.len();
        let words_expected: usize = format.panel_words(512 / GROUP).iter().map(|words| words * 8).sum();
        assert_eq!(words, words_expected);
        assert!(words * 4 >= rows.len() && words * 4 <= rows.len() * 103 / 100, "{}", format.kind);
    }
}

#[test]
fn widening_changes_no_value() {
    let rows = common::rows(TensorType::Q5_0, 6, 3, 64);
    let (mut narrow, mut wide) = (vec![0.0; 3 * 64], vec![0.0; 3 * 64]);
    Plain.decode(TensorType::Q5_0, &rows, &mut narrow).expect("the type can be decoded");
    Plain.decode(TensorType::Q8_0, &widen_q5_0(&rows), &mut wide).expect("the type can be decoded");
    assert_eq!(wide, narrow);
}
