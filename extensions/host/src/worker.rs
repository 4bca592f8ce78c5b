//! The thread that does what a serving thread must not wait for: building
//! spares, rolling back, dropping instances, writing guests' log lines.
//!
//! Its queue is bounded, and giving it a job never blocks. What does not fit is
//! given again later, or done without.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Weak};

use crate::bindings::quern::policy::log::Level;
use crate::instance::Instance;
use crate::seat::Seat;
use crate::slot::SlotCore;

/// Jobs that may wait.
const QUEUE: usize = 256;

/// What a guest wants to say.
pub(crate) struct LogLine {
    pub(crate) policy: String,
    pub(crate) level: Level,
    pub(crate) message: String,
}

impl LogLine {
    /// What operators filter by.
    pub(crate) const TARGET: &'static str = "quern_policy";

    fn write(&self) {
        let (policy, message) = (&*self.policy, &*self.message);
        match self.level {
            Level::Trace => tracing::trace!(target: LogLine::TARGET, policy, message),
            Level::Debug => tracing::debug!(target: LogLine::TARGET, policy, message),
            Level::Info => tracing::info!(target: LogLine::TARGET, policy, message),
            Level::Warn => tracing::warn!(target: LogLine::TARGET, policy, message),
            Level::Error => tracing::error!(target: LogLine::TARGET, policy, message),
        }
    }
}

/// Something to do. Nothing here keeps an engine or a place alive.
pub(crate) enum Job {
    Log(LogLine),
    /// Freeing an instance's memory takes system calls.
    Retire(Box<Instance>),
    /// Build a spare for this version, if the seat still has it.
    Spare(Weak<Seat>, u64),
    /// Roll this version back, if it still serves.
    RollBack(Weak<SlotCore>, u64, String),
    /// This version passed its trial.
    TrialPassed(Weak<SlotCore>, u64),
    /// Answer once everything before is done.
    Settle(SyncSender<()>),
}

/// The sending side; cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkerPort(SyncSender<Job>);

impl WorkerPort {
    /// # Errors
    /// The operating system's, when it gives no thread.
    pub(crate) fn start() -> std::io::Result<WorkerPort> {
        let (sender, jobs) = sync_channel(QUEUE);
        // It ends with the last port. It is not waited for: the last port may
        // be dropped by one of its own jobs.
        std::thread::Builder::new().name("quern-policy".into()).spawn(move || run(&jobs))?;
        Ok(WorkerPort(sender))
    }

    /// Without a thread behind it.
    #[cfg(test)]
    pub(crate) fn closed() -> WorkerPort {
        WorkerPort(sync_channel(1).0)
    }

    /// False if there is no room.
    pub(crate) fn give(&self, job: Job) -> bool {
        self.0.try_send(job).is_ok()
    }

    pub(crate) fn log(&self, line: LogLine) -> bool {
        self.give(Job::Log(line))
    }

    pub(crate) fn retire(&self, instance: Instance) {
        // Without room it is dropped here and now.
        self.give(Job::Retire(Box::new(instance)));
    }

    pub(crate) fn spare(&self, seat: &Arc<Seat>, version: u64) -> bool {
        self.give(Job::Spare(Arc::downgrade(seat), version))
    }

    /// Blocks until everything that was given before is done.
    pub(crate) fn settle(&self) {
        let (sender, done) = sync_channel(1);
        if self.0.send(Job::Settle(sender)).is_ok() {
            // An error means that the thread is gone, and with it all jobs.
            let _ = done.recv();
        }
    }
}

fn run(jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Log(line) => line.write(),
            Job::Retire(instance) => drop(instance),
            Job::Spare(seat, version) => {
                if let Some(seat) = seat.upgrade() {
                    seat.build_spare(version);
                }
            }
            Job::RollBack(slot, version, why) => {
                if let Some(slot) = slot.upgrade() {
                    slot.roll_back_from(version, &why);
                }
            }
            Job::TrialPassed(slot, version) => {
                if let Some(slot) = slot.upgrade() {
                    slot.trial_passed(version);
                }
            }
            // Whoever asked may have stopped waiting.
            Job::Settle(done) => drop(done.try_send(())),
        }
    }
}
