//! Connections that stay open between requests, as clients of such servers keep them.
//!
//! The one that was used last is used again first, so that there are as many as there were requests at once. A server
//! may close one just as it is used again: then, and only then, a request is sent a second time, on a new connection.
//! It knows HTTP, by `http`, and nothing of completions; `client` reads the answers and says which connections to keep.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{HeaderName, HeaderValue};

use crate::http::{Address, HttpError, Sender, connect, is_broken, request};

/// Open connections that nobody uses, by host and port. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Connections {
    idle: Arc<Mutex<HashMap<String, Vec<Sender>>>>,
}

/// The connection that a response comes on.
#[derive(Debug)]
pub struct Lease {
    authority: String,
    sender: Sender,
    home: Connections,
}

impl Lease {
    /// Keeps the connection for other requests. Its response must have been read to the end.
    pub fn keep(self) {
        self.home.idle().entry(self.authority).or_default().push(self.sender);
    }
}

impl Connections {
    /// Sends a request to a path below a server's address, and waits for the response's head. Dropping the future, or
    /// later lease and response, hangs up.
    ///
    /// # Errors
    /// When the request cannot be made, nobody listens, or what comes is no HTTP.
    pub async fn send(
        &self,
        url: &str,
        path: &str,
        headers: &[(HeaderName, HeaderValue)],
        body: &Bytes,
    ) -> Result<(Response<Incoming>, Lease), HttpError> {
        let address = Address::parse(url)?;
        let request = || request(&address, path, headers.iter().cloned(), Some(body.clone()));
        let lease = |sender| Lease { authority: address.authority.to_owned(), sender, home: self.clone() };
        if let Some(mut sender) = self.take(address.authority).await {
            match sender.send_request(request()?).await {
                Ok(response) => return Ok((response, lease(sender))),
                Err(error) if is_broken(&error) => return Err(error.into()),
                // It was closed meanwhile.
                Err(_) => {}
            }
        }
        let mut sender = connect(&address).await?;
        let response = sender.send_request(request()?).await?;
        Ok((response, lease(sender)))
    }

    /// A connection that is open, as far as one can tell.
    async fn take(&self, authority: &str) -> Option<Sender> {
        loop {
            let popped = self.idle().get_mut(authority).and_then(Vec::pop);
            let mut sender = popped?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, HashMap<String, Vec<Sender>>> {
        // A map of whole connections is sound wherever its holder stopped.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
