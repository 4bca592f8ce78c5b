//! A server whose latencies are known: to hold a load generator's percentiles and its cost against.
//!
//! It answers like an OpenAI-compatible server that streams, after delays from a fixed sequence whose quantiles are
//! base + scale · −ln(1 − q): 40.8 ms at the median, 109.9 at the 95th and 158.2 at the 99th percentile with the
//! defaults. It knows no model, and serves a thread a connection, which is enough for some hundreds of requests a
//! second. Run it with `cargo run --release -p quern-bench --example known_latency -- --port 8099`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Parser;

/// A step that spreads a sequence's values most evenly: the golden ratio's fractional part.
const STEP: f64 = 0.618_033_988_749_894_9;

/// No delay is longer than that of this quantile.
const MAX_QUANTILE: f64 = 0.9999;

/// Serves answers after known delays.
#[derive(Parser, Debug, Clone)]
struct Args {
    /// Port on 127.0.0.1.
    #[arg(long, default_value_t = 8099)]
    port: u16,
    /// Shortest delay before the first token.
    #[arg(long, default_value_t = 20.0)]
    base_ms: f64,
    /// How far delays scatter above it; 0 for one fixed delay.
    #[arg(long, default_value_t = 30.0)]
    scale_ms: f64,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 8)]
    tokens: usize,
    /// Time between two tokens; with 0 they come as one piece.
    #[arg(long, default_value_t = 0.0)]
    gap_ms: f64,
}

impl Args {
    /// The delay of a request, by its number.
    fn delay(&self, number: u64) -> Duration {
        let quantile = (number as f64 * STEP).fract().min(MAX_QUANTILE);
        Duration::from_secs_f64((self.base_ms - self.scale_ms * (1.0 - quantile).ln()) / 1e3)
    }
}

fn main() -> std::io::Result<()> {
    let args = Args::parse();
    let listener = TcpListener::bind(("127.0.0.1", args.port))?;
    eprintln!("listening on http://{}", listener.local_addr()?);
    let count = Arc::new(AtomicU64::new(0));
    for stream in listener.incoming() {
        let (stream, args, count) = (stream?, args.clone(), Arc::clone(&count));
        // A client that hangs up ends its thread with an error, as it should.
        std::thread::spawn(move || serve(stream, &args, &count));
    }
    Ok(())
}

fn serve(mut stream: TcpStream, args: &Args, count: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut length = 0;
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            let line = line.trim_end().to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        reader.read_exact(&mut vec![0; length])?;
        if first.starts_with("GET") {
            let body = "{\"data\":[{\"id\":\"known-latency\"}]}";
            write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
            continue;
        }
        std::thread::sleep(args.delay(count.fetch_add(1, Ordering::Relaxed)));
        answer(&mut stream, args)?;
    }
}

/// Streams the tokens, the counts and the end.
fn answer(stream: &mut TcpStream, args: &Args) -> std::io::Result<()> {
    let token = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"tok \"}}]}\n\n";
    let end = format!(
        "data: {{\"choices\":[],\"usage\":{{\"prompt_tokens\":1,\"completion_tokens\":{}}}}}\n\ndata: [DONE]\n\n",
        args.tokens
    );
    let length = token.len() * args.tokens + end.len();
    let mut text =
        format!("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncontent-length: {length}\r\n\r\n");
    for token_idx in 0..args.tokens {
        if args.gap_ms > 0.0 && token_idx > 0 {
            stream.write_all(std::mem::take(&mut text).as_bytes())?;
            std::thread::sleep(Duration::from_secs_f64(args.gap_ms / 1e3));
        }
        text.push_str(token);
    }
    text.push_str(&end);
    stream.write_all(text.as_bytes())
}
