//! The loop that keeps the window, asks for a wish and passes it on.

use std::sync::Arc;
use std::time::{Duration, Instant};

use quern_extensions::Replicas;

use super::Workers;
use super::window::History;
use crate::policies::Policies;
use crate::serving::Recent;

/// The longest that a policy may ask not to be asked.
const MAX_HOLD: Duration = Duration::from_secs(3600);

/// Asks policies every `interval` how many workers there should be, showing them
/// the last `max_rows` intervals. Where nobody has an opinion, the configuration
/// decides. Ends with the task.
pub async fn keep_scaling(
    policies: Policies,
    workers: Workers,
    recent: Arc<Recent>,
    interval: Duration,
    max_rows: usize,
) {
    let mut history = History::new(interval, max_rows);
    let mut noted = Instant::now();
    loop {
        tokio::time::sleep(interval).await;
        history.push(workers.row(&recent, noted.elapsed()));
        noted = Instant::now();
        if !policies.scales() {
            workers.follow_configuration();
            continue;
        }
        if !workers.takes_wishes() {
            continue;
        }
        let (asked, window, replicas) = (policies.clone(), history.window(), workers.replicas());
        // A policy may take its whole deadline, which a serving thread must not.
        let answer = tokio::task::spawn_blocking(move || asked.evaluate(&window, replicas)).await;
        match answer {
            Ok(Some((place, target))) => {
                workers.follow(&place, target.desired, target.reason, target.hold.min(MAX_HOLD));
            }
            Ok(None) => workers.follow_configuration(),
            Err(error) => tracing::error!(error = %error, "asking for a wish failed"),
        }
    }
}

impl Workers {
    /// Workers by state, as policies see them.
    fn replicas(&self) -> Replicas {
        let status = self.status();
        Replicas {
            ready: status.ready,
            starting: status.starting,
            draining: status.draining,
            min: status.min,
            max: status.max,
            start_ms: u32::try_from(status.start_took.as_millis()).unwrap_or(u32::MAX),
        }
    }
}
