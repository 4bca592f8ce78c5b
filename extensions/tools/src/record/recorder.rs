//! Keeps a live node's steps without ever making one wait.
//!
//! The step's thread copies a snapshot if there is room in a bounded queue, and
//! counts it as missed if not; a thread of its own writes. The file's size is
//! bounded: what comes after is counted, not kept.

use std::fs::File;
use std::io::{self, BufWriter};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use quern_scheduler::plan::{Plan, PlanError, Planner, Snapshot};

use crate::record::{Step, Writer};

/// How often the writer looks for steps while they come. It is not woken for each,
/// since waking a thread costs a step more than all the rest of its recording.
const LOOK: Duration = Duration::from_millis(5);

/// Looks without a step after which it waits to be woken.
const QUIET_LOOKS: u32 = 200;

/// How much a recorder may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Of the file.
    pub max_bytes: u64,
    /// Steps between the step's thread and the writer's.
    pub queue: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { max_bytes: 256 << 20, queue: 256 }
    }
}

/// What became of steps, for metrics and for people.
#[derive(Debug, Default)]
pub struct RecorderCounts {
    written: AtomicU64,
    missed: AtomicU64,
    full: AtomicBool,
    failed: AtomicBool,
    ended: AtomicBool,
    bytes: AtomicU64,
    in_queue: AtomicUsize,
}

impl RecorderCounts {
    /// Steps in the file.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Steps that found no room in the queue or in the file.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whether the file is as large as it may be.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.full.load(Ordering::Relaxed)
    }

    /// Whether the file could not be written.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }

    /// Whether the file is whole: nothing is written to it any more.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended.load(Ordering::Acquire)
    }

    /// Length of the file.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(super) fn miss(&self) {
        self.missed.fetch_add(1, Ordering::Relaxed);
    }
}

/// The step thread's end of a recording.
#[derive(Debug)]
pub(super) struct Queue {
    counts: Arc<RecorderCounts>,
    /// Nothing says that nothing worth waiting for comes any more.
    messages: SyncSender<Option<Step>>,
    max_in_queue: usize,
}

/// The thread that writes; join it to know that the file is whole.
pub type WriterThread = JoinHandle<io::Result<()>>;

/// Creates a recording's file, readable for the user alone.
///
/// # Errors
/// When the file cannot be created, which it must be: none is replaced.
pub(super) fn create(path: &Path) -> io::Result<Writer<BufWriter<File>>> {
    let mut options = File::options();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    Writer::new(BufWriter::new(options.open(path)?))
}

impl Queue {
    /// Starts the writer's thread.
    pub(super) fn start<W: io::Write + Send + 'static>(
        writer: Writer<W>,
        limits: Limits,
    ) -> io::Result<(Queue, WriterThread)> {
        let max_in_queue = limits.queue.max(1);
        let (messages, received) = sync_channel(max_in_queue);
        let counts = Arc::new(RecorderCounts::default());
        let theirs = Arc::clone(&counts);
        let thread = std::thread::Builder::new().name("quern-recorder".into()).spawn(move || {
            let written = write(writer, &received, &theirs, limits.max_bytes);
            theirs.failed.store(written.is_err(), Ordering::Relaxed);
            theirs.ended.store(true, Ordering::Release);
            written
        })?;
        Ok((Queue { counts, messages, max_in_queue }, thread))
    }

    pub(super) fn counts(&self) -> &Arc<RecorderCounts> {
        &self.counts
    }

    /// Whether a step would be kept; seen before copying it, which is what costs.
    pub(super) fn has_room(&self) -> bool {
        let counts = &self.counts;
        let has_room = counts.in_queue.load(Ordering::Relaxed) < self.max_in_queue;
        has_room && !counts.is_full() && !counts.has_ended()
    }

    pub(super) fn send(&self, step: Step) {
        self.counts.in_queue.fetch_add(1, Ordering::Relaxed);
        if self.messages.try_send(Some(step)).is_err() {
            self.counts.in_queue.fetch_sub(1, Ordering::Relaxed);
            self.counts.miss();
        }
    }

    /// Lets the writer finish, if there is room to say so; it does as well when
    /// the queue is dropped.
    pub(super) fn end(&self) {
        // Either way it ends.
        let _ = self.messages.try_send(None);
    }
}

/// A planner that is recorded from its first step to its last. Dropping it, as
/// replacing a planner does, lets the writer finish on its own thread.
pub struct Recorder<P: Planner> {
    inner: P,
    queue: Queue,
    /// Sent when the next snapshot tells how long it took.
    pending: Option<Step>,
}

impl<P: Planner> Recorder<P> {
    /// Creates the file, readable for the user alone, and starts the writer's thread.
    ///
    /// # Errors
    /// When the file cannot be created, which it must be: none is replaced.
    pub fn start(inner: P, path: &Path, limits: Limits) -> io::Result<(Recorder<P>, WriterThread)> {
        Recorder::with_writer(inner, create(path)?, limits)
    }

    fn with_writer<W: io::Write + Send + 'static>(
        inner: P,
        writer: Writer<W>,
        limits: Limits,
    ) -> io::Result<(Recorder<P>, WriterThread)> {
        let (queue, thread) = Queue::start(writer, limits)?;
        Ok((Recorder { inner, queue, pending: None }, thread))
    }

    /// Counts that outlive the recorder.
    #[must_use]
    pub fn counts(&self) -> Arc<RecorderCounts> {
        Arc::clone(&self.queue.counts)
    }

    fn send_pending(&mut self) {
        self.pending.take().into_iter().for_each(|step| self.queue.send(step));
    }
}

fn write<W: io::Write>(
    mut writer: Writer<W>,
    messages: &Receiver<Option<Step>>,
    counts: &RecorderCounts,
    max_bytes: u64,
) -> io::Result<()> {
    let mut quiet = 0;
    loop {
        let message = match messages.try_recv() {
            Ok(message) => message,
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) => {
                // A node that is killed leaves all steps that had time to get here.
                writer.flush()?;
                if quiet < QUIET_LOOKS {
                    quiet += 1;
                    std::thread::sleep(LOOK);
                    continue;
                }
                let Ok(message) = messages.recv() else { break };
                message
            }
        };
        quiet = 0;
        let Some(step) = message else { break };
        counts.in_queue.fetch_sub(1, Ordering::Relaxed);
        if writer.num_bytes() >= max_bytes {
            // Later steps are no longer copied.
            counts.full.store(true, Ordering::Relaxed);
            counts.miss();
            continue;
        }
        writer.write(&step)?;
        counts.bytes.store(writer.num_bytes(), Ordering::Relaxed);
        counts.written.fetch_add(1, Ordering::Relaxed);
    }
    writer.finish()
}

impl<P: Planner> Planner for Recorder<P> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        if let Some(step) = &mut self.pending {
            step.took(&snapshot.step);
        }
        self.send_pending();
        let plan = self.inner.plan(snapshot);
        if self.queue.has_room() {
            self.pending = Some(Step::new(snapshot.clone(), plan.clone()));
        } else {
            self.queue.counts.miss();
        }
        plan
    }

    fn judged(&mut self, judgement: Result<(), PlanError>) {
        if let Some(step) = &mut self.pending {
            step.judge(Some(judgement));
        }
        self.inner.judged(judgement);
    }

    fn stands(&self) -> bool {
        self.inner.stands()
    }
}

impl<P: Planner> Drop for Recorder<P> {
    fn drop(&mut self) {
        self.send_pending();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use quern_scheduler::builtin::BuiltinPlanner;

    use super::*;
    use crate::fuzz::Fuzz;
    use crate::record::{Judged, Reader};

    fn drive(recorder: &mut Recorder<BuiltinPlanner>, num_steps: usize) -> Vec<Snapshot> {
        let mut fuzz = Fuzz::new(2);
        let mut next = || {
            let snapshot = fuzz.next();
            let plan = recorder.plan(&snapshot).unwrap();
            recorder.judged(quern_scheduler::plan::check(&snapshot, &plan));
            snapshot
        };
        (0..num_steps).map(|_| next()).collect()
    }

    #[test]
    fn steps_are_kept_with_their_plans_and_times() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.rec");
        let limits = Limits { queue: 1000, ..Limits::default() };
        let (mut recorder, thread) = Recorder::start(BuiltinPlanner::default(), &path, limits).unwrap();
        let counts = recorder.counts();
        let seen = drive(&mut recorder, 100);
        drop(recorder);
        thread.join().unwrap().unwrap();
        assert_eq!((counts.written(), counts.missed()), (100, 0));
        let steps: Vec<Step> = Reader::new(File::open(&path).unwrap()).unwrap().map(Result::unwrap).collect();
        for (idx, (step, snapshot)) in steps.iter().zip(&seen).enumerate() {
            assert_eq!(&step.snapshot, snapshot);
            assert_eq!(step.judged, Judged::InForce);
            assert!(step.plan.is_some());
            assert_eq!(step.took_us, seen.get(idx + 1).map(|next| next.step.last_step_us));
        }
        assert!(Recorder::start(BuiltinPlanner::default(), &path, limits).is_err(), "no file is replaced");
    }

    #[test]
    fn a_full_file_takes_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("steps.rec");
        let limits = Limits { max_bytes: 20_000, queue: 1000 };
        let (mut recorder, thread) = Recorder::start(BuiltinPlanner::default(), &path, limits).unwrap();
        let counts = recorder.counts();
        drive(&mut recorder, 300);
        drop(recorder);
        thread.join().unwrap().unwrap();
        assert!(counts.is_full() && !counts.has_failed());
        assert_eq!(counts.written() + counts.missed(), 300);
        let read = Reader::new(File::open(&path).unwrap()).unwrap().map(Result::unwrap).count();
        assert_eq!(read as u64, counts.written());
    }

    /// Writes nothing before it is let go.
    struct Stuck(mpsc::Receiver<()>);

    impl io::Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_hangs_makes_no_step_wait() {
        let (go, held) = mpsc::channel();
        // The head is written before the thread starts.
        (0..2).for_each(|_| go.send(()).unwrap());
        let writer = Writer::new(Stuck(held)).unwrap();
        let limits = Limits { queue: 4, ..Limits::default() };
        let (mut recorder, thread) =
            Recorder::with_writer(BuiltinPlanner::default(), writer, limits).unwrap();
        let counts = recorder.counts();
        // Ends although nothing is written.
        drive(&mut recorder, 200);
        assert!(counts.missed() >= 190, "{counts:?}");
        drop((recorder, go));
        thread.join().unwrap().unwrap();
        assert_eq!(counts.written() + counts.missed(), 200);
    }
}
