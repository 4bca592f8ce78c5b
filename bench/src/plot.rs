//! The plot of a run: throughput, time to first token and longest gap over the levels, a colour a server.

use std::path::Path;

use plotters::prelude::*;

use crate::stats::{FIGURES, Figure, PhaseSummary, Spread, levels, rounds, servers};

/// The figures that are drawn, one panel each.
const PANELS: [&str; 3] = ["tok/s", "TTFT p95 ms", "longest gap p50 ms"];
/// The same where the workload has an objective: what it counts comes first.
const PANELS_WITH_OBJECTIVE: [&str; 3] = ["goodput requests/s", "kept the objective %", "TTFT p95 ms"];
/// Tells servers apart, for people who do not see all colours too.
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];
const PANEL_SIZE: (u32, u32) = (420, 320);

/// Draws the plot. Nothing is drawn if no phase has a figure.
///
/// # Errors
/// When the file cannot be written.
pub fn draw(path: &Path, title: &str, phases: &[PhaseSummary]) -> anyhow::Result<()> {
    let size = (PANEL_SIZE.0 * PANELS.len() as u32, PANEL_SIZE.1 + 30);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let root = root.titled(title, ("sans-serif", 18))?;
    let has_objective = phases.iter().any(|phase| phase.objective.is_some());
    let panels = if has_objective { PANELS_WITH_OBJECTIVE } else { PANELS };
    for (panel, name) in root.split_evenly((1, panels.len())).iter().zip(panels) {
        let figure =
            FIGURES.iter().find(|figure| figure.name == name).expect("panels are named after figures");
        draw_panel(panel, figure, phases)?;
    }
    root.present()?;
    Ok(())
}

/// One server's line: medians over the rounds, and every round as a point.
struct Series<'a> {
    server: &'a str,
    medians: Vec<(f64, f64)>,
    points: Vec<(f64, f64)>,
}

fn series_of<'a>(figure: &Figure, phases: &'a [PhaseSummary]) -> Vec<Series<'a>> {
    let levels = levels(phases);
    let of_server = |server: &&'a str| {
        let mut series = Series { server, medians: Vec::new(), points: Vec::new() };
        for level in &levels {
            let values = || rounds(phases, server, level).filter_map(|phase| phase.figure(figure));
            let Some(x) = rounds(phases, server, level).next().map(|phase| phase.level_value) else {
                continue;
            };
            series.points.extend(values().map(|y| (x, y)));
            series.medians.extend(Spread::of(values()).map(|spread| (x, spread.median)));
        }
        series
    };
    servers(phases).iter().map(of_server).collect()
}

fn whole_if_whole(level: &f64) -> String {
    if level.fract() == 0.0 { format!("{level:.0}") } else { format!("{level:.1}") }
}

fn draw_panel<B: DrawingBackend>(
    area: &DrawingArea<B, plotters::coord::Shift>,
    figure: &Figure,
    phases: &[PhaseSummary],
) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let all = series_of(figure, phases);
    let points = || all.iter().flat_map(|series| series.points.iter().copied());
    let Some(x_range) = Spread::of(points().map(|(x, _)| x)) else { return Ok(()) };
    let top = points().map(|(_, y)| y).fold(f64::MIN_POSITIVE, f64::max) * 1.15;
    let margin = ((x_range.max - x_range.min) * 0.08).max(0.5);
    let mut chart = ChartBuilder::on(area)
        .caption(figure.name, ("sans-serif", 15))
        .margin(8)
        .x_label_area_size(32)
        .y_label_area_size(56)
        .build_cartesian_2d(x_range.min - margin..x_range.max + margin, 0.0..top)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_desc("level")
        .x_labels(6)
        .y_labels(6)
        .x_label_formatter(&whole_if_whole)
        .draw()?;
    for (series, colour) in all.iter().zip(COLOURS.iter().cycle()) {
        let colour = *colour;
        chart
            .draw_series(LineSeries::new(series.medians.iter().copied(), colour.stroke_width(2)))?
            .label(series.server)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], colour.stroke_width(2)));
        chart.draw_series(
            series.points.iter().map(|point| Circle::new(*point, 3, colour.mix(0.5).filled())),
        )?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    Ok(())
}
