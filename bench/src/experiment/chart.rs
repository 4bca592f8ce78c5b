//! An experiment's plot: panels side by side, each with its own kind of picture. A setting has one colour in all.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::sheet::Sheet;
use crate::output::number;
use crate::plot::COLOURS;

/// Panels in a row of the plot.
const PANELS_A_ROW: usize = 3;
const PANEL_WIDTH: u32 = 440;
const PANEL_HEIGHT: u32 = 330;
/// Bars in a panel from which on it is made taller.
const BARS_OF_A_PANEL: usize = 8;
const TITLE_HEIGHT: u32 = 30;
/// From this ratio of values on, bars are drawn by their logarithm.
const LARGEST_OVER_SMALLEST: f64 = 100.0;

/// One picture.
#[derive(Debug, Clone)]
pub enum Panel {
    /// A figure over the levels, a line a setting; levels stand at equal distances.
    Lines(&'static str),
    /// A bar a setting, at one level.
    Bars(&'static str, f64),
    /// A point a setting: one figure to the right, another upwards.
    Points(&'static str, &'static str),
    /// When things began and ended, one line each.
    Spans(String, Vec<Span>),
    /// Two bars a name, for what the two texts say.
    Pairs(String, [&'static str; 2], Vec<Pair>),
}

/// Two values under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Pair {
    /// Stands above its bars.
    pub name: String,
    /// From 0 up; drawn in a colour each.
    pub values: [f64; 2],
}

/// Something that took its time: it came, waited, was worked on, and ended. In seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Span {
    /// When it came.
    pub came: f64,
    /// When work on it showed.
    pub began: f64,
    /// When it ended.
    pub ended: f64,
    /// Which of two kinds it is of; drawn in a colour each.
    pub is_long: bool,
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws the panels that have something to show. Nothing is written if none has.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, title: &str, sheet: &Sheet, panels: &[Panel]) -> anyhow::Result<bool> {
    let panels: Vec<&Panel> = panels.iter().filter(|panel| has_something(panel, sheet)).collect();
    if panels.is_empty() {
        return Ok(false);
    }
    let (num_columns, num_rows) = (panels.len().min(PANELS_A_ROW), panels.len().div_ceil(PANELS_A_ROW));
    let height = if sheet.settings().len() > BARS_OF_A_PANEL { PANEL_HEIGHT * 2 } else { PANEL_HEIGHT };
    let size = (PANEL_WIDTH * num_columns as u32, height * num_rows as u32 + TITLE_HEIGHT);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    for (area, panel) in root.split_evenly((num_rows, num_columns)).iter().zip(panels) {
        match panel {
            Panel::Lines(id) => draw_lines(area, sheet, id)?,
            Panel::Bars(id, level) => draw_bars(area, sheet, id, *level)?,
            Panel::Points(right, up) => draw_points(area, sheet, right, up)?,
            Panel::Spans(name, spans) => draw_spans(area, name, spans)?,
            Panel::Pairs(name, of, pairs) => draw_pairs(area, name, *of, pairs)?,
        }
    }
    root.present()?;
    Ok(true)
}

fn has_something(panel: &Panel, sheet: &Sheet) -> bool {
    match panel {
        Panel::Lines(id) => sheet.has_values(id),
        Panel::Bars(id, level) => {
            sheet.settings().iter().any(|setting| sheet.spread(setting, *level, id).is_some())
        }
        Panel::Points(right, up) => sheet.has_values(right) && sheet.has_values(up),
        Panel::Spans(_, spans) => !spans.is_empty(),
        Panel::Pairs(_, _, pairs) => !pairs.is_empty(),
    }
}

fn draw_lines(area: &Area<'_>, sheet: &Sheet, id: &str) -> anyhow::Result<()> {
    let levels = sheet.levels_of(id);
    let place = |level: f64| levels.iter().position(|other| other.total_cmp(&level).is_eq());
    // The legend stands above the lines.
    let top = sheet.largest(id) * (1.15 + 0.1 * sheet.settings().len() as f64);
    let mut chart = ChartBuilder::on(area)
        .caption(sheet.column(id).label, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.4..levels.len() as f64 - 0.6, 0.0..top)?;
    let label = |place: &f64| match levels.get(place.round().max(0.0) as usize) {
        Some(level) if (place - place.round()).abs() < 1e-6 => level.to_string(),
        _ => String::new(),
    };
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc(sheet.level.map_or("", |(_, label)| label))
        .x_labels(levels.len() * 2 + 1)
        .y_labels(6)
        .x_label_formatter(&label)
        .draw()?;
    for (setting, colour) in sheet.settings().iter().zip(COLOURS.iter().cycle()) {
        if levels.iter().all(|level| sheet.spread(setting, *level, id).is_none()) {
            continue;
        }
        let colour = *colour;
        let at = |level: &f64| Some((place(*level)? as f64, sheet.spread(setting, *level, id)?));
        let medians = levels.iter().filter_map(at).map(|(x, spread)| (x, spread.median));
        chart
            .draw_series(LineSeries::new(medians, colour.stroke_width(2)))?
            .label(*setting)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], colour.stroke_width(2)));
        let rounds = levels.iter().filter_map(|level| Some((place(*level)? as f64, *level)));
        let points = rounds.flat_map(|(x, level)| sheet.values(setting, level, id).map(move |(_, y)| (x, y)));
        chart.draw_series(points.map(|point| Circle::new(point, 3, colour.mix(0.5).filled())))?;
    }
    let legend = SeriesLabelPosition::UpperLeft;
    chart.configure_series_labels().position(legend).background_style(WHITE.mix(0.8)).draw()?;
    Ok(())
}

/// Bars lie, so that a setting's whole name fits above its own; the value stands behind the name. Values of which the
/// largest is far above the smallest are drawn by their logarithm, without a scale.
fn draw_bars(area: &Area<'_>, sheet: &Sheet, id: &str, level: f64) -> anyhow::Result<()> {
    let spread = |setting: &&str| sheet.spread(setting, level, id);
    let all = sheet.settings();
    let settings: Vec<&str> = all.iter().copied().filter(|setting| spread(setting).is_some()).collect();
    let spreads: Vec<_> = settings.iter().filter_map(spread).collect();
    let least = spreads.iter().map(|spread| spread.min).fold(f64::MAX, f64::min);
    let most = spreads.iter().map(|spread| spread.max).fold(f64::MIN_POSITIVE, f64::max);
    let is_log = least > 0.0 && most > least * LARGEST_OVER_SMALLEST;
    // The smallest still has a bar that can be seen.
    let length = |value: f64| if is_log { (value / least).log10() + 0.2 } else { value };
    let label = sheet.column(id).label;
    let caption = if is_log { format!("{label} (logarithmic)") } else { label.to_owned() };
    let top = length(most) * 1.05;
    let mut chart = ChartBuilder::on(area)
        .caption(caption, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(if is_log { 4 } else { 24 })
        .y_label_area_size(6)
        .build_cartesian_2d(0.0..top, 0.0..settings.len() as f64)?;
    let num_labels = if is_log { 0 } else { 5 };
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().light_line_style(WHITE).x_labels(num_labels).draw()?;
    for (idx, (setting, spread)) in settings.iter().zip(&spreads).enumerate() {
        // The first setting stands at the top.
        let base = (settings.len() - 1 - idx) as f64;
        let colour = COLOURS[all.iter().position(|other| other == setting).unwrap_or(0) % COLOURS.len()];
        let bar = [(0.0, base + 0.1), (length(spread.median), base + 0.5)];
        chart.draw_series([Rectangle::new(bar, colour.mix(0.75).filled())])?;
        let ends = [(length(spread.min), base + 0.3), (length(spread.max), base + 0.3)];
        chart.draw_series([PathElement::new(ends, BLACK)])?;
        let text = format!("{setting}: {}", number(spread.median));
        let style = ("sans-serif", 13).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Bottom));
        chart.draw_series([Text::new(text, (top * 0.01, base + 0.54), style)])?;
    }
    Ok(())
}

fn draw_points(area: &Area<'_>, sheet: &Sheet, right: &str, up: &str) -> anyhow::Result<()> {
    let mut points = Vec::new();
    for (setting, colour) in sheet.settings().into_iter().zip(COLOURS.into_iter().cycle()) {
        for level in sheet.levels() {
            let both = sheet.spread(setting, level, right).zip(sheet.spread(setting, level, up));
            let name = if sheet.level.is_some() { format!("{setting} {level}") } else { setting.into() };
            points.extend(both.map(|(x, y)| (name, x.median, y.median, colour)));
        }
    }
    let (x_range, y_range) = (around(points.iter().map(|p| p.1)), around(points.iter().map(|p| p.2)));
    let (x_label, y_label) = (sheet.column(right).label, sheet.column(up).label);
    let mut chart = ChartBuilder::on(area)
        .caption(format!("{y_label} by {x_label}"), ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(x_range.clone(), y_range)?;
    chart.configure_mesh().light_line_style(WHITE).x_desc(x_label).x_labels(5).y_labels(6).draw()?;
    let middle = f64::midpoint(x_range.start, x_range.end);
    // From the lowest up, so that a name that makes way does so upwards.
    points.sort_by(|a, b| a.2.total_cmp(&b.2));
    let mut names = Names::default();
    for (name, x, y, colour) in points {
        chart.draw_series([Circle::new((x, y), 4, colour.filled())])?;
        // Names point inwards, or they would leave the panel.
        let (side, shift) = if x < middle { (HPos::Left, 12) } else { (HPos::Right, -12) };
        let up = names.place(chart.plotting_area().map_coordinate(&(x, y)), shift, &name);
        let style = ("sans-serif", 12).into_text_style(area).pos(Pos::new(side, VPos::Center));
        let line = PathElement::new(vec![(0, 0), (shift - shift.signum() * 2, -up)], colour);
        chart.draw_series([EmptyElement::at((x, y)) + Text::new(name, (shift, -up), style) + line])?;
    }
    Ok(())
}

/// Where names of points stand already, in pixels: left, right, and the middle's height.
#[derive(Default)]
struct Names(Vec<(i32, i32, i32)>);

impl Names {
    /// A line of text, and a letter of it, a little more than they are.
    const HEIGHT: i32 = 13;
    const LETTER: i32 = 7;

    /// Takes a place beside a point for its name, and tells how far above the point it is.
    fn place(&mut self, (x, y): (i32, i32), shift: i32, name: &str) -> i32 {
        let width = name.chars().count() as i32 * Self::LETTER * shift.signum();
        let (left, right) = ((x + shift).min(x + shift + width), (x + shift).max(x + shift + width));
        let mut at = y;
        let is_in_the_way = |other: &&(i32, i32, i32), at: i32| {
            other.0 < right && left < other.1 && (other.2 - at).abs() < Self::HEIGHT
        };
        while let Some(other) = self.0.iter().find(|other| is_in_the_way(other, at)) {
            at = other.2 - Self::HEIGHT;
        }
        self.0.push((left, right, at));
        y - at
    }
}

/// A range with a margin around values, never empty.
fn around(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (min, max) = values.fold((f64::MAX, f64::MIN), |(min, max), v| (min.min(v), max.max(v)));
    let margin = ((max - min) * 0.12).max(max.abs() * 0.02).max(1e-6);
    min - margin..max + margin
}

fn draw_spans(area: &Area<'_>, name: &str, spans: &[Span]) -> anyhow::Result<()> {
    let end = spans.iter().map(|span| span.ended).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(8)
        .build_cartesian_2d(0.0..end * 1.02, 0.0..spans.len() as f64 + 1.0)?;
    let x_desc = "seconds; grey: waits, blue: short, orange: long";
    chart.configure_mesh().disable_y_mesh().disable_y_axis().light_line_style(WHITE).x_desc(x_desc).draw()?;
    for (idx, span) in spans.iter().enumerate() {
        let base = (spans.len() - idx) as f64;
        let colour = COLOURS[usize::from(span.is_long)];
        let parts = [(span.came, span.began, RGBColor(170, 170, 170)), (span.began, span.ended, colour)];
        chart.draw_series(parts.map(|(from, to, colour)| {
            Rectangle::new([(from, base - 0.4), (to, base + 0.4)], colour.filled())
        }))?;
    }
    Ok(())
}

fn draw_pairs(area: &Area<'_>, name: &str, of: [&str; 2], pairs: &[Pair]) -> anyhow::Result<()> {
    let most = pairs.iter().flat_map(|pair| pair.values).fold(f64::MIN_POSITIVE, f64::max);
    let mut chart = ChartBuilder::on(area)
        .caption(name, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(36)
        .y_label_area_size(6)
        .build_cartesian_2d(0.0..most * 1.05, 0.0..pairs.len() as f64)?;
    let x_desc = format!("blue: {}, orange: {}", of[0], of[1]);
    let mut mesh = chart.configure_mesh();
    mesh.disable_y_mesh().disable_y_axis().light_line_style(WHITE).x_labels(5).x_desc(x_desc).draw()?;
    for (idx, pair) in pairs.iter().enumerate() {
        // The first pair stands at the top.
        let base = (pairs.len() - 1 - idx) as f64;
        let bars = [(0.29, 0.52), (0.05, 0.28)].into_iter().zip(pair.values).zip(COLOURS);
        chart.draw_series(bars.map(|(((from, to), value), colour)| {
            Rectangle::new([(0.0, base + from), (value, base + to)], colour.mix(0.75).filled())
        }))?;
        let [first, second] = pair.values.map(number);
        let style = ("sans-serif", 11).into_text_style(area).pos(Pos::new(HPos::Left, VPos::Bottom));
        let text = format!("{}: {first}, {second}", pair.name);
        chart.draw_series([Text::new(text, (most * 0.01, base + 0.55), style)])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::experiment::sheet::tests::sample;

    #[test]
    fn names_of_points_make_way_upwards() {
        let mut names = Names::default();
        assert_eq!(names.place((100, 200), 12, "first"), 0);
        assert_eq!(names.place((101, 198), 12, "second"), 11);
        assert_eq!(names.place((101, 190), 12, "third"), 16);
        // Beside them, and far above.
        assert_eq!(names.place((100, 200), -12, "other side"), 0);
        assert_eq!(names.place((100, 100), 12, "above"), 0);
    }

    fn drawn(panels: &[Panel]) -> Option<String> {
        drawn_of(&sample(), panels)
    }

    fn drawn_of(sheet: &Sheet, panels: &[Panel]) -> Option<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let is_drawn = draw(&path, "A title", sheet, panels).unwrap();
        is_drawn.then(|| std::fs::read_to_string(path).unwrap())
    }

    #[test]
    fn every_kind_of_panel_names_what_it_shows() {
        let span = Span { came: 0.0, began: 1.0, ended: 3.0, is_long: true };
        let svg = drawn(&[
            Panel::Lines("decode_tok_per_s"),
            Panel::Bars("decode_tok_per_s", 64.0),
            Panel::Points("decode_tok_per_s", "decode_tok_per_s"),
            Panel::Spans("static".to_owned(), vec![span]),
            Panel::Pairs(
                "shares".to_owned(),
                ["prefill", "decode"],
                vec![Pair { name: "ROPE".to_owned(), values: [12.0, 0.0] }],
            ),
        ]);
        let svg = svg.unwrap();
        for text in [
            "A title",
            "decode tok/s",
            "length, tokens",
            "q8_0",
            "f16: 75",
            "f16 256",
            "static",
            "shares",
            "ROPE: 12",
        ] {
            assert!(svg.contains(text), "{text} is missing");
        }
    }

    #[test]
    fn values_far_apart_are_drawn_by_their_logarithm() {
        let mut sheet = sample();
        assert!(!drawn_of(&sheet, &[Panel::Bars("decode_tok_per_s", 64.0)]).unwrap().contains("logarithmic"));
        sheet.add("large", 64.0, 0, [("decode_tok_per_s", Some(1e6))]);
        assert!(drawn_of(&sheet, &[Panel::Bars("decode_tok_per_s", 64.0)]).unwrap().contains("logarithmic"));
    }

    #[test]
    fn panels_without_values_are_left_out() {
        assert_eq!(
            drawn(&[
                Panel::Lines("file_mib"),
                Panel::Spans(String::new(), Vec::new()),
                Panel::Pairs(String::new(), [""; 2], Vec::new()),
            ]),
            None
        );
    }

    #[test]
    fn a_single_value_has_a_range_around_it() {
        let range = around([5.0].into_iter());
        assert!(range.start < 5.0 && range.end > 5.0);
    }
}
