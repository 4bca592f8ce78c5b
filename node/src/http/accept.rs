//! The accept loop: a place first, then a connection for it.
//!
//! A permit is taken before `accept`, so that a flood of connections waits in
//! the kernel and not in our memory. Each connection is one task: handshake,
//! then requests until it is idle, broken, or asked to end. Dropping the
//! future of a listener drops its connections, and with them what they asked.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::activity::{Activity, CountedBody};
use super::timed_io::TimedIo;
use super::{Node, ServeError, Settings, admin, record, route, tls};

/// How long a connection that was told to end may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(5);

/// HTTP/2 requests at once on one connection.
const MAX_STREAMS: u32 = 256;

/// Serves the public endpoints on a bound listener until `shutdown`, then until
/// the requests inside are answered. Drop the future to end sooner.
///
/// # Errors
/// [`ServeError`] when certificate or keys cannot be used; nothing was accepted.
pub async fn serve_public(
    listener: TcpListener,
    node: Arc<Node>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let router = route::public(node, &settings)?;
    Listener::new(listener, router, &settings, true)?.run(shutdown).await;
    Ok(())
}

/// Serves the operators' endpoints, in plain text and without keys: bind it to
/// an address that only operators reach.
///
/// # Errors
/// None at present; the signature is [`serve_public`]'s.
pub async fn serve_admin(
    listener: TcpListener,
    node: Arc<Node>,
    settings: Settings,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let router = admin::router(node, &settings);
    Listener::new(listener, router, &settings, false)?.run(shutdown).await;
    Ok(())
}

/// Accepts connections.
struct Listener {
    listener: TcpListener,
    /// One for each connection that may be open.
    places: Arc<Semaphore>,
    template: Connection,
}

/// What each connection needs to know.
#[derive(Clone)]
struct Connection {
    router: Router,
    builder: Arc<auto::Builder<TokioExecutor>>,
    tls: Option<TlsAcceptor>,
    header_timeout: Duration,
    idle_timeout: Duration,
    write_timeout: Duration,
    /// Tells open connections to finish what they have and end.
    ending: CancellationToken,
    /// Whether it is counted in the public metrics.
    counted: bool,
}

impl Listener {
    fn new(
        listener: TcpListener,
        router: Router,
        settings: &Settings,
        public: bool,
    ) -> Result<Listener, ServeError> {
        let tls = settings.tls.as_ref().filter(|_| public).map(tls::acceptor).transpose()?;
        Ok(Listener {
            listener,
            places: Arc::new(Semaphore::new(settings.max_connections)),
            template: Connection {
                router,
                builder: Arc::new(builder(settings)),
                tls,
                header_timeout: settings.header_timeout,
                idle_timeout: settings.idle_timeout,
                write_timeout: settings.write_timeout,
                ending: CancellationToken::new(),
                counted: public,
            },
        })
    }

    async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let stream = tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next() => continue,
                accepted = self.accept() => accepted,
            };
            let (stream, place) = stream;
            let connection = self.template.clone();
            connections.spawn(async move {
                connection.run(stream).await;
                drop(place);
            });
        }
        drop(self.listener);
        self.template.ending.cancel();
        while connections.join_next().await.is_some() {}
    }

    async fn accept(&self) -> (TcpStream, OwnedSemaphorePermit) {
        let place = Arc::clone(&self.places).acquire_owned().await.expect("the semaphore is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, _peer)) => return (stream, place),
                Err(error) if is_peers_fault(&error) => {}
                Err(error) => {
                    // Out of file descriptors, as a rule: trying at once would spin.
                    tracing::error!(%error, "cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

fn is_peers_fault(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

fn builder(settings: &Settings) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(settings.header_timeout)
        .max_buf_size(settings.max_header_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(MAX_STREAMS)
        .keep_alive_interval(settings.idle_timeout)
        .keep_alive_timeout(settings.header_timeout);
    builder
}

impl Connection {
    async fn run(self, stream: TcpStream) {
        let _open = self.counted.then(record::Connection::open);
        // Tokens go out one by one; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => self.serve(stream).await,
            Some(acceptor) => match timeout(self.header_timeout, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => self.serve(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "tls handshake failed"),
                Err(_) => tracing::debug!("tls handshake took too long"),
            },
        }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(&self, stream: S) {
        let activity = Arc::new(Activity::default());
        let service = service_fn(|request| answer(self.router.clone(), Arc::clone(&activity), request));
        let io = TokioIo::new(TimedIo::new(stream, self.header_timeout, self.write_timeout));
        let mut connection = std::pin::pin!(self.builder.serve_connection(io, service));

        let outcome = tokio::select! {
            outcome = connection.as_mut() => Some(outcome),
            () = self.ending.cancelled() => None,
            () = until_idle(&activity, self.idle_timeout) => {
                connection.as_mut().graceful_shutdown();
                timeout(GOODBYE, connection.as_mut()).await.ok()
            }
        };
        let outcome = match outcome {
            None if self.ending.is_cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
            None => return,
            Some(outcome) => outcome,
        };
        if let Err(error) = outcome {
            tracing::debug!(%error, "connection ended early");
        }
    }
}

/// Ends when no request was in flight, or begun, for `idle_timeout`.
async fn until_idle(activity: &Activity, idle_timeout: Duration) {
    let mut before = None;
    loop {
        sleep(idle_timeout).await;
        let now = activity.idle_since();
        if now.is_some() && now == before {
            return;
        }
        before = now;
    }
}

async fn answer(
    router: Router,
    activity: Arc<Activity>,
    request: Request<Incoming>,
) -> Result<Response<CountedBody>, Infallible> {
    let in_flight = activity.begin();
    let response = router.oneshot(request.map(Body::new)).await?;
    Ok(response.map(|body| CountedBody::new(body, in_flight)))
}
