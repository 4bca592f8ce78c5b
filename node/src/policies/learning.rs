//! Tells policies that learn who left, in batches and off every step's path.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use quern_extensions::{Completed, Hook, Outcome, Slot};
use quern_scheduler::Completion;

/// Rows that may wait to be told; step loops drop what finds no room.
const QUEUE: usize = 4096;

/// Rows in one call at most, so that a step which meets it waits for little.
const BATCH: usize = 256;

/// How long the first row of a batch waits for others.
const GATHER: Duration = Duration::from_millis(100);

/// Starts the thread that tells; it ends when the last sender is gone.
///
/// # Errors
/// The system's, when it gives no thread.
pub(super) fn start(places: Arc<[Slot]>) -> io::Result<SyncSender<Completion>> {
    let (sender, rows) = sync_channel(QUEUE);
    std::thread::Builder::new().name("quern-feedback".into()).spawn(move || tell_all(&rows, &places))?;
    Ok(sender)
}

fn tell_all(rows: &Receiver<Completion>, places: &[Slot]) {
    while let Ok(first) = rows.recv() {
        let mut completed = Completed::default();
        push(&mut completed, &first);
        let until = Instant::now() + GATHER;
        while completed.id.len() < BATCH {
            let left = until.saturating_duration_since(Instant::now());
            // Late or gone: what is there is told.
            let Ok(row) = rows.recv_timeout(left) else { break };
            push(&mut completed, &row);
        }
        for slot in places.iter().filter(|slot| slot.serves(Hook::Feedback)) {
            slot.observe(&completed);
        }
    }
}

fn push(completed: &mut Completed, row: &Completion) {
    let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
    completed.id.push(row.id);
    completed.tenant.push(row.tenant);
    completed.outcome.push(match row.outcome {
        quern_scheduler::Outcome::Finished => Outcome::Finished,
        quern_scheduler::Outcome::Cancelled => Outcome::Cancelled,
        quern_scheduler::Outcome::Failed => Outcome::Failed,
        quern_scheduler::Outcome::Expired => Outcome::Expired,
    });
    completed.prompt_tokens.push(row.prompt_tokens);
    completed.new_tokens.push(row.new_tokens);
    completed.queue_us.push(micros(row.queued));
    completed.ttft_us.push(micros(row.first_token));
}
