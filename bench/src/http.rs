//! One HTTP/1.1 exchange. It knows addresses and bytes, and nothing of completions.
//!
//! Requests go to hyper directly, without redirects or cookies, because the client's cost is part of what is measured.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderName, HeaderValue};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Time to open a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why an exchange failed.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The request itself cannot be made.
    #[error("{reason}")]
    Unsendable {
        /// What is wrong with it.
        reason: String,
    },
    /// No connection.
    #[error("cannot connect to {authority}: {source}")]
    Connect {
        /// Host and port.
        authority: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The connection ended, or what came is no HTTP.
    #[error(transparent)]
    Exchange(#[from] hyper::Error),
}

/// Whether an error says that what came was no HTTP, in its head or in its body's framing.
pub fn is_broken(error: &hyper::Error) -> bool {
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    error.is_parse() || cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::InvalidInput)
}

/// Host and port of an `http` URL, and the path behind them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address<'a> {
    /// As the header `host` has it.
    pub authority: &'a str,
    path: &'a str,
}

impl<'a> Address<'a> {
    /// Takes a URL apart.
    ///
    /// # Errors
    /// When it does not begin with `http://` and a host.
    pub fn parse(url: &'a str) -> Result<Self, HttpError> {
        let unsendable = |reason: &str| HttpError::Unsendable { reason: format!("{url}: {reason}") };
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| unsendable("must begin with http:// (TLS is not measured)"))?;
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if authority.is_empty() {
            return Err(unsendable("names no host"));
        }
        Ok(Self { authority, path })
    }

    /// What to connect to; port 80 if the URL names none.
    fn endpoint(&self) -> String {
        let after_brackets = self.authority.rsplit(']').next().unwrap_or_default();
        match after_brackets.contains(':') {
            true => self.authority.to_owned(),
            false => format!("{}:80", self.authority),
        }
    }
}

/// Says why a header cannot be sent.
///
/// # Errors
/// When name or value hold what HTTP does not allow there.
pub fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let header_name = HeaderName::try_from(name).map_err(|error| format!("header {name:?}: {error}"))?;
    let value =
        HeaderValue::try_from(value).map_err(|error| format!("the value of header {name:?}: {error}"))?;
    Ok((header_name, value))
}

/// Sends requests on a connection, one after the other.
pub type Sender = http1::SendRequest<Full<Bytes>>;

/// Connects, sends a request to a path below the address, and waits for the response's head. Dropping the future, or
/// later the response, hangs up.
///
/// # Errors
/// When the request cannot be made, nobody listens, or what comes is no HTTP.
pub async fn send(
    url: &str,
    path: &str,
    headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: Option<Bytes>,
) -> Result<Response<Incoming>, HttpError> {
    let address = Address::parse(url)?;
    let request = request(&address, path, headers, body)?;
    Ok(connect(&address).await?.send_request(request).await?)
}

/// A request for a path below an address.
///
/// # Errors
/// When HTTP does not allow it.
pub fn request(
    address: &Address<'_>,
    path: &str,
    headers: impl IntoIterator<Item = (HeaderName, HeaderValue)>,
    body: Option<Bytes>,
) -> Result<Request<Full<Bytes>>, HttpError> {
    let unsendable = |reason: String| HttpError::Unsendable { reason };
    let method = if body.is_some() { "POST" } else { "GET" };
    let target = match format!("{}{path}", address.path) {
        empty if empty.is_empty() => "/".to_owned(),
        target => target,
    };
    let mut request = Request::builder()
        .method(method)
        .uri(target)
        .header(HOST, address.authority)
        .body(Full::new(body.unwrap_or_default()))
        .map_err(|error| {
            unsendable(format!("http://{}{}{path}: {error}", address.authority, address.path))
        })?;
    request.headers_mut().extend(headers);
    Ok(request)
}

/// Opens a connection. Dropping what sends on it, and what it sent last, closes it.
///
/// # Errors
/// When nobody listens.
pub async fn connect(address: &Address<'_>) -> Result<Sender, HttpError> {
    let connect_error = |source| HttpError::Connect { authority: address.authority.to_owned(), source };
    let stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(address.endpoint())).await;
    let stream =
        stream.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(connect_error)?;
    stream.set_nodelay(true).map_err(connect_error)?;
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // How it ends shows where a response is read.
    tokio::spawn(connection);
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_apart() {
        let parts = |url| {
            let address = Address::parse(url).unwrap();
            (address.authority, address.path, address.endpoint())
        };
        assert_eq!(parts("http://127.0.0.1:8080"), ("127.0.0.1:8080", "", "127.0.0.1:8080".to_owned()));
        assert_eq!(parts("http://host/a/b"), ("host", "/a/b", "host:80".to_owned()));
        assert_eq!(parts("http://[::1]/ready"), ("[::1]", "/ready", "[::1]:80".to_owned()));
        assert_eq!(parts("http://[::1]:81"), ("[::1]:81", "", "[::1]:81".to_owned()));
        for bad in ["https://host", "host:8080", "http://", "http:///v1"] {
            assert!(Address::parse(bad).unwrap_err().to_string().contains(bad));
        }
    }

    #[test]
    fn headers_that_http_does_not_allow_are_named() {
        assert!(header("X-Tenant", "shop").is_ok());
        assert!(header("X Tenant", "shop").unwrap_err().contains("\"X Tenant\""));
        assert!(header("X-Tenant", "a\nb").unwrap_err().contains("value of header \"X-Tenant\""));
    }
}
