//! A registry on a fake engine: bounds, the watched folder, and what bad files do.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use quern_engine::fake::{FakeConfig, FakeEngine};
use quern_gguf::tiny::{self, Arch, TinySpec};
use quern_scheduler::{AdapterSource, SchedulerConfig};
use tempfile::TempDir;

use super::labels::Labels;
use super::watch::Looks;
use super::*;
use crate::workers::{self, Parts, StartError};

#[path = "../../tests/http/peft.rs"]
#[allow(dead_code, reason = "written for the front end's tests, which use more of it")]
mod peft;

use peft::{Peft, weights_of};

/// A registry, and a folder that is not watched.
struct Bench {
    registry: Registry,
    dir: TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.registry.0.workers.stop();
    }
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.gguf");
        tiny::write(&path, &TinySpec::new(Arch::Qwen2, 7)).unwrap();
        let base = Base::new("base", &quern_gguf::Gguf::open(&path).unwrap(), quern_adapters::FileType::F16)
            .unwrap();
        let files = AdapterFiles::default();
        let scheduler = SchedulerConfig { adapters: files.clone(), ..SchedulerConfig::default() };
        let make = |_: &AtomicBool| -> Result<Parts, StartError> {
            let engine = Box::new(FakeEngine::new(FakeConfig::default()));
            Ok(Parts { engine, planner: None, drafter: None, reports: None })
        };
        let first = make(&AtomicBool::new(false)).unwrap();
        let workers =
            Workers::start(workers::Settings::default(), scheduler, first, Duration::ZERO, Box::new(make));
        Bench { registry: Registry::new(base, settings, files, workers.unwrap()), dir }
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.dir.path().join("adapters").join(name)
    }

    async fn load(&self, name: &str, path: &Path) -> Result<Arc<Version>, Error> {
        self.registry.load(order(name, path)).await
    }

    fn looks(&self) -> Looks {
        let watched = Watched { folder: Some(self.dir.path().join("adapters")), named: Vec::new() };
        Looks::new(self.registry.clone(), watched)
    }

    fn served(&self) -> Vec<(String, u64)> {
        let all = self.registry.list().into_iter();
        all.map(|one| (one.version.name.clone(), one.version.generation)).collect()
    }
}

fn order(name: &str, path: &Path) -> Order {
    Order {
        name: name.to_owned(),
        path: path.to_owned(),
        in_place: false,
        expected_generation: None,
        pin: None,
        origin: Origin::Operator,
    }
}

fn tier(bench: &Bench, name: &str) -> &'static str {
    bench.registry.get(name).unwrap().version.tier()
}

#[tokio::test]
async fn copies_keep_to_their_bound_and_the_oldest_goes() {
    let mut bench = Bench::new(Settings::default());
    let path = Peft::new(1).write(&bench.folder("one"));
    bench.load("probe", &path).await.unwrap();
    drop(bench.registry.lease("probe").await.unwrap());
    let one = bench.registry.memory_bytes();
    assert!(one > 0);

    bench = Bench::new(Settings { max_memory_bytes: 2 * one, ..Settings::default() });
    let path = Peft::new(1).write(&bench.folder("one"));
    for name in ["a", "b", "c"] {
        bench.load(name, &path).await.unwrap();
        assert_eq!(tier(&bench, name), "disk");
    }
    for name in ["a", "b", "a", "c"] {
        drop(bench.registry.lease(name).await.unwrap().unwrap());
        assert!(bench.registry.memory_bytes() <= 2 * one);
    }
    // `a` was asked for again: it was used later than `b`.
    assert_eq!(["a", "b", "c"].map(|name| tier(&bench, name)), ["memory", "disk", "memory"]);
    let order = Order { pin: Some(true), in_place: true, ..order("b", &path) };
    bench.registry.load(order).await.unwrap();
    for name in ["b", "a", "c", "a"] {
        drop(bench.registry.lease(name).await.unwrap().unwrap());
    }
    assert_eq!(tier(&bench, "b"), "memory", "a pinned one stays");
    assert!(bench.registry.unload("b", None).is_ok());
    assert!(bench.registry.memory_bytes() <= one);
}

#[tokio::test]
async fn a_version_goes_with_its_last_lease() {
    let bench = Bench::new(Settings::default());
    let path = Peft::classifier(1).write(&bench.folder("one"));
    let first = bench.load("a", &path).await.unwrap();
    let (id, files) = (first.id, bench.registry.0.files.clone());
    drop(first);
    let lease = bench.registry.lease("a").await.unwrap().unwrap();
    assert_eq!(lease.head().unwrap().labels, ["no", "yes"]);
    let second = bench.registry.load(Order { in_place: true, ..order("a", &path) }).await.unwrap();
    assert_eq!((lease.version().generation, second.generation), (1, 2));
    assert_ne!(lease.id(), second.id);
    assert!(format!("{files:?}").contains('2'), "both are offered to engines");
    assert_eq!(bench.registry.0.ids.lock().get(&id).map(String::as_str), Some("a"));
    drop(second);
    let drained = bench.registry.unload("a", Some(2)).unwrap();
    drained.wait().await;
    assert!(format!("{files:?}").contains('1'));
    drop(lease);
    assert!(format!("{files:?}").contains('0'));
    assert!(bench.registry.0.ids.lock().is_empty());
    assert!(bench.registry.lease("a").await.unwrap().is_none());
}

#[tokio::test]
async fn one_name_is_changed_by_one_at_a_time() {
    let bench = Bench::new(Settings { max_registered: 2, ..Settings::default() });
    let path = Peft::new(1).write(&bench.folder("one"));
    let changing = bench.registry.begin(&order("a", &path)).unwrap();
    assert!(matches!(bench.load("a", &path).await, Err(Error::Busy(name)) if name == "a"));
    drop(changing);
    bench.load("a", &path).await.unwrap();
    let in_place = Order { in_place: true, ..order("a", &path) };
    let changing = bench.registry.begin(&in_place).unwrap();
    bench.registry.unload("a", None).unwrap().wait().await;
    let found = bench.registry.base().look_at(&path).unwrap();
    // Whoever unloaded it meanwhile does not find it there again.
    assert!(matches!(bench.registry.commit(&in_place, &changing, found), Err(Error::Busy(_))));
    drop(changing);
    for name in ["a", "b"] {
        bench.load(name, &path).await.unwrap();
    }
    assert!(matches!(bench.load("c", &path).await, Err(Error::TooMany { max: 2 })));
    let tiny = Bench::new(Settings { max_resident_bytes: 100, ..Settings::default() });
    assert!(matches!(tiny.load("a", &path).await, Err(Error::TooLarge { max_bytes: 100, .. })));
}

#[tokio::test]
async fn a_folder_is_followed() {
    let bench = Bench::new(Settings::default());
    fs::create_dir_all(bench.folder("")).unwrap();
    Peft::new(1).write(&bench.folder("first"));
    fs::write(bench.folder(".hidden"), b"").unwrap();
    fs::write(bench.folder("notes.txt"), b"").unwrap();
    let mut looks = bench.looks();
    looks.look().await;
    assert_eq!(bench.served(), [("first".to_owned(), 1)], "what lies there at the start is served at once");

    // New, and broken: each once it stands still, and only once.
    Peft::new(2).write(&bench.folder("second"));
    fs::create_dir_all(bench.folder("empty")).unwrap();
    looks.look().await;
    assert_eq!(bench.served().len(), 1);
    for _ in 0..3 {
        looks.look().await;
        assert_eq!(bench.served(), [("first".to_owned(), 1), ("second".to_owned(), 1)]);
    }
    let failed = bench.registry.failed();
    assert!(matches!(&failed[..], [(name, why)] if name == "empty" && why.contains("adapter_config.json")));

    // Changed for the better, and for the worse.
    Peft::new(3).write(&bench.folder("first"));
    Peft::new(4).write(&bench.folder("empty"));
    fs::write(weights_of(&bench.folder("second")), b"short").unwrap();
    looks.look().await;
    looks.look().await;
    let expected = [("empty", 1), ("first", 2), ("second", 1)].map(|(name, n)| (name.to_owned(), n));
    assert_eq!(bench.served(), expected);
    assert!(bench.registry.failed().is_empty());
    assert!(bench.registry.get("second").unwrap().last_error.unwrap().contains("safetensors"));

    // Gone, and what an operator has under a name of the folder stays.
    let elsewhere = Peft::new(5).write(&bench.dir.path().join("elsewhere"));
    bench.load("third", &elsewhere).await.unwrap();
    Peft::new(6).write(&bench.folder("third"));
    for name in ["empty", "first"] {
        fs::remove_dir_all(bench.folder(name)).unwrap();
    }
    looks.look().await;
    assert_eq!(bench.served().len(), 4, "one look is not enough");
    looks.look().await;
    assert_eq!(bench.served(), [("second".to_owned(), 1), ("third".to_owned(), 1)]);
    assert_eq!(bench.registry.get("third").unwrap().version.found.path, elsewhere);
    fs::remove_dir_all(bench.folder("third")).unwrap();
    looks.look().await;
    looks.look().await;
    assert!(bench.registry.has("third"));
}

#[tokio::test]
async fn what_the_configuration_names_is_loaded_again_when_it_changes() {
    let bench = Bench::new(Settings::default());
    let path = Peft::new(1).write(&bench.dir.path().join("named"));
    let named = Named { name: "a".to_owned(), path: path.clone(), pin: true };
    let found = bench.registry.base().look_at(&path).unwrap();
    let order = Order { origin: Origin::Configuration, pin: Some(true), ..order("a", &path) };
    bench.registry.add(&order, found).unwrap();
    let mut looks = Looks::new(bench.registry.clone(), Watched { folder: None, named: vec![named] });
    for _ in 0..3 {
        looks.look().await;
    }
    assert_eq!(bench.served(), [("a".to_owned(), 1)]);
    Peft::new(2).write(&path);
    looks.look().await;
    looks.look().await;
    assert_eq!(bench.served(), [("a".to_owned(), 2)]);
    assert!(bench.registry.get("a").unwrap().version.is_pinned());
    fs::remove_dir_all(&path).unwrap();
    for _ in 0..3 {
        looks.look().await;
    }
    assert_eq!(bench.served(), [("a".to_owned(), 2)], "it is named, so it stays");
}

#[tokio::test]
async fn a_calibration_beside_a_file_is_followed_and_leaves_the_content() {
    let bench = Bench::new(Settings { max_memory_bytes: 0, ..Settings::default() });
    let folder = Peft::classifier(1).write(&bench.dir.path().join("one"));
    fs::create_dir_all(bench.folder("")).unwrap();
    let path = bench.folder("a.gguf");
    let adapter = quern_adapters::Adapter::open(&folder).unwrap();
    quern_adapters::convert(&adapter, "qwen2", quern_adapters::FileType::F16, &path).unwrap();
    let mut looks = bench.looks();
    looks.look().await;
    let temperature = || bench.registry.get("a").unwrap().version.found.temperature;
    let lease = bench.registry.lease("a").await.unwrap().unwrap();
    let content = Arc::clone(lease.content());
    let beside = quern_adapters::Calibration::path_of(&path);
    for (generation, content, expected) in [
        (2, Some(r#"{"temperature": 2.5}"#), 2.5),
        (3, Some(r#"{"temperature": 0.25}"#), 0.25),
        (4, None, 1.0),
    ] {
        match content {
            Some(content) => fs::write(&beside, content).unwrap(),
            None => fs::remove_file(&beside).unwrap(),
        }
        looks.look().await;
        looks.look().await;
        assert_eq!((bench.served(), temperature()), (vec![("a".to_owned(), generation)], expected));
    }
    drop(lease);
    assert!(content.prepare().is_ok(), "whoever began before has the same numbers to read");
}

#[test]
fn a_source_reads_what_was_loaded_or_nothing() {
    let bench = Bench::new(Settings { max_memory_bytes: 0, ..Settings::default() });
    let path = Peft::classifier(1).write(&bench.folder("one"));
    let found = bench.registry.base().look_at(&path).unwrap();
    let version = bench.registry.add(&order("a", &path), found).unwrap();
    let content = Arc::clone(Lease::new(version).content());
    let copy = content.prepare().unwrap();
    let read = quern_gguf::Gguf::open(content.prepared().unwrap().path()).unwrap();
    drop(copy);
    assert_eq!(read.tensors().len(), 8, "a pair for each of four modules");
    assert_eq!(quern_adapters::Head::from_metadata(read.metadata()).unwrap(), None, "engines need no head");
    assert!(content.prepared().is_none(), "there is no room for copies");
    Peft::classifier(2).write(&path);
    let told = content.prepare().err().unwrap();
    assert!(told.contains("has changed since it was loaded"), "{told}");
    fs::remove_dir_all(&path).unwrap();
    let told = content.prepare().err().unwrap();
    assert!(told.contains("No such file"), "{told}");
}

/// Engines take what is prepared and nothing else, so that this is all that keeps the
/// conversion from their threads.
#[tokio::test]
async fn leases_hold_content_ready_where_memory_does_not() {
    let bench = Bench::new(Settings { max_memory_bytes: 0, ..Settings::default() });
    let path = Peft::new(1).write(&bench.folder("one"));
    let version = bench.load("a", &path).await.unwrap();
    let lease = async || bench.registry.lease("a").await.unwrap().unwrap();
    assert!(version.content().prepared().is_none());
    let first = lease().await;
    let held = version.content().prepared().unwrap();
    assert_eq!((version.tier(), bench.registry.memory_bytes()), ("memory", 0));
    let second = lease().await;
    drop(first);
    let same = version.content().prepared().unwrap();
    assert!(Arc::ptr_eq(&held, &same), "it is made once for all who are served at a time");
    drop((held, same));
    assert!(version.content().prepared().is_some(), "the second one is served");
    drop(second);
    assert!(version.content().prepared().is_none());
    assert_eq!(version.tier(), "disk");

    // What an engine has serves on without its files.
    version.content().note_held(true);
    fs::remove_dir_all(&path).unwrap();
    assert!(!lease().await.is_ready());
    version.content().note_held(false);
    assert!(matches!(bench.registry.lease("a").await, Err(Error::Unusable { .. })));
}

#[test]
fn labels_are_few() {
    let labels = Labels::new(2);
    assert_eq!(
        ["a", "b", "c", "a", "d"].map(|name| labels.of(name).to_string()),
        ["a", "b", "other", "a", "other"]
    );
}
