//! Policies side by side, in one picture.

use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::chart::COLOURS;
use crate::simulate::Report;

const PANEL_SIZE: (u32, u32) = (330, 300);
const TITLE_HEIGHT: u32 = 56;

/// Bars in groups; a bar of each group belongs to one policy.
struct Panel {
    title: &'static str,
    groups: Vec<(String, Vec<f64>)>,
}

fn panels(report: &Report) -> Vec<Panel> {
    let all = &report.policies;
    let group = |name: &str, value: &dyn Fn(&crate::simulate::Summary) -> f64| {
        (name.to_owned(), all.iter().map(value).collect::<Vec<f64>>())
    };
    let mut panels = vec![
        Panel {
            title: "time to first token, ms",
            groups: vec![group("p50", &|one| one.ttft_p50_ms), group("p95", &|one| one.ttft_p95_ms)],
        },
        Panel {
            title: "time between tokens, ms",
            groups: vec![group("p50", &|one| one.tbt_p50_ms), group("p95", &|one| one.tbt_p95_ms)],
        },
    ];
    if all.iter().any(|one| one.with_deadline > 0) {
        let met = group("of all with one", &|one| 100.0 * one.attainment());
        panels.push(Panel { title: "deadlines met, %", groups: vec![met] });
    }
    if all.iter().any(|one| one.tenants.len() > 1) {
        panels.push(Panel {
            title: "tokens by tenant, 1 is fair",
            groups: vec![group("Jain", &|one| one.fairness), group("worst share", &|one| one.worst_share)],
        });
        let tenants = all[0].tenants.iter().enumerate().take(6);
        let of_tenant = |(idx, tenant): (usize, &crate::simulate::served::TenantSummary)| {
            group(&tenant.tenant, &|one| one.tenants[idx].ttft_p95_ms)
        };
        panels.push(Panel {
            title: "p95 to first token by tenant, ms",
            groups: tenants.map(of_tenant).collect(),
        });
    }
    if report.alone.len() == all.len() && !all.is_empty() {
        let of = |value: &dyn Fn(&crate::simulate::Alone) -> f64| report.alone.iter().map(value).collect();
        panels.push(Panel {
            title: "others' p95 to first token, ms",
            groups: vec![
                ("alone".to_owned(), of(&|one| one.alone_ms)),
                ("beside the flood".to_owned(), of(&|one| one.beside_ms)),
            ],
        });
    }
    panels
}

/// Draws all policies of a report.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn draw(path: &Path, report: &Report) -> anyhow::Result<()> {
    let panels = panels(report);
    let columns = panels.len().min(3);
    let rows = panels.len().div_ceil(columns);
    let size = (PANEL_SIZE.0 * columns as u32, PANEL_SIZE.1 * rows as u32 + TITLE_HEIGHT);
    let root = SVGBackend::new(path, size).into_drawing_area();
    root.fill(&WHITE)?;
    let (head, body) = root.split_vertically(TITLE_HEIGHT);
    head.draw(&Text::new(report.title.clone(), (12, 8), ("sans-serif", 14)))?;
    let mut x = 12;
    for (summary, colour) in report.policies.iter().zip(COLOURS.iter().cycle()) {
        head.draw(&Rectangle::new([(x, 34), (x + 10, 44)], colour.filled()))?;
        head.draw(&Text::new(summary.policy.clone(), (x + 14, 32), ("sans-serif", 13)))?;
        x += 34 + 7 * summary.policy.len() as i32;
    }
    for (area, panel) in body.split_evenly((rows, columns)).iter().zip(&panels) {
        draw_panel(area, panel)?;
    }
    root.present()?;
    Ok(())
}

fn draw_panel<B: DrawingBackend>(area: &DrawingArea<B, Shift>, panel: &Panel) -> anyhow::Result<()>
where
    B::ErrorType: 'static,
{
    let values = panel.groups.iter().flat_map(|(_, values)| values.iter().copied());
    let top = values.fold(0.0, f64::max).max(1e-9) * 1.15;
    let num_groups = panel.groups.len();
    let mut chart = ChartBuilder::on(area)
        .caption(panel.title, ("sans-serif", 14))
        .margin(8)
        .x_label_area_size(22)
        .y_label_area_size(52)
        .build_cartesian_2d(0.0..num_groups as f64, 0.0..top)?;
    chart.configure_mesh().disable_x_mesh().disable_x_axis().light_line_style(WHITE).y_labels(5).draw()?;
    let below = Pos::new(HPos::Center, VPos::Top);
    let above = Pos::new(HPos::Center, VPos::Bottom);
    for (idx, (name, values)) in panel.groups.iter().enumerate() {
        let width = 0.8 / values.len() as f64;
        for (place, (&value, colour)) in values.iter().zip(COLOURS.iter().cycle()).enumerate() {
            let left = idx as f64 + 0.1 + width * place as f64;
            let bar = Rectangle::new([(left, 0.0), (left + width * 0.92, value)], colour.filled());
            chart.draw_series([bar])?;
            if num_groups * values.len() <= 8 {
                let digits = if value >= 100.0 {
                    0
                } else if value >= 10.0 {
                    1
                } else {
                    2
                };
                let style = ("sans-serif", 10).into_font().color(&BLACK).pos(above);
                chart.draw_series([Text::new(
                    format!("{value:.digits$}"),
                    (left + width * 0.46, value),
                    style,
                )])?;
            }
        }
        let at = chart.backend_coord(&(idx as f64 + 0.5, 0.0));
        let (base_x, base_y) = area.get_base_pixel();
        let style = ("sans-serif", 12).into_font().color(&BLACK).pos(below);
        area.draw(&Text::new(name.clone(), (at.0 - base_x, at.1 - base_y + 4), style))?;
    }
    Ok(())
}
