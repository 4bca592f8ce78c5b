//! Lines over time, in panels one above the other.

use std::path::Path;

use plotters::prelude::*;

/// Told apart by people who do not see all colours too.
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

const PANEL_SIZE: (u32, u32) = (820, 220);
const TITLE_HEIGHT: u32 = 28;

/// A name and points: seconds, and whatever the panel shows.
pub(crate) type Line = (String, Vec<(f64, f64)>);

/// Lines that share an axis.
pub(crate) struct Panel {
    pub(crate) title: &'static str,
    pub(crate) lines: Vec<Line>,
}

/// Draws the panels.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn draw(path: &Path, title: &str, panels: &[Panel]) -> anyhow::Result<()> {
    let size = (PANEL_SIZE.0, PANEL_SIZE.1 * panels.len() as u32 + TITLE_HEIGHT);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(TITLE_HEIGHT);
    head.draw(&Text::new(title.to_owned(), (12, 8), ("sans-serif", 13)))?;
    let points = || panels.iter().flat_map(|panel| &panel.lines).flat_map(|(_, points)| points);
    let end_s = points().map(|point| point.0).fold(1.0, f64::max);
    for (area, panel) in body.split_evenly((panels.len(), 1)).iter().zip(panels) {
        let values = panel.lines.iter().flat_map(|(_, points)| points).map(|point| point.1);
        let top = values.fold(0.0, f64::max).max(1e-9) * 1.1;
        let mut chart = ChartBuilder::on(area)
            .caption(panel.title, ("sans-serif", 14))
            .margin(8)
            .x_label_area_size(34)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..end_s, 0.0..top)?;
        chart.configure_mesh().light_line_style(WHITE).y_labels(5).x_desc("seconds").draw()?;
        for ((name, points), colour) in panel.lines.iter().zip(COLOURS.into_iter().cycle()) {
            chart
                .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
                .label(name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 14, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .label_font(("sans-serif", 12))
            .draw()?;
    }
    root.present()?;
    Ok(())
}
