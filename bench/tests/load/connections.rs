//! Connections: kept between requests, one for each where a workload says so, and opened again where a server closed.

use std::collections::HashSet;
use std::net::TcpStream;
use std::sync::{Arc, Mutex};

use crate::server::{CLOSED, Request, outcome, serve, stream_well};

/// Drives a server that answers so, and tells from how many connections how many requests came. All answers are good.
fn connections_of(
    load: &str,
    answer: impl Fn(&Request, &mut TcpStream) -> std::io::Result<bool> + Send + Sync + 'static,
) -> (usize, usize) {
    let seen = Arc::new(Mutex::new((HashSet::new(), 0)));
    let url = serve({
        let seen = Arc::clone(&seen);
        move |request, stream| {
            let mut seen = seen.lock().unwrap();
            seen.0.insert(stream.peer_addr()?.port());
            seen.1 += 1;
            drop(seen);
            answer(request, stream)
        }
    });
    let (outcome, is_passed) = outcome(load, "min_tokens = 5", &[url]);
    assert!(is_passed, "{:?}", outcome.phases);
    assert_eq!(outcome.phases[0].num_ok, 6);
    let seen = seen.lock().unwrap();
    (seen.0.len(), seen.1)
}

#[test]
fn connections_are_used_again() {
    let (connections, requests) = connections_of(CLOSED, stream_well);
    assert!(connections <= 2, "two clients need no more: {connections}");
    assert_eq!(requests, 6);
}

#[test]
fn a_workload_may_want_one_for_each_request() {
    let load = format!("{CLOSED}\nkeep_connections = false");
    assert_eq!(connections_of(&load, stream_well), (6, 6));
}

#[test]
fn a_connection_that_the_server_closed_is_opened_again() {
    let close = |request: &Request, stream: &mut TcpStream| stream_well(request, stream).map(|_| false);
    assert_eq!(connections_of(CLOSED, close), (6, 6));
}

#[test]
fn a_connection_that_closes_as_it_is_used_again_costs_no_request() {
    // The second request on a connection is read, and the connection closed without a word.
    let used = Mutex::new(HashSet::new());
    let closing = move |request: &Request, stream: &mut TcpStream| {
        let is_new = used.lock().unwrap().insert(stream.peer_addr()?.port());
        if is_new { stream_well(request, stream) } else { Ok(false) }
    };
    let (connections, requests) = connections_of(CLOSED, closing);
    assert_eq!(connections, 6);
    assert!((7..=10).contains(&requests), "those that were cut off came again: {requests}");
}
