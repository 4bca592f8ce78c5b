//! The confusion matrix as files: an SVG to look at and a CSV to compute with.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;

use super::scores::Confusion;

/// Sides and gaps, in pixels.
const CELL: usize = 22;
const CHAR: usize = 7;
const MARGIN: usize = 12;
const TITLE: usize = 44;

/// Writes the matrix; a file whose name ends in `.csv` gets counts, any other the picture.
///
/// # Errors
/// The system's.
pub fn write(path: &Path, confusion: &Confusion, title: &str) -> io::Result<()> {
    let is_csv = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("csv"));
    if is_csv { write_csv(path, confusion) } else { fs::write(path, svg(confusion, title)) }
}

fn write_csv(path: &Path, confusion: &Confusion) -> io::Result<()> {
    let mut writer = csv::Writer::from_path(path)?;
    writer.write_record(["label"].into_iter().chain(confusion.labels.iter().map(String::as_str)))?;
    for (label, counts) in confusion.labels.iter().zip(&confusion.counts) {
        writer.write_record([label.clone()].into_iter().chain(counts.iter().map(u32::to_string)))?;
    }
    writer.flush()
}

/// A row for each true label and a column for each predicted one; the darker, the larger
/// the part of its row. What is right is blue, what is wrong orange, and both are numbers.
#[must_use]
pub fn svg(confusion: &Confusion, title: &str) -> String {
    let num = confusion.labels.len();
    let longest = confusion.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
    let names = longest * CHAR + 8;
    let (left, top) = (MARGIN + names, TITLE + names);
    let side = num * CELL;
    let width = (left + side + MARGIN).max(MARGIN * 2 + title.chars().count() * CHAR);
    let height = top + side + MARGIN;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"11\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"20\" font-size=\"13\">{}</text>\n\
         <text x=\"{MARGIN}\" y=\"36\" fill=\"#666\">rows: true label; columns: predicted label</text>\n",
        escaped(title)
    );
    for (idx, label) in confusion.labels.iter().enumerate() {
        let (middle, label) = (idx * CELL + CELL / 2, escaped(label));
        let (x, y) = (left - 6, top + middle + 4);
        let _ = writeln!(out, "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{label}</text>");
        let (x, y) = (left + middle + 4, top - 6);
        let _ = writeln!(out, "<text transform=\"translate({x} {y}) rotate(-90)\">{label}</text>");
    }
    let _ = writeln!(
        out,
        "<rect x=\"{left}\" y=\"{top}\" width=\"{side}\" height=\"{side}\" fill=\"none\" stroke=\"#ccc\"/>"
    );
    for (row, counts) in confusion.counts.iter().enumerate() {
        let all: u32 = counts.iter().sum();
        for (column, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let colour = if row == column { "#1f6fb4" } else { "#d9661f" };
            out.push_str(&cell(left + column * CELL, top + row * CELL, count, all, colour));
        }
    }
    out.push_str("</svg>\n");
    out
}

fn cell(x: usize, y: usize, count: u32, all: u32, colour: &str) -> String {
    let share = f64::from(count) / f64::from(all.max(1));
    // A single mistake among many must still be seen.
    let opacity = 0.12 + 0.88 * share;
    let ink = if opacity > 0.6 { "white" } else { "black" };
    let (middle, base) = (x + CELL / 2, y + CELL / 2 + 4);
    format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{colour}\" \
         fill-opacity=\"{opacity:.2}\"/><text x=\"{middle}\" y=\"{base}\" text-anchor=\"middle\" \
         fill=\"{ink}\">{count}</text>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confusion() -> Confusion {
        let labels = ["yes & no".to_owned(), "a<b".to_owned()];
        Confusion::of(&labels, &[0, 0, 1, 1, 1], &[0, 0, 1, 1, 0])
    }

    #[test]
    fn the_picture_shows_every_pair_that_occurs() {
        let svg = svg(&confusion(), "80 % > 70 %");
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for text in [">yes &amp; no<", ">a&lt;b<", ">80 % &gt; 70 %<", ">2<", ">1<"] {
            assert!(svg.contains(text), "{text} is not in {svg}");
        }
        assert_eq!(svg.matches("fill-opacity").count(), 3, "pairs that never occur stay white");
        assert_eq!(svg.matches("#d9661f").count(), 1);
    }

    #[test]
    fn the_table_has_a_row_and_a_column_for_each_label() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("confusion.csv");
        write(&path, &confusion(), "").expect("it can be written");
        let text = fs::read_to_string(&path).expect("it was written");
        assert_eq!(text, "label,yes & no,a<b\nyes & no,2,0\na<b,1,2\n");
    }
}
