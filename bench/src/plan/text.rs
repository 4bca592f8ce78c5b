//! The plan for people.

use std::fmt::Write as _;

use super::{HOURS_A_MONTH, Plan, PlanArgs, Way};
use crate::output::number;

/// The whole answer: what to buy, the other ways, the assumptions, and what it rests on.
pub(super) fn markdown(args: &PlanArgs, command_line: &str, plan: &Plan) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, args, command_line, plan);
    text
}

fn write(text: &mut String, args: &PlanArgs, command_line: &str, plan: &Plan) -> std::fmt::Result {
    let PlanArgs { rate, target_p95_ms, what, .. } = args;
    writeln!(text, "# {rate} {} a second, 95 of 100 within {target_p95_ms} ms\n", what.words())?;
    if let Some(Way { count, machine, setting, usd_per_month, .. }) = plan.ways.first() {
        let month = money(*usd_per_month);
        writeln!(
            text,
            "The cheapest way: **{count} × {machine}**, set as `{setting}`, for **{month} USD a month**.\n"
        )?;
    }
    writeln!(text, "Command: `{command_line}`\n")?;
    writeln!(
        text,
        "| machines | setting | USD a month | one carries, a second | planned for one | p95 then, ms | found by |"
    )?;
    writeln!(text, "|---|---|---:|---:|---:|---:|---|")?;
    for way in &plan.ways {
        let Way { machine, setting, method, most, planned, count, usd_per_month, p95_ms, .. } = way;
        let [most, planned, p95] = [*most, *planned, *p95_ms].map(number);
        let month = money(*usd_per_month);
        writeln!(
            text,
            "| {count} × {machine} | {setting} | {month} | {most} | {planned} | {p95} | {method} |"
        )?;
    }
    writeln!(text)?;
    if !plan.impossible.is_empty() {
        writeln!(text, "## What cannot do it\n")?;
        for why in &plan.impossible {
            writeln!(text, "- {why}")?;
        }
        writeln!(text)?;
    }
    writeln!(text, "## Assumptions\n")?;
    for assumption in assumptions(args, plan) {
        writeln!(text, "- {assumption}")?;
    }
    writeln!(text, "\n## What it rests on\n")?;
    for Way { machine, setting, evidence, .. } in &plan.ways {
        writeln!(text, "- {machine}, {setting}: {evidence}")?;
    }
    Ok(())
}

fn assumptions(args: &PlanArgs, plan: &Plan) -> Vec<String> {
    let mut all = vec![
        format!(
            "{} % of what one machine carries within the target is kept free (--headroom); {} spare machines \
             (--spare), which stand idle in the figures.",
            number(args.headroom * 100.0),
            args.spare
        ),
        format!(
            "A month has {HOURS_A_MONTH} hours, all of them paid for; networks, disks and people cost nothing."
        ),
        "Requests are as long as those that were measured, and ask for the same model and settings."
            .to_owned(),
        "Something spreads the arrivals evenly at random over the machines, and takes no time for it."
            .to_owned(),
    ];
    if plan.ways.iter().any(|way| way.method == "M/M/c") {
        all.push(
            "M/M/c: a machine is a queue, first come, first served, before as many places as the closed loop had \
             clients, each as slow as when all of them are taken (mean time by Little's law: clients over throughput). \
             Arrivals and service times are exponential, so that p95 is three times the mean even without a queue, or \
             the measured p95 where that is more. Waiting is by Erlang's C formula (A. K. Erlang, 1917), the whole time \
             by D. Gross and C. M. Harris, Fundamentals of Queueing Theory. A ramp measured in open loop would need none \
             of this."
                .to_owned(),
        );
    }
    if plan.ways.iter().any(|way| way.method != "M/M/c") {
        all.push(
            "Measured in open loop: the highest rate that was driven and held, with all rates below it; p95 is that of \
             the slowest round, from the intended times. Nothing is guessed between rates or beyond the highest; a \
             finer ramp may find more. Arrivals are as random as the workload's."
                .to_owned(),
        );
    }
    all
}

/// Whole dollars from a hundred on.
fn money(usd: f64) -> String {
    if usd >= 100.0 { format!("{usd:.0}") } else { format!("{usd:.2}") }
}
