//! Where requests wait for a policy's word on admission.
//!
//! A call may take its whole deadline, and calls take turns, so they are made on
//! a thread of their own: the threads that serve never wait for a guest. A
//! request waits for a bounded time in a bounded queue, and goes on as it is when
//! nobody had time for it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use metrics::counter;
use quern_extensions::{AdmissionRequest, Decision, Hook, NodeLoad, Slot};
use tokio::sync::oneshot;

/// Requests that may wait for an answer.
const QUEUE: usize = 1024;

/// How long a request waits beside what its own calls may take.
const PATIENCE: Duration = Duration::from_millis(250);

/// Tells what is wrong with a decision.
type Check = Box<dyn Fn(&Decision) -> Result<(), String> + Send>;

/// A request, and what it comes at.
pub(super) struct Question {
    request: AdmissionRequest,
    load: NodeLoad,
    check: Check,
}

impl Question {
    pub(super) fn new(request: AdmissionRequest, load: NodeLoad, check: Check) -> Question {
        Question { request, load, check }
    }
}

/// See the module's text. Cheap to clone; the thread ends with the last clone.
#[derive(Clone)]
pub(super) struct Desk {
    questions: SyncSender<(Question, oneshot::Sender<Option<Decision>>)>,
    patience: Duration,
}

impl Desk {
    /// # Errors
    /// The system's, when it gives no thread.
    pub(super) fn start(places: Arc<[Slot]>) -> io::Result<Desk> {
        let (questions, received) = sync_channel(QUEUE);
        // When two calls meet, the second waits for the first.
        let calls: Duration = places.iter().map(|slot| 2 * slot.deadline(Hook::Admission)).sum();
        std::thread::Builder::new()
            .name("quern-admission".into())
            .spawn(move || answer_all(&received, &places))?;
        Ok(Desk { questions, patience: PATIENCE + calls })
    }

    /// Waits for the first place that has an opinion.
    pub(super) async fn ask(&self, question: Question) -> Option<Decision> {
        let (reply, answer) = oneshot::channel();
        if self.questions.try_send((question, reply)).is_err() {
            counter!("quern_admission_unasked_total").increment(1);
            return None;
        }
        match tokio::time::timeout(self.patience, answer).await {
            Ok(answer) => answer.ok().flatten(),
            Err(_) => {
                counter!("quern_admission_unasked_total").increment(1);
                None
            }
        }
    }
}

fn answer_all(questions: &Receiver<(Question, oneshot::Sender<Option<Decision>>)>, places: &[Slot]) {
    while let Ok((question, reply)) = questions.recv() {
        // Who went on without an answer needs none.
        if !reply.is_closed() {
            // It may have gone on just now.
            let _ = reply.send(answer(&question, places));
        }
    }
}

fn answer(question: &Question, places: &[Slot]) -> Option<Decision> {
    let Question { request, load, check } = question;
    let mut asked = places.iter().filter(|slot| slot.serves(Hook::Admission));
    asked.find_map(|slot| slot.decide_if(request, load, check))
}
