//! Server-sent events: one for each token, written as soon as it is there.
//!
//! Each streamed answer has one task, which follows its generation and hands
//! pieces of text to the connection through a short channel. A client that
//! takes nothing for the write timeout, or hangs up, ends the task, and
//! dropping the generation frees its sequences.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Response;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue};
use bytes::{BufMut, BytesMut};
use futures_util::StreamExt;
use serde::Serialize;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::Instrument;

use super::record::Timer;
use super::reply::Problem;
use crate::serving::{Generation, Update, What};

/// Pieces that wait for the connection; more would only hide a slow client.
const PIECES: usize = 8;

/// Room for the events of a step or two.
const BUFFER_BYTES: usize = 4096;

/// Tells proxies not to collect events before they pass them on.
const ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// How an endpoint writes what happens.
pub(super) trait Shape: Send + 'static {
    /// Writes a choice's news as events.
    fn update(&mut self, update: Update, events: &mut Events);

    /// Writes what comes after the last choice's end, but for the closing mark.
    fn end(&mut self, generation: &Generation, events: &mut Events);
}

/// Events to be sent in one piece.
pub(super) struct Events(BytesMut);

impl Events {
    /// Appends an event.
    pub(super) fn push(&mut self, event: &impl Serialize) {
        self.0.put_slice(b"data: ");
        serde_json::to_writer((&mut self.0).writer(), event).expect("strings and numbers always serialise");
        self.0.put_slice(b"\n\n");
    }

    fn push_done(&mut self) {
        self.0.put_slice(b"data: [DONE]\n\n");
    }

    fn take(&mut self) -> Bytes {
        let piece = self.0.split().freeze();
        self.0.reserve(BUFFER_BYTES);
        piece
    }
}

/// Answers with a stream. The status line waits until the first choice leaves
/// the queue, so that a request that fails there gets its proper status.
///
/// # Errors
/// The failure of a request that never started.
pub(super) async fn respond(
    mut generation: Generation,
    mut shape: impl Shape,
    write_timeout: Duration,
    timer: Arc<Timer>,
) -> Result<Response<Body>, Problem> {
    let mut events = Events(BytesMut::with_capacity(BUFFER_BYTES));
    if let Some(first) = generation.next().await {
        match first {
            Update { what: What::Failed(error), .. } => return Err(error.into()),
            first => shape.update(first, &mut events),
        }
    }
    let (pieces, receiver) = mpsc::channel(PIECES);
    let pump = async move {
        pump(generation, shape, events, pieces, write_timeout).await;
        drop(timer);
    };
    tokio::spawn(pump.in_current_span());

    let stream = ReceiverStream::new(receiver).map(Ok::<Bytes, Infallible>);
    let mut response = Response::new(Body::from_stream(stream));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(ACCEL_BUFFERING, HeaderValue::from_static("no"));
    Ok(response)
}

async fn pump(
    mut generation: Generation,
    mut shape: impl Shape,
    mut events: Events,
    pieces: mpsc::Sender<Bytes>,
    write_timeout: Duration,
) {
    loop {
        let next = tokio::select! {
            biased;
            () = pieces.closed() => return tracing::debug!("the client hung up"),
            next = generation.next() => next,
        };
        let ended = next.is_none();
        let mut news = next;
        while let Some(update) = news {
            write(update, &mut shape, &mut events);
            news = generation.try_next();
        }
        if ended {
            shape.end(&generation, &mut events);
            events.push_done();
        }
        let piece = events.take();
        if !piece.is_empty() && pieces.send_timeout(piece, write_timeout).await.is_err() {
            return tracing::debug!("the client takes no events");
        }
        if ended {
            return;
        }
    }
}

fn write(update: Update, shape: &mut impl Shape, events: &mut Events) {
    match update.what {
        What::Failed(error) => {
            let problem = Problem::from(error);
            problem.record();
            events.push(&problem.object());
        }
        what => shape.update(Update { choice: update.choice, what }, events),
    }
}
