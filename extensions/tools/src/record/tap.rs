//! Recordings that begin and end while a node serves, without touching who plans.
//!
//! A [`Tap`] is what operators hold; [`Tapped`] stands before the planner of each
//! step loop. Without a recording it costs one load of a pointer a step.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;
use quern_scheduler::plan::{Plan, PlanError, Planner, Snapshot};

use super::recorder::{Queue, create};
use super::{Limits, RecorderCounts, Step};

/// See the module's text. Cheap to clone, and all clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Tap {
    current: Arc<ArcSwapOption<Session>>,
    last: Arc<Mutex<Option<Recording>>>,
}

/// A recording that runs, or the last one that did.
#[derive(Debug, Clone)]
pub struct Recording {
    /// Its file.
    pub path: PathBuf,
    /// Steps after which it ends by itself.
    pub max_steps: Option<u64>,
    /// What became of steps.
    pub counts: Arc<RecorderCounts>,
}

/// Why no recording was started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// One at a time.
    #[error("{} is being recorded", .0.display())]
    Running(PathBuf),
    /// The file cannot be created.
    #[error("{} cannot be created", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One recording, as step loops see it.
#[derive(Debug)]
struct Session {
    queue: Queue,
    /// Steps that may still be copied.
    left: AtomicU64,
}

/// A step that was copied.
#[derive(Debug)]
struct Pending {
    step: Step,
    session: Arc<Session>,
    /// No other follows, so nobody waits to learn how long it took.
    is_last: bool,
}

impl Tap {
    /// Stands before a step loop's planner.
    pub fn planner<P: Planner>(&self, inner: P) -> Tapped<P> {
        Tapped { tap: self.clone(), inner, pending: None }
    }

    /// Records to a new file, until [`Tap::stop`], `max_steps`, or the file is full.
    ///
    /// # Errors
    /// [`StartError`]; nothing changed.
    pub fn start(
        &self,
        path: &Path,
        max_steps: Option<u64>,
        limits: Limits,
    ) -> Result<Recording, StartError> {
        let mut last = self.last();
        if let Some(running) = last.as_ref().filter(|recording| !recording.counts.has_ended()) {
            return Err(StartError::Running(running.path.clone()));
        }
        let failed = |source| StartError::Create { path: path.to_owned(), source };
        // The thread is not waited for: the counts say when the file is whole.
        let (queue, _writer) =
            create(path).and_then(|writer| Queue::start(writer, limits)).map_err(failed)?;
        let recording = Recording { path: path.to_owned(), max_steps, counts: Arc::clone(queue.counts()) };
        let left = AtomicU64::new(max_steps.unwrap_or(u64::MAX));
        self.current.store(Some(Arc::new(Session { queue, left })));
        *last = Some(recording.clone());
        Ok(recording)
    }

    /// Ends what runs. False if nothing did. The file is whole a moment later.
    pub fn stop(&self) -> bool {
        let session = self.current.swap(None);
        session.as_ref().inspect(|session| session.queue.end()).is_some()
    }

    /// What runs, or ran last.
    #[must_use]
    pub fn status(&self) -> Option<Recording> {
        self.last().clone()
    }

    fn last(&self) -> MutexGuard<'_, Option<Recording>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends this recording, if it still runs.
    fn end(&self, session: &Arc<Session>) {
        let current = self.current.load();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            self.current.compare_and_swap(&*current, None);
        }
        session.queue.end();
    }
}

impl Session {
    /// Takes the right to copy a step; whether it is the last one.
    fn claim(&self) -> Option<bool> {
        let take = |left: u64| left.checked_sub(1);
        let before = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).ok()?;
        Some(before == 1)
    }
}

/// A planner whose steps can be recorded.
#[derive(Debug)]
pub struct Tapped<P: Planner> {
    tap: Tap,
    inner: P,
    /// Sent when the next snapshot tells how long it took.
    pending: Option<Pending>,
}

impl<P: Planner> Tapped<P> {
    fn send_pending(&mut self) {
        let Some(Pending { step, session, is_last }) = self.pending.take() else { return };
        session.queue.send(step);
        if is_last {
            self.tap.end(&session);
        }
    }

    fn keep(&mut self, session: &Arc<Session>, snapshot: &Snapshot, plan: Option<&Plan>) {
        if !session.queue.has_room() {
            session.queue.counts().miss();
            if session.queue.counts().is_full() {
                self.tap.end(session);
            }
            return;
        }
        let Some(is_last) = session.claim() else { return };
        let step = Step::new(snapshot.clone(), plan.cloned());
        self.pending = Some(Pending { step, session: Arc::clone(session), is_last });
        if is_last && plan.is_none() {
            // Nobody will judge it.
            self.send_pending();
        }
    }
}

impl<P: Planner> Planner for Tapped<P> {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn plan(&mut self, snapshot: &Snapshot) -> Option<Plan> {
        if let Some(pending) = &mut self.pending {
            pending.step.took(&snapshot.step);
        }
        self.send_pending();
        let plan = self.inner.plan(snapshot);
        if let Some(session) = self.tap.current.load_full() {
            self.keep(&session, snapshot, plan.as_ref());
        }
        plan
    }

    fn judged(&mut self, judgement: Result<(), PlanError>) {
        if let Some(pending) = &mut self.pending {
            pending.step.judge(Some(judgement));
            if pending.is_last {
                self.send_pending();
            }
        }
        self.inner.judged(judgement);
    }

    fn stands(&self) -> bool {
        self.inner.stands()
    }
}

impl<P: Planner> Drop for Tapped<P> {
    fn drop(&mut self) {
        self.send_pending();
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use quern_scheduler::builtin::BuiltinPlanner;

    use super::*;
    use crate::fuzz::Fuzz;
    use crate::record::{Judged, Reader};

    fn drive(planner: &mut Tapped<BuiltinPlanner>, fuzz: &mut Fuzz, num_steps: usize) -> Vec<Snapshot> {
        let mut next = || {
            let snapshot = fuzz.next();
            let plan = planner.plan(&snapshot).unwrap();
            planner.judged(quern_scheduler::plan::check(&snapshot, &plan));
            snapshot
        };
        (0..num_steps).map(|_| next()).collect()
    }

    fn settled(recording: &Recording) -> Vec<Step> {
        while !recording.counts.has_ended() {
            std::thread::yield_now();
        }
        Reader::new(File::open(&recording.path).unwrap()).unwrap().map(Result::unwrap).collect()
    }

    #[test]
    fn recordings_begin_and_end_while_steps_go_on() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { queue: 1000, ..Limits::default() };
        let tap = Tap::default();
        let (mut planner, mut fuzz) = (tap.planner(BuiltinPlanner::default()), Fuzz::new(3));
        drive(&mut planner, &mut fuzz, 10);
        assert!(tap.status().is_none() && !tap.stop());

        let path = folder.path().join("one.rec");
        let one = tap.start(&path, None, limits).unwrap();
        let seen = drive(&mut planner, &mut fuzz, 20);
        let again = tap.start(&folder.path().join("two.rec"), None, limits);
        assert!(matches!(again, Err(StartError::Running(running)) if running == path));
        assert!(tap.stop());
        drive(&mut planner, &mut fuzz, 10);
        let steps = settled(&one);
        // The last one was not sent when it was told to stop.
        assert_eq!(steps.len(), 19);
        assert!(steps.iter().zip(&seen).all(|(step, seen)| step.snapshot == *seen));
        assert!(steps.iter().all(|step| step.judged == Judged::InForce));
        assert!(matches!(tap.start(&path, None, limits), Err(StartError::Create { .. })));
    }

    #[test]
    fn a_recording_of_some_steps_ends_with_the_last_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { queue: 1000, ..Limits::default() };
        let tap = Tap::default();
        let (mut planner, mut fuzz) = (tap.planner(BuiltinPlanner::default()), Fuzz::new(4));
        let some = tap.start(&folder.path().join("some.rec"), Some(12), limits).unwrap();
        let seen = drive(&mut planner, &mut fuzz, 12);
        // Whole although no step follows.
        let steps = settled(&some);
        assert_eq!(steps.len(), 12);
        assert_eq!((&steps[11].snapshot, steps[11].judged), (&seen[11], Judged::InForce));
        drive(&mut planner, &mut fuzz, 5);
        assert_eq!((some.counts.written(), some.counts.missed()), (12, 0));
        tap.start(&folder.path().join("next.rec"), None, limits).unwrap();
    }

    #[test]
    fn a_full_file_ends_the_recording() {
        let folder = tempfile::tempdir().unwrap();
        let limits = Limits { max_bytes: 5_000, queue: 1000 };
        let tap = Tap::default();
        let (mut planner, mut fuzz) = (tap.planner(BuiltinPlanner::default()), Fuzz::new(5));
        let full = tap.start(&folder.path().join("full.rec"), None, limits).unwrap();
        while !full.counts.has_ended() {
            drive(&mut planner, &mut fuzz, 1);
        }
        assert!(full.counts.is_full() && !full.counts.has_failed());
        assert_eq!(settled(&full).len() as u64, full.counts.written());
        assert!(!tap.stop());
    }
}
