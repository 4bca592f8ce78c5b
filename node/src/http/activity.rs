//! Whether anything happens on one connection, so that an idle one is closed.
//!
//! HTTP/1 has hyper's own timer for the next request's headers; HTTP/2 has
//! none, and neither has the moment before the version is known.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use hyper::body::{Frame, SizeHint};

/// Counts a connection's requests.
#[derive(Debug, Default)]
pub(super) struct Activity {
    in_flight: AtomicUsize,
    begun: AtomicU64,
}

/// One request of a connection, until its answer's last byte or its drop.
#[derive(Debug)]
pub(super) struct InFlight(Arc<Activity>);

impl Activity {
    pub(super) fn begin(self: &Arc<Activity>) -> InFlight {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.begun.fetch_add(1, Ordering::AcqRel);
        InFlight(Arc::clone(self))
    }

    /// Requests begun so far, or `None` while one is in flight.
    pub(super) fn idle_since(&self) -> Option<u64> {
        (self.in_flight.load(Ordering::Acquire) == 0).then(|| self.begun.load(Ordering::Acquire))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::AcqRel);
    }
}

/// An answer's body that counts as in flight until it is sent or dropped.
pub(super) struct CountedBody {
    inner: Body,
    _in_flight: InFlight,
}

impl CountedBody {
    pub(super) fn new(inner: Body, in_flight: InFlight) -> CountedBody {
        CountedBody { inner, _in_flight: in_flight }
    }
}

impl hyper::body::Body for CountedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
