//! A file in a model repository on a hub that speaks Hugging Face's protocol.
//!
//! The hub answers for large files with a redirect to a storage host, and says in
//! the headers of that first answer what the file is: `X-Linked-Size` and, as
//! `X-Linked-Etag`, its sha256. Redirects are followed here and not by the HTTP
//! client, so that these headers are seen and the token stays with the hub.

use std::io::Read;

use ureq::http::{Response, Uri};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::catalog::is_sha256;
use crate::error::{AttemptError, PullError, SourceError};
use crate::part::{Expected, Part};
use crate::progress::Progress;
use crate::pull::PullOptions;

const MAX_REDIRECTS: usize = 5;
const BUFFER_BYTES: usize = 256 * 1024;

/// One hub, for one pull.
pub(crate) struct Hub<'a> {
    agent: Agent,
    options: &'a PullOptions,
}

/// What the hub says about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remote {
    url: String,
    size_bytes: Option<u64>,
    sha256: Option<String>,
}

/// How one request for bytes went wrong.
enum Broken {
    /// Asking again may help.
    Passing(String),
    /// It will not.
    Final(AttemptError),
}

impl<'a> Hub<'a> {
    pub(crate) fn new(options: &'a PullOptions) -> Hub<'a> {
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_resolve(Some(options.connect_timeout))
            .timeout_connect(Some(options.connect_timeout))
            .timeout_recv_response(Some(options.stall_timeout))
            .timeout_per_read(Some(options.stall_timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("quern/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Hub { agent, options }
    }

    /// Asks what the hub knows of a file. A host that does not answer fails at once.
    pub(crate) fn look_up(&self, repo: &str, file: &str) -> Result<Remote, SourceError> {
        let url = format!("{}/{repo}/resolve/main/{file}", self.options.hub_endpoint);
        let mut remote = Remote { url: url.clone(), size_bytes: None, sha256: None };
        let mut at = url;
        for _ in 0..=MAX_REDIRECTS {
            // A host that is not the hub only stores: what it says is no statement.
            if !self.is_hub(&at) {
                return Ok(remote);
            }
            let mut request = self.agent.head(&at);
            if let Some(token) = &self.options.hub_token {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| unreachable(&e))?;
            remote.size_bytes =
                remote.size_bytes.or_else(|| header(&response, "x-linked-size")?.parse().ok());
            remote.sha256 = remote.sha256.or_else(|| stated_digest(header(&response, "x-linked-etag")?));
            match response.status().as_u16() {
                // Some mirrors serve files and do not know HEAD.
                200 | 405 | 501 => return Ok(remote),
                301 | 302 | 303 | 307 | 308 => at = redirect(&at, &response)?,
                status => return Err(SourceError::Status { status }),
            }
        }
        Err(SourceError::Protocol("it redirects in circles".into()))
    }

    /// Appends what the part is missing, taking the connection up again when it breaks.
    pub(crate) fn fill(
        &self,
        part: &mut Part,
        remote: &Remote,
        progress: &dyn Progress,
    ) -> Result<(), AttemptError> {
        let mut fruitless = 0;
        while !part.is_complete() {
            let before = part.len();
            let why = match self.stream(part, &remote.url, progress) {
                Ok(()) if part.is_complete() => break,
                Ok(()) => "the answer ended early".to_owned(),
                Err(Broken::Passing(why)) => why,
                Err(Broken::Final(error)) => return Err(error),
            };
            fruitless = if part.len() > before { 0 } else { fruitless + 1 };
            if fruitless >= self.options.max_fruitless_attempts {
                let why = format!("{why} ({} bytes are kept for the next time)", part.len());
                return Err(SourceError::Unreachable(why).into());
            }
            progress.note(&format!("{why}; going on at byte {}", part.len()));
            std::thread::sleep(self.options.retry_delay * fruitless);
        }
        Ok(())
    }

    /// One request: from the part's end to wherever the answer ends.
    fn stream(&self, part: &mut Part, url: &str, progress: &dyn Progress) -> Result<(), Broken> {
        let response = self.get(url, part.len())?;
        let size_bytes = part.expected().size_bytes;
        match response.status().as_u16() {
            206 if range_start(&response) == Some(part.len()) => {}
            206 => return Err(protocol("it sent another range than it was asked for")),
            // The whole file, asked for or not.
            200 => part.cut(0).map_err(local)?,
            416 => {
                part.cut(0).map_err(local)?;
                return Err(Broken::Passing("it does not know the range".into()));
            }
            status @ (408 | 429 | 500..=599) => return Err(Broken::Passing(format!("status {status}"))),
            status => return Err(Broken::Final(SourceError::Status { status }.into())),
        }
        let mut reader = response.into_body().into_reader();
        let mut buffer = vec![0; BUFFER_BYTES];
        loop {
            let num_read = reader.read(&mut buffer).map_err(|e| Broken::Passing(e.to_string()))?;
            if num_read == 0 {
                return Ok(());
            }
            if part.len() + num_read as u64 > size_bytes {
                part.cut(0).map_err(local)?;
                return Err(protocol("it sent more than the file has"));
            }
            part.append(&buffer[..num_read]).map_err(local)?;
            progress.at(part.len(), size_bytes);
        }
    }

    /// Asks for the bytes from `start`, through redirects. Storage addresses are
    /// signed and run out, so every request begins at the hub.
    fn get(&self, url: &str, start: u64) -> Result<Response<Body>, Broken> {
        let mut at = url.to_owned();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(&at);
            if start > 0 {
                request = request.header("Range", format!("bytes={start}-"));
            }
            if let Some(token) = self.options.hub_token.as_ref().filter(|_| self.is_hub(&at)) {
                request = request.header("Authorization", format!("Bearer {token}"));
            }
            let response = request.call().map_err(|e| Broken::Passing(unreachable(&e).to_string()))?;
            match response.status().as_u16() {
                301 | 302 | 303 | 307 | 308 => {
                    at = redirect(&at, &response).map_err(|e| Broken::Final(e.into()))?;
                }
                _ => return Ok(response),
            }
        }
        Err(protocol("it redirects in circles"))
    }

    fn is_hub(&self, url: &str) -> bool {
        origin(url).is_some_and(|here| Some(here) == origin(&self.options.hub_endpoint))
    }
}

/// What the file must be: the catalogue's word, which the hub may not contradict,
/// or else the hub's.
pub(crate) fn agree(pinned: Option<Expected>, remote: &Remote) -> Result<Expected, SourceError> {
    let Some(pinned) = pinned else {
        let stated = remote.size_bytes.zip(remote.sha256.clone());
        let (size_bytes, sha256) = stated.ok_or(SourceError::Unverifiable)?;
        return Ok(Expected { size_bytes, sha256 });
    };
    if let Some(actual) = remote.size_bytes.filter(|size| *size != pinned.size_bytes) {
        let (actual, expected) = (actual.to_string(), pinned.size_bytes.to_string());
        return Err(SourceError::OtherFile { what: "size", actual, expected });
    }
    if let Some(actual) = remote.sha256.clone().filter(|digest| *digest != pinned.sha256) {
        return Err(SourceError::OtherFile { what: "sha256", actual, expected: pinned.sha256 });
    }
    Ok(pinned)
}

fn unreachable(error: &ureq::Error) -> SourceError {
    SourceError::Unreachable(error.to_string())
}

fn protocol(why: &str) -> Broken {
    Broken::Final(SourceError::Protocol(why.to_owned()).into())
}

fn local(error: PullError) -> Broken {
    Broken::Final(error.into())
}

fn header<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// An entity tag that is a sha256. Small files have other tags, which say nothing here.
fn stated_digest(etag: &str) -> Option<String> {
    let digest = etag.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
    is_sha256(&digest).then_some(digest)
}

fn range_start(response: &Response<Body>) -> Option<u64> {
    header(response, "content-range")?.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

/// Where an answer redirects to.
fn redirect(from: &str, response: &Response<Body>) -> Result<String, SourceError> {
    let to = header(response, "location").unwrap_or_default();
    let target = if to.starts_with('/') && !to.starts_with("//") {
        origin(from).map(|origin| format!("{origin}{to}"))
    } else {
        origin(to).map(|_| to.to_owned())
    };
    let target = target.ok_or_else(|| SourceError::Protocol(format!("it redirects to {to:?}")))?;
    if from.starts_with("https:") && !target.starts_with("https:") {
        return Err(SourceError::Protocol("it redirects from https to http".into()));
    }
    Ok(target)
}

/// `scheme://host:port` of an absolute address.
fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    matches!(scheme, "http" | "https").then(|| format!("{scheme}://{authority}"))
}
