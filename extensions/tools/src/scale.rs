//! `policy scale`: an autoscaler over a made-up hour.
//!
//! The world is as simple as can be while it still tells something: requests come
//! at a rate that rises, jumps, falls and stops; a worker serves a fixed number of
//! them a second; one that is wanted takes a while to start, and one that is not
//! wanted any more is gone at once, since the others take what it had.

use std::path::PathBuf;

use anyhow::{Context as _, bail};
use clap::Args;
use quern_extensions::{Hook, Replicas, Slot, Window};
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use crate::chart::{Panel, draw};
use crate::opened::{OpenArgs, engine, open};
use crate::{Outcome, print_json};

/// Requests a second at times in seconds; straight lines in between.
const DEMAND: [(f64, f64); 12] = [
    (0.0, 2.0),
    (300.0, 2.0),
    (900.0, 12.0),
    (1400.0, 12.0),
    (1401.0, 20.0),
    (1520.0, 20.0),
    (1521.0, 8.0),
    (1900.0, 1.0),
    (2200.0, 1.0),
    (2201.0, 0.0),
    (3300.0, 0.0),
    (3301.0, 1.0),
];
const END_S: u32 = 3600;

/// Requests that a worker serves in a second, and that it can have at once.
const SPEED: f64 = 2.0;
const PLACES: f64 = 16.0;

/// Intervals that the policy is shown.
const MAX_ROWS: usize = 600;

/// `quern policy scale`.
#[derive(Debug, Clone, Args)]
pub struct ScaleArgs {
    /// An autoscaler policy.
    pub file: PathBuf,
    /// Workers at most.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub max: u32,
    /// How long a worker takes to start.
    #[arg(long, default_value_t = 20)]
    pub start_s: u32,
    /// Draw demand, workers and queue over time.
    #[arg(long, value_name = "FILE.svg")]
    pub svg: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// How it is loaded.
    #[command(flatten)]
    pub open: OpenArgs,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Scaled {
    /// Requests that arrived.
    pub arrivals: u64,
    /// Time that workers were there, starting ones too, in hours of one worker.
    pub worker_hours: f64,
    /// What was needed to serve them with all workers busy.
    pub needed_hours: f64,
    /// The longest queue.
    pub most_waiting: u32,
    /// Time that requests waited, on average.
    pub mean_wait_s: f64,
    /// How often the wish changed.
    pub changes: u32,
    /// Seconds without any worker.
    pub at_zero_s: u32,
    /// What failed.
    pub faults: Vec<String>,
    /// By second: arrivals, workers wanted, ready, and requests that wait.
    #[serde(skip)]
    seconds: Vec<[f64; 4]>,
}

pub(crate) fn run(args: &ScaleArgs) -> anyhow::Result<Outcome> {
    let scaled = scale(args)?;
    if let Some(path) = &args.svg {
        let line = |name: &str, column: usize, factor: f64| {
            let points = scaled.seconds.iter().enumerate();
            (name.to_owned(), points.map(|(at_s, row)| (at_s as f64, row[column] * factor)).collect())
        };
        let panels = [
            Panel {
                title: "requests a second",
                lines: vec![line("arrive", 0, 1.0), line("can be served", 2, SPEED)],
            },
            Panel { title: "workers", lines: vec![line("wanted", 1, 1.0), line("ready", 2, 1.0)] },
            Panel { title: "requests that wait", lines: vec![line("waiting", 3, 1.0)] },
        ];
        let title = format!(
            "a made-up hour; a worker serves {SPEED} requests a second and takes {} s to start",
            args.start_s
        );
        draw(path, &title, &panels).with_context(|| format!("{} cannot be drawn", path.display()))?;
    }
    if args.json {
        print_json(&scaled)?;
    } else {
        let Scaled {
            arrivals,
            worker_hours,
            needed_hours,
            most_waiting,
            mean_wait_s,
            changes,
            at_zero_s,
            ..
        } = &scaled;
        println!("{arrivals} requests; {worker_hours:.2} hours of workers where {needed_hours:.2} would do");
        println!("waited {mean_wait_s:.2} s on average, {most_waiting} at most at once");
        println!("{changes} changes, {at_zero_s} s without a worker");
        scaled.faults.iter().for_each(|fault| println!("FAULT: {fault}"));
    }
    Ok(if scaled.faults.is_empty() { Outcome::Well } else { Outcome::Wrong })
}

/// Lets a policy see to the workers of a made-up hour.
///
/// # Errors
/// When it is no autoscaler policy.
pub fn scale(args: &ScaleArgs) -> anyhow::Result<Scaled> {
    let opened = open(&engine(false)?, &args.file, &args.open)?;
    if !opened.slot.serves(Hook::Autoscaler) {
        bail!("{} has no autoscaler hook", args.file.display());
    }
    let mut world = World { ready: 1, ..World::default() };
    let mut random = ChaCha8Rng::seed_from_u64(1);
    for at_s in 0..END_S {
        let arrived = poisson(&mut random, demand(f64::from(at_s)));
        world.second(args, &opened.slot, arrived);
    }
    let mut scaled = world.scaled;
    scaled.needed_hours = scaled.arrivals as f64 / SPEED / 3600.0;
    scaled.mean_wait_s /= scaled.arrivals.max(1) as f64;
    let faults = opened.status()?.faults;
    scaled.faults = faults.iter().map(|fault| format!("{}: {}", fault.verdict, fault.reason)).collect();
    Ok(scaled)
}

#[derive(Default)]
struct World {
    ready: u32,
    /// Seconds until each is ready.
    starting: Vec<u32>,
    wanted: Option<u32>,
    /// Requests in the node.
    inside: f64,
    hold_s: u32,
    window: Window,
    scaled: Scaled,
}

impl World {
    fn second(&mut self, args: &ScaleArgs, slot: &Slot, arrived: u32) {
        self.starting.iter_mut().for_each(|left| *left -= 1);
        let begun = self.starting.len();
        self.starting.retain(|left| *left > 0);
        self.ready += (begun - self.starting.len()) as u32;

        let can_serve = f64::from(self.ready) * SPEED;
        self.inside += f64::from(arrived);
        let served = self.inside.min(can_serve);
        let busy = if self.ready == 0 { 0.0 } else { served / can_serve };
        self.inside -= served;
        let running = self.inside.min(f64::from(self.ready) * PLACES);
        let waiting = self.inside - running;
        self.show(arrived, waiting, running, busy);
        self.scaled.arrivals += u64::from(arrived);
        self.scaled.mean_wait_s += self.inside;

        self.hold_s = self.hold_s.saturating_sub(1);
        if self.hold_s == 0 {
            self.ask(args, slot);
        }
        let there = self.ready + self.starting.len() as u32;
        self.scaled.worker_hours += f64::from(there) / 3600.0;
        self.scaled.at_zero_s += u32::from(there == 0);
        self.scaled.most_waiting = self.scaled.most_waiting.max(waiting as u32);
        let wanted = f64::from(self.wanted.unwrap_or(there));
        self.scaled.seconds.push([f64::from(arrived), wanted, f64::from(self.ready), waiting]);
    }

    /// Another row of the window.
    fn show(&mut self, arrived: u32, waiting: f64, running: f64, busy: f64) {
        let window = &mut self.window;
        window.interval_ms = 1000;
        for (column, value) in [
            (&mut window.arrivals, arrived),
            (&mut window.rejected, 0),
            (&mut window.waiting, waiting.ceil() as u32),
            (&mut window.running, running.ceil() as u32),
            (&mut window.busy_permille, (busy * 1000.0) as u32),
            (&mut window.kv_used_permille, 0),
            (&mut window.ttft_p95_ms, 0),
            (&mut window.tpot_p95_us, 0),
            (&mut window.power_mw, 0),
        ] {
            if column.len() == MAX_ROWS {
                column.remove(0);
            }
            column.push(value);
        }
    }

    fn ask(&mut self, args: &ScaleArgs, slot: &Slot) {
        let there = self.ready + self.starting.len() as u32;
        let replicas = Replicas {
            ready: self.ready,
            starting: self.starting.len() as u32,
            draining: 0,
            min: 0,
            max: args.max,
            start_ms: args.start_s.saturating_mul(1000),
        };
        let Some(target) = slot.evaluate(&self.window, replicas) else { return };
        self.hold_s = target.hold.as_secs() as u32;
        let wanted = target.desired.min(args.max);
        self.scaled.changes += u32::from(self.wanted.is_some_and(|before| before != wanted));
        self.wanted = Some(wanted);
        for _ in there..wanted {
            self.starting.push(args.start_s.max(1));
        }
        for _ in wanted..there {
            // Those that are not there yet go first.
            if self.starting.pop().is_none() {
                self.ready -= 1;
            }
        }
    }
}

fn demand(at_s: f64) -> f64 {
    let next = DEMAND.iter().position(|&(from_s, _)| from_s > at_s).unwrap_or(DEMAND.len());
    let Some(&(from_s, from)) = DEMAND[..next].last() else { return 0.0 };
    let Some(&(to_s, to)) = DEMAND.get(next) else { return from };
    from + (to - from) * (at_s - from_s) / (to_s - from_s)
}

/// Arrivals in a second at a rate.
fn poisson(random: &mut ChaCha8Rng, rate: f64) -> u32 {
    if rate <= 0.0 {
        return 0;
    }
    let mut passed_s = 0.0;
    let mut arrived = 0;
    loop {
        passed_s += -(1.0 - random.random::<f64>()).ln() / rate;
        if passed_s >= 1.0 {
            return arrived;
        }
        arrived += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn demand_follows_its_corners() {
        assert_eq!((demand(0.0), demand(600.0), demand(1450.0)), (2.0, 7.0, 20.0));
        assert_eq!((demand(2500.0), demand(9000.0)), (0.0, 1.0));
        let mut random = ChaCha8Rng::seed_from_u64(1);
        let all: u32 = (0..1000).map(|_| poisson(&mut random, 5.0)).sum();
        assert!((4700..5300).contains(&all), "{all}");
        assert_eq!(poisson(&mut random, 0.0), 0);
    }
}
