//! Files that are no policies, or not the operator's: named, and nothing changes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use base64::Engine as _;
use common::evil::WASI;
use common::{NO_OPINION, Node, good_plan, guest, lenient, plan_of, snapshot};
use ed25519_dalek::{Signer as _, SigningKey};
use quern_extensions::inspect::NotAPolicy;
use quern_extensions::trust::{Digest, Untrusted};
use quern_extensions::watch::Looks;
use quern_extensions::{Hook, HookSet, LoadError, Settings, Source, Trust};

fn load(source: Source) -> Result<(), LoadError> {
    Node::new(lenient("refused")).slot.load(&source).map(drop)
}

fn bytes(wasm: Vec<u8>) -> Source {
    Source::Bytes { wasm, signature: None }
}

#[test]
fn an_import_of_wasi_is_named() {
    let wat = "(component
        (import \"wasi:cli/environment@0.2.0\" (instance))
        (import \"quern:policy/log@0.1.0\" (instance))
        (import \"quern:policy/files@0.1.0\" (instance)))";
    match load(bytes(wat::parse_str(wat).unwrap())) {
        Err(LoadError::NotAPolicy(NotAPolicy::Imports(names))) => {
            assert_eq!(names, ["wasi:cli/environment@0.2.0", "quern:policy/files@0.1.0"]);
        }
        other => panic!("{other:?}"),
    }
    let module = guest().import(WASI).with(Hook::Scheduler, NO_OPINION).module();
    match load(bytes(module)) {
        Err(LoadError::NotAPolicy(NotAPolicy::Encoding(why))) => {
            assert!(why.contains("wasi_snapshot_preview1"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn another_version_of_the_contract_is_named_with_ours() {
    let error = load(guest().package("0.2.0").with(Hook::Scheduler, NO_OPINION).source()).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("quern:policy@0.2.0") && text.contains("quern:policy@0.1.0"), "{text}");
    let found = "0.2.0".to_owned();
    assert!(matches!(error, LoadError::NotAPolicy(NotAPolicy::OtherVersion { found: f }) if f == found));
}

#[test]
fn what_has_no_hook_is_refused() {
    let without = load(bytes(wat::parse_str("(component)").unwrap()));
    assert!(matches!(without, Err(LoadError::NotAPolicy(NotAPolicy::NoLifecycle))), "{without:?}");
    let without = load(guest().source());
    assert!(matches!(without, Err(LoadError::NotAPolicy(NotAPolicy::NoHook))), "{without:?}");
    let settings = Settings { hooks: HookSet::NONE.with(Hook::Batcher), ..lenient("batcher only") };
    let unwanted = Node::new(settings).slot.load(&guest().with(Hook::Scheduler, NO_OPINION).source());
    assert!(matches!(unwanted, Err(LoadError::NoWantedHook)), "{unwanted:?}");
    let garbage = load(bytes(b"\x7fELF and so on".to_vec()));
    assert!(matches!(garbage, Err(LoadError::NotAPolicy(NotAPolicy::Malformed(_)))), "{garbage:?}");
}

#[test]
fn a_hook_of_another_shape_is_refused() {
    // As large as a policy, but its `plan-step` takes nothing.
    let wat = "(component
        (core module $m
          (memory (export \"memory\") 1)
          (func (export \"f\")))
        (core instance $i (instantiate $m))
        (func $f (canon lift (core func $i \"f\")))
        (instance $lifecycle (export \"init\" (func $f)) (export \"save\" (func $f)))
        (instance $scheduler (export \"plan-step\" (func $f)))
        (export \"quern:policy/lifecycle@0.1.0\" (instance $lifecycle))
        (export \"quern:policy/scheduler@0.1.0\" (instance $scheduler)))";
    let refused = load(bytes(wat::parse_str(wat).unwrap()));
    assert!(matches!(refused, Err(LoadError::Start(_) | LoadError::Compile(_))), "{refused:?}");
}

#[test]
fn a_file_replaced_half_way_leaves_the_old_version_serving() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.wasm");
    let mut node = Node::new(lenient("file"));
    std::fs::write(&path, guest().with(Hook::Scheduler, plan_of(&good_plan())).component()).unwrap();
    node.slot.load(&Source::File(path.clone())).unwrap();
    let mut looks = Looks::new(&node.slot, &path);
    for _ in 0..3 {
        assert!(looks.look().is_none(), "nothing changed");
    }

    let next = guest().named("second").with(Hook::Scheduler, NO_OPINION).component();
    // It grows from look to look: never at rest, never read.
    for part in 1..8 {
        std::fs::write(&path, &next[..next.len() * part / 16]).unwrap();
        assert!(looks.look().is_none());
    }
    // The writer stops half-way.
    let half = looks.look();
    assert!(matches!(half, Some(Err(LoadError::NotAPolicy(_)))), "{half:?}");
    assert!(looks.look().is_none(), "it is not tried again");
    assert_eq!(node.step(&snapshot(1, 1)), Some(good_plan()));

    std::fs::write(&path, &next).unwrap();
    assert!(looks.look().is_none());
    assert_eq!(looks.look().unwrap().unwrap().name, "second");
    assert_eq!(node.step(&snapshot(1, 1)), None);
    std::fs::remove_file(&path).unwrap();
    assert!(looks.look().is_none() && looks.look().is_none());
    assert!(node.slot.serves(Hook::Scheduler));
}

#[test]
fn pins_and_signatures_decide_over_files() {
    let wasm = guest().with(Hook::Scheduler, NO_OPINION).component();
    let key = SigningKey::from_bytes(&[3; 32]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.wasm");
    std::fs::write(&path, &wasm).unwrap();

    let trust = Trust {
        public_keys: vec![key.verifying_key().to_bytes()],
        require_signature: true,
        sha256: Some(Digest::of(&wasm).0),
    };
    let node = Node::new(Settings { trust, ..lenient("signed") });
    let unsigned = node.slot.load(&Source::File(path.clone()));
    assert!(matches!(unsigned, Err(LoadError::Untrusted(Untrusted::NoSignature))), "{unsigned:?}");
    let sig = folder.path().join("policy.wasm.sig");
    std::fs::write(&sig, SigningKey::from_bytes(&[4; 32]).sign(&wasm).to_bytes()).unwrap();
    let forged = node.slot.load(&Source::File(path.clone()));
    assert!(matches!(forged, Err(LoadError::Untrusted(Untrusted::BadSignature))), "{forged:?}");
    // A watcher tries again when the right signature comes after its file.
    let mut looks = Looks::new(&node.slot, &path);
    assert!(looks.look().is_none());
    assert!(matches!(looks.look(), Some(Err(LoadError::Untrusted(_)))));
    assert!(looks.look().is_none());
    let text = base64::engine::general_purpose::STANDARD.encode(key.sign(&wasm).to_bytes());
    std::fs::write(&sig, text).unwrap();
    assert!(looks.look().is_none());
    assert!(matches!(looks.look(), Some(Ok(_))));

    let other = guest().named("other").with(Hook::Scheduler, NO_OPINION).component();
    std::fs::write(&path, &other).unwrap();
    std::fs::write(&sig, key.sign(&other).to_bytes()).unwrap();
    let unpinned = node.slot.load(&Source::File(path));
    assert!(matches!(unpinned, Err(LoadError::Untrusted(Untrusted::OtherDigest { .. }))), "{unpinned:?}");
    assert_eq!(node.slot.digest(), Some(Digest::of(&wasm)));
}

#[test]
fn a_missing_and_an_oversized_file_are_refused() {
    let missing = load(Source::File("/nowhere/policy.wasm".into()));
    assert!(matches!(missing, Err(LoadError::Read { .. })), "{missing:?}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("huge.wasm");
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let huge = load(Source::File(path));
    assert!(matches!(huge, Err(LoadError::TooLarge { .. })), "{huge:?}");
}
