//! What batchers and admission policies decided over time, and what came of it.

use std::path::Path;

use crate::Usage;
use crate::chart::{self, Line, Panel};
use crate::simulate::node::NodeConfig;
use crate::simulate::served::{End, Served};
use crate::simulate::trace::Trace;
use crate::stats::quantile;

/// Parts that the time is cut into.
const PARTS: usize = 100;

/// One policy's time.
#[derive(Debug, Clone)]
pub(super) struct Timeline {
    policy: String,
    /// Time between tokens in milliseconds, 95th percentile.
    gaps: Line,
    /// The longest step allowed in milliseconds, and sequences that may run.
    longest_step: Line,
    max_running: Line,
    /// Tokens a second that each tenant asked for, and that it was granted.
    asked: Vec<Line>,
    granted: Vec<Line>,
    has_tuned: bool,
    has_refused: bool,
}

impl Timeline {
    pub(super) fn new(policy: &str, trace: &Trace, served: &Served, config: &NodeConfig) -> Timeline {
        let part_s = (served.now_us as f64 / 1e6 / PARTS as f64).max(1e-3);
        let part_of = |at_us: u64| ((at_us as f64 / 1e6 / part_s) as usize).min(PARTS - 1);
        let middle_s = |part: usize| (part as f64 + 0.5) * part_s;

        let mut gaps = vec![Vec::new(); PARTS];
        served.gaps().for_each(|(at_us, gap_us)| gaps[part_of(at_us)].push(gap_us / 1000.0));
        let gaps = gaps.iter_mut().enumerate().filter(|(_, gaps)| !gaps.is_empty());
        let gaps = gaps.map(|(part, gaps)| (middle_s(part), quantile(gaps, 0.95))).collect();

        let first = (0.0, f64::from(config.target_step_us) / 1000.0, f64::from(config.max_running));
        let tuned = served.tuned.iter();
        let tuned = tuned.map(|&(at_us, step_us, running)| {
            (at_us as f64 / 1e6, f64::from(step_us) / 1000.0, f64::from(running))
        });
        let last = served.tuned.last().map_or((first.1, first.2), |&(_, step_us, running)| {
            (f64::from(step_us) / 1000.0, f64::from(running))
        });
        let end = (served.now_us as f64 / 1e6, last.0, last.1);
        let limits: Vec<(f64, f64, f64)> = [first].into_iter().chain(tuned).chain([end]).collect();

        let empty = || trace.tenants.iter().map(|_| vec![0.0; PARTS]).collect::<Vec<_>>();
        let (mut asked, mut granted) = (empty(), empty());
        for (arrival, request) in trace.arrivals.iter().zip(&served.requests) {
            let tokens = f64::from(arrival.prompt) + f64::from(arrival.max_new);
            asked[arrival.tenant][part_of(arrival.at_us)] += tokens / part_s;
            if request.end != Some(End::Refused) {
                granted[arrival.tenant][part_of(arrival.at_us)] += tokens / part_s;
            }
        }
        let by_tenant = |values: Vec<Vec<f64>>| {
            let line = |(name, values): (&String, Vec<f64>)| {
                let points = values.into_iter().enumerate().map(|(part, value)| (middle_s(part), value));
                (name.clone(), points.collect())
            };
            trace.tenants.iter().zip(values).map(line).collect()
        };
        Timeline {
            policy: policy.to_owned(),
            gaps: (policy.to_owned(), gaps),
            longest_step: (policy.to_owned(), limits.iter().map(|limit| (limit.0, limit.1)).collect()),
            max_running: (policy.to_owned(), limits.iter().map(|limit| (limit.0, limit.2)).collect()),
            asked: by_tenant(asked),
            granted: by_tenant(granted),
            has_tuned: !served.tuned.is_empty(),
            has_refused: served.requests.iter().any(|request| request.end == Some(End::Refused)),
        }
    }
}

/// Draws what was decided.
///
/// # Errors
/// When nothing was, or the file cannot be written.
pub(super) fn draw(path: &Path, title: &str, all: &[Timeline]) -> anyhow::Result<()> {
    let lines = |of: &dyn Fn(&Timeline) -> &Line| all.iter().map(|one| of(one).clone()).collect();
    let mut panels = Vec::new();
    if all.iter().any(|one| one.has_tuned) {
        panels.push(Panel { title: "time between tokens, p95 in ms", lines: lines(&|one| &one.gaps) });
        panels.push(Panel { title: "longest step allowed, ms", lines: lines(&|one| &one.longest_step) });
        panels.push(Panel { title: "sequences that may run", lines: lines(&|one| &one.max_running) });
    }
    if let Some(one) = all.iter().find(|one| one.has_refused) {
        panels.push(Panel { title: "tokens a second asked for, by tenant", lines: one.asked.clone() });
        panels.push(Panel { title: "tokens a second granted, by tenant", lines: one.granted.clone() });
    }
    if panels.is_empty() {
        let nobody =
            "--over-time shows what batchers and admission policies decide, and none decided anything";
        return Err(Usage(nobody.to_owned()).into());
    }
    let names: Vec<&str> = all.iter().map(|one| one.policy.as_str()).collect();
    chart::draw(path, &format!("{}: {title}", names.join(", ")), &panels)
}
