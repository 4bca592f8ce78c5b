//! Servers on real sockets that do what a test tells them, byte by byte, and runs against them.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use quern_bench::client::Server;
use quern_bench::output::NoSink;
use quern_bench::run::{RunOutcome, RunPlan, run};
use quern_bench::workload::Workload;

pub const EVENT_STREAM: &str =
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// How many the server had before it.
    pub number: usize,
    /// Request line and headers, in lower case.
    pub head: String,
    pub body: String,
}

/// A server on a free port; it lives as long as the test program. `behave` answers a request on its connection;
/// where it says false or fails, the connection is closed.
pub fn serve(
    behave: impl Fn(&Request, &mut TcpStream) -> std::io::Result<bool> + Send + Sync + 'static,
) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (count, behave) = (Arc::new(AtomicUsize::new(0)), Arc::new(behave));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, count, behave) = (stream.unwrap(), Arc::clone(&count), Arc::clone(&behave));
            std::thread::spawn(move || {
                // A client that hangs up ends its connection's thread, as it should.
                while let Some((head, body)) = read_request(&mut stream) {
                    let request = Request { number: count.fetch_add(1, Ordering::SeqCst), head, body };
                    if !matches!(behave(&request, &mut stream), Ok(true)) {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// An address where nobody listens.
pub fn nobody() -> String {
    format!("http://{}", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap())
}

/// What a recording server saw.
pub type Seen = Arc<Mutex<Vec<Request>>>;

/// A server that streams well and keeps every request.
pub fn serve_and_record() -> (String, Seen) {
    let seen = Seen::default();
    let url = serve({
        let seen = Arc::clone(&seen);
        move |request, stream| {
            seen.lock().unwrap().push(request.clone());
            stream_well(request, stream)
        }
    });
    (url, seen)
}

fn read_request(stream: &mut TcpStream) -> Option<(String, String)> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?.to_lowercase();
    let length = head.split("content-length: ").nth(1)?.split('\r').next()?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some((head, String::from_utf8(body).ok()?))
}

/// Sends bytes as one chunk of the chunked encoding.
pub fn chunk(stream: &mut TcpStream, data: &[u8]) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n", data.len())?;
    stream.write_all(data)?;
    stream.write_all(b"\r\n")
}

pub fn delta(text: &str) -> String {
    format!("data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{text}\"}}}}]}}\n\n")
}

/// Three tokens, usage, the end. Events are cut in the middle.
pub fn stream_well(request: &Request, stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(EVENT_STREAM.as_bytes())?;
    let last = if request.body.contains("\"odd\"") { "!" } else { "." };
    let usage =
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5}}\n\ndata: [DONE]\n\n";
    let whole =
        [delta("Gr"), delta("üße").replace("\n\n", "\r\n\r\n"), delta(last), usage.to_owned()].concat();
    for part in whole.as_bytes().chunks(13) {
        chunk(stream, part)?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    Ok(true)
}

/// Six requests, two at a time.
pub const CLOSED: &str = "mode = \"closed\"\nclients = [2]\nrequests = 6";

/// The same, soon tired of servers that say nothing: for those alone, because on a busy machine a good server may
/// say nothing for as long.
pub const IMPATIENT: &str = "mode = \"closed\"\nclients = [2]\nrequests = 6\nstall_timeout_s = 0.3";

/// A workload with these tables and one prompt.
pub fn workload(top: &str, load: &str, check: &str) -> Workload {
    let text = format!(
        "name = \"probe\"\nmax_tokens = 8\n{top}\n[prompts]\ninline = [\"a\"]\n[load]\n{load}\n[check]\n{check}\n"
    );
    Workload::parse("probe.toml", &text, None).unwrap()
}

/// One round of a workload on these servers. The second server's requests name the model `odd`.
pub fn plan_of(workload: Workload, urls: &[String]) -> RunPlan {
    let server = |(idx, url): (usize, &String)| Server {
        name: format!("s{idx}"),
        url: url.clone(),
        model: if idx == 0 { "m" } else { "odd" }.to_owned(),
        ..Server::default()
    };
    let servers = urls.iter().enumerate().map(server).collect();
    RunPlan::new(workload, servers, 1, 1).unwrap()
}

pub fn plan(load: &str, check: &str, urls: &[String]) -> RunPlan {
    plan_of(workload("", load, check), urls)
}

/// Runs a plan; says also whether it passed.
pub fn run_of(plan: RunPlan) -> (RunOutcome, bool) {
    let workload = plan.workload.clone();
    let outcome = run(plan, Box::new(NoSink)).unwrap();
    let is_passed = outcome.is_passed(&workload);
    (outcome, is_passed)
}

pub fn outcome(load: &str, check: &str, urls: &[String]) -> (RunOutcome, bool) {
    run_of(plan(load, check, urls))
}

/// Answers with a JSON text.
pub fn send_json(stream: &mut TcpStream, json: &str) -> std::io::Result<bool> {
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: ";
    write!(stream, "{head}{}\r\n\r\n{json}", json.len())?;
    Ok(true)
}
