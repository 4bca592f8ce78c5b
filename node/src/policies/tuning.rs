//! What policies are told of the node's load, and the loop that lets a batcher
//! change the limits of steps.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quern_extensions::NodeLoad;
use quern_scheduler::Limits;

use super::Policies;
use crate::serving::Recent;
use crate::workers::Workers;

/// How often a batcher is asked.
const INTERVAL: Duration = Duration::from_millis(250);

/// The longest that a policy may let a step wait.
const MAX_WAIT_WINDOW: Duration = Duration::from_secs(1);

/// The node's load now. `started` is the zero of its clock.
#[must_use]
pub fn node_load(workers: &Workers, recent: &Recent, started: Instant) -> NodeLoad {
    let (load, pace) = (workers.load(), workers.pace());
    // Without a worker there is the room of the one that the next request brings.
    let kv_capacity = load.kv_capacity.max(workers.kv_capacity_of_one());
    let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
    let micros = |value: Duration| u32::try_from(value.as_micros()).unwrap_or(u32::MAX);
    NodeLoad {
        now_us: started.elapsed().as_micros() as u64,
        // What waits to start is queued too, what was paused is not.
        waiting: number(load.waiting.max(load.queued)),
        waiting_tokens: pace.waiting_tokens,
        running: number(load.running),
        kv_free: number(kv_capacity.saturating_sub(load.kv_live)),
        kv_total: number(kv_capacity),
        step_p50_us: micros(pace.step_p50),
        step_p99_us: micros(pace.step_p99),
        ttft_p95_ms: recent.first_token_p95().as_millis() as u32,
        tpot_p95_us: micros(recent.between_tokens_p95()),
        tokens_per_second: recent.tokens_per_second(),
        token_budget: number(pace.limits.token_budget),
        max_running: number(pace.limits.max_running),
        wait_window_us: micros(pace.limits.wait_window),
    }
}

/// Asks the batcher again and again, and lets the step loops follow it. When
/// nobody has an opinion any more, the configured limits come back.
pub async fn keep_tuning(
    policies: Policies,
    workers: Workers,
    recent: Arc<Recent>,
    configured: Limits,
    started: Instant,
) {
    let mut in_force = configured;
    let mut hold_until = started;
    let mut asked_whom = policies.tuners();
    let mut counted = Instant::now();
    loop {
        tokio::time::sleep(INTERVAL).await;
        let now = Instant::now();
        if now.duration_since(counted) >= Duration::from_secs(1) {
            recent.note_second(now.duration_since(counted));
            counted = now;
        }
        let tuners = policies.tuners();
        // A policy's word holds as long as it is there to give it.
        if now < hold_until && tuners == asked_whom {
            continue;
        }
        asked_whom = tuners;
        hold_until = now;
        let load = node_load(&workers, &recent, started);
        let asked = policies.clone();
        // A policy may take its whole deadline, which a serving thread must not.
        let Ok(wish) = tokio::task::spawn_blocking(move || asked.tune(&load)).await else { continue };
        let wanted = match wish {
            None => configured,
            Some(wish) => {
                hold_until = now + wish.hold.min(Duration::from_secs(60));
                Limits {
                    token_budget: wish.token_budget as usize,
                    max_running: wish.max_running as usize,
                    target_step: wish.target_step,
                    wait_window: wish.wait_window.min(MAX_WAIT_WINDOW),
                }
            }
        };
        if wanted != in_force && workers.set_limits(wanted) {
            in_force = wanted;
            tracing::debug!(limits = ?wanted, "limits of steps");
        }
    }
}
