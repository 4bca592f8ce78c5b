//! A socket that does not wait for ever.
//!
//! hyper times a request's headers and we time its body, but nobody times the
//! first bytes of a connection, from which the HTTP version is told, nor a
//! client that takes no bytes of its answer. Both end here in `TimedOut`.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// HTTP/2's preface, the longest that is read to tell the version.
const PREFACE_BYTES: usize = 24;

/// Wraps a stream with two timers.
pub(super) struct TimedIo<S> {
    inner: S,
    /// Runs until the preface is read or something is written.
    opening: Option<Pin<Box<Sleep>>>,
    read_bytes: usize,
    /// Runs while a write is pending.
    stalled: Option<Pin<Box<Sleep>>>,
    write_timeout: Duration,
}

impl<S> TimedIo<S> {
    pub(super) fn new(inner: S, opening_timeout: Duration, write_timeout: Duration) -> TimedIo<S> {
        let opening = Some(Box::pin(sleep_until(Instant::now() + opening_timeout)));
        TimedIo { inner, opening, read_bytes: 0, stalled: None, write_timeout }
    }

    /// Passes a write's outcome on, unless it has been pending for too long.
    fn timed<T>(&mut self, cx: &mut Context<'_>, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if outcome.is_ready() {
            self.opening = None;
            self.stalled = None;
            return outcome;
        }
        let deadline = Instant::now() + self.write_timeout;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client reads nothing")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedIo<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let outcome = Pin::new(&mut self.inner).poll_read(cx, buf);
        let Some(opening) = &mut self.opening else { return outcome };
        match outcome {
            Poll::Ready(Ok(())) => {
                let read = buf.filled().len() - before;
                self.read_bytes += read;
                if self.read_bytes >= PREFACE_BYTES || read == 0 {
                    self.opening = None;
                }
                outcome
            }
            Poll::Ready(Err(_)) => outcome,
            Poll::Pending => {
                ready!(opening.as_mut().poll(cx));
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client sends nothing")))
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.timed(cx, outcome)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A plain socket's flush is always ready, also while a write is pending:
        // it must not stop the clock.
        match Pin::new(&mut self.inner).poll_flush(cx) {
            Poll::Ready(outcome) => Poll::Ready(outcome),
            Poll::Pending => self.timed(cx, Poll::Pending),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.timed(cx, outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.timed(cx, outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
