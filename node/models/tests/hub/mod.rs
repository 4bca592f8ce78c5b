//! A hub on this machine for tests: it redirects to its own storage path as the
//! real one does, states size and digest, and misbehaves as it is told.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use sha2::{Digest, Sha256};

/// What goes wrong with one request for bytes.
pub enum Fault {
    /// The connection ends after so many bytes of the body.
    DropAfter(usize),
    /// The whole file comes, whatever range was asked for.
    IgnoreRange,
    /// The right number of wrong bytes.
    WrongBytes,
    /// Only this status.
    Status(u16),
    /// One byte more than there should be.
    OneTooMany,
    /// After so many bytes somebody is told, and nothing more comes until the
    /// other side is gone.
    HoldAfter(usize, Sender<()>),
}

/// One request, as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub range_start: Option<usize>,
    pub token: Option<String>,
}

pub struct Hub {
    pub address: SocketAddr,
    state: Arc<State>,
}

struct State {
    bytes: Vec<u8>,
    states_digest: bool,
    /// Storage on another origin, as the real hub has it.
    storage: Mutex<Option<SocketAddr>>,
    faults: Mutex<VecDeque<Fault>>,
    seen: Mutex<Vec<Seen>>,
}

impl Hub {
    /// Serves one file under every repository and name.
    pub fn serve(bytes: &[u8], states_digest: bool) -> Hub {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("bound");
        let state = Arc::new(State {
            bytes: bytes.to_vec(),
            states_digest,
            storage: Mutex::new(None),
            faults: Mutex::default(),
            seen: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                // A client that is killed breaks the connection; that is no failure here.
                std::thread::spawn(move || answer(stream, &state).ok());
            }
        });
        Hub { address, state }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn fail_with(&self, faults: impl IntoIterator<Item = Fault>) {
        self.state.faults.lock().unwrap().extend(faults);
    }

    /// Redirects to another server's storage.
    pub fn store_at(&self, other: &Hub) {
        *self.state.storage.lock().unwrap() = Some(other.address);
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap().clone()
    }

    /// Where each request for bytes began.
    pub fn starts(&self) -> Vec<usize> {
        let stored = |seen: &Seen| seen.method == "GET" && seen.path.starts_with("/storage");
        self.seen().iter().filter(|s| stored(s)).map(|s| s.range_start.unwrap_or(0)).collect()
    }
}

fn answer(mut stream: TcpStream, state: &State) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let Some(seen) = read_request(&mut reader)? else {
            return Ok(());
        };
        state.seen.lock().unwrap().push(seen.clone());
        if seen.path.starts_with("/storage") {
            return send(&mut stream, state, &seen);
        }
        let storage = *state.storage.lock().unwrap();
        let location = storage.map_or("/storage".to_owned(), |other| format!("http://{other}/storage"));
        let mut head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n");
        if state.states_digest {
            let digest = sha256(&state.bytes);
            head += &format!("X-Linked-Size: {}\r\nX-Linked-Etag: \"{digest}\"\r\n", state.bytes.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
    }
}

fn read_request(reader: &mut impl BufRead) -> std::io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap(), words.next().unwrap());
    let mut seen = Seen { method, path, range_start: None, token: None };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(": ") else {
            return Ok(Some(seen));
        };
        match name.to_ascii_lowercase().as_str() {
            "range" => {
                let start = value.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap();
                seen.range_start = Some(start.parse().unwrap());
            }
            "authorization" => seen.token = Some(value.to_owned()),
            _ => {}
        }
    }
}

fn send(stream: &mut TcpStream, state: &State, seen: &Seen) -> std::io::Result<()> {
    let fault = if seen.method == "HEAD" { None } else { state.faults.lock().unwrap().pop_front() };
    if let Some(Fault::Status(status)) = fault {
        return write!(stream, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n");
    }
    let mut body = state.bytes.clone();
    let start = seen.range_start.filter(|_| !matches!(fault, Some(Fault::IgnoreRange)));
    let status = match start {
        Some(start) => {
            let size = body.len();
            body.drain(..start);
            format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", size - 1)
        }
        None => "200 OK".to_owned(),
    };
    match &fault {
        Some(Fault::WrongBytes) => body.iter_mut().for_each(|byte| *byte ^= 0x55),
        Some(Fault::OneTooMany) => body.push(0),
        _ => {}
    }
    let (sent, held) = match fault {
        Some(Fault::DropAfter(sent)) => (sent.min(body.len()), None),
        Some(Fault::HoldAfter(sent, told)) => (sent.min(body.len()), Some(told)),
        _ => (body.len(), None),
    };
    write!(stream, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len())?;
    stream.write_all(&body[..sent])?;
    if let Some(told) = held {
        stream.flush()?;
        told.send(()).ok();
        // Ends when the other side does.
        let _ended = stream.read(&mut [0]);
    }
    Ok(())
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that look like nothing else, the same every time.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}
