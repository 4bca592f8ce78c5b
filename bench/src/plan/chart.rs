//! Throughput against cost: a line for each way to do it, a point for each number of machines.

use std::path::Path;

use plotters::prelude::*;

use super::{PlanArgs, Way};
use crate::plot::COLOURS;

const SIZE: (u32, u32) = (760, 440);
/// Points of a line; of more machines only so many are drawn.
const MAX_POINTS: u32 = 40;
/// How far beyond the wanted rate the picture goes.
const BEYOND: f64 = 1.5;

/// Draws the ways' curves, the wanted rate, and a ring around what each way needs for it.
///
/// # Errors
/// When the file cannot be written.
pub(super) fn draw(path: &Path, args: &PlanArgs, ways: &[Way]) -> anyhow::Result<()> {
    let root = SVGBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let lines: Vec<Vec<(f64, f64)>> = ways.iter().map(|way| points_of(way, args.rate * BEYOND)).collect();
    let all = || lines.iter().flatten();
    let right = all().map(|(usd, _)| *usd).fold(0.0, f64::max) * 1.05;
    let top = all().map(|(_, carried)| *carried).fold(args.rate * BEYOND, f64::max) * 1.05;
    let title = format!("{} a second within {} ms (p95), by cost", args.what.words(), args.target_p95_ms);
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 17))
        .margin(10)
        .x_label_area_size(40)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..right, 0.0..top)?;
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(WHITE).x_desc("USD a month").y_desc("carried, a second").x_labels(8).draw()?;
    for ((way, points), colour) in ways.iter().zip(&lines).zip(COLOURS.into_iter().cycle()) {
        chart
            .draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?
            .label(format!("{} × {}, {}", way.count, way.machine, way.setting))
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], colour.stroke_width(2)));
        chart.draw_series(points.iter().map(|point| Circle::new(*point, 3, colour.filled())))?;
        let needed = (way.usd_per_month, carried(way, way.needed));
        chart.draw_series([Circle::new(needed, 8, colour.stroke_width(2))])?;
    }
    let wanted = [(0.0, args.rate), (right, args.rate)];
    chart
        .draw_series(DashedLineSeries::new(wanted, 6, 4, BLACK.stroke_width(1)))?
        .label("wanted")
        .legend(|(x, y)| PathElement::new(vec![(x, y), (x + 14, y)], BLACK));
    let legend = SeriesLabelPosition::LowerRight;
    chart
        .configure_series_labels()
        .position(legend)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

/// What so many machines carry with the headroom kept free.
fn carried(way: &Way, count: u32) -> f64 {
    f64::from(count) * way.planned
}

/// Cost and rate by number of machines: from one to what is needed, and on until `top`. Spare machines cost and carry
/// nothing.
fn points_of(way: &Way, top: f64) -> Vec<(f64, f64)> {
    let usd_each = way.usd_per_month / f64::from(way.count);
    let num_spare = way.count - way.needed;
    let last = ((top / way.planned) as u32).max(way.needed);
    let point = |count: u32| (f64::from(count.saturating_add(num_spare)) * usd_each, carried(way, count));
    (1..=last).step_by(last.div_ceil(MAX_POINTS) as usize).map(point).collect()
}
