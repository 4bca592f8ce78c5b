//! Words that are wrong, and commands that serve nothing.

use std::net::TcpListener;

use crate::node::{command, file, quern, tiny_model, told};

/// Runs the program and expects this exit code, with all of these in what it says.
#[track_caller]
fn check(args: &[&str], code: i32, parts: &[&str]) {
    let (found, out, err) = told(&quern(args));
    assert_eq!(found, code, "{out}{err}");
    for part in parts {
        assert!(format!("{out}{err}").contains(part), "{part} is not in\n{out}{err}");
    }
}

#[test]
fn help_and_version_are_no_mistakes() {
    check(&["--version"], 0, &[env!("CARGO_PKG_VERSION")]);
    check(&["serve", "--help"], 0, &["--model", "--kv-capacity", "--admin-listen"]);
    check(
        &["pull", "--list"],
        0,
        &["qwen2.5-coder-0.5b-instruct-q4_k_m", "468 MiB", "(default)", "qwen3-8b-q8_0"],
    );
}

#[test]
fn wrong_words_exit_with_64() {
    check(&[], 64, &["Usage"]);
    check(&["serve", "--nonsense"], 64, &["--nonsense"]);
    check(&["serve", "--adapter", "a"], 64, &["--adapter a: write NAME=PATH"]);
    check(&["pull", "qwen3-0.6b"], 64, &["near it: qwen3-0.6b-q8_0"]);
    check(&["serve", "--model", "qwen9"], 64, &["model.name: no model is called qwen9"]);
    check(&["check", "--model", "/no/such.gguf"], 64, &["no such file: /no/such.gguf"]);
}

#[test]
fn settings_are_read_from_all_layers_and_all_mistakes_told() {
    let dir = tempfile::tempdir().unwrap();
    let good = file(dir.path(), "good.toml", "[scheduler]\nmax_queued = 1\nmax_running = 1\n");
    let output = command(&["serve", "--config", &good, "--max-running", "3", "--print-config"])
        .env("QUERN_SCHEDULER__MAX_RUNNING", "2")
        .env("QUERN_SCHEDULER__TOKEN_BUDGET", "99")
        .output()
        .unwrap();
    let (code, out, err) = told(&output);
    assert_eq!(code, 0, "{err}");
    let printed: toml::Table = out.parse().unwrap();
    let scheduler = &printed["scheduler"];
    assert_eq!(scheduler["max_queued"].as_integer(), Some(1));
    assert_eq!(scheduler["max_running"].as_integer(), Some(3));
    assert_eq!(scheduler["token_budget"].as_integer(), Some(99));

    let bad = file(dir.path(), "bad.toml", "[http]\nlisen = 1\n[scheduler]\nmax_queued = 0\n");
    let told_all = [bad.as_str(), "http.lisen: unknown field", "--log-format: logging.format"];
    check(&["serve", "--config", &bad, "--log-format", "xml"], 64, &told_all);
    check(&["serve", "--config", "/no/such.toml"], 64, &["/no/such.toml"]);
}

#[test]
fn a_port_in_use_is_named_with_its_key() {
    let (_dir, model) = tiny_model();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let model = model.to_str().unwrap();
    let parts = [address.as_str(), "http.listen: cannot listen on"];
    let args = ["serve", "--engine", "fake", "--model", model, "--listen", &address];
    check(&args, 1, &parts);
    let args = ["check", "--model", model, "--listen", "127.0.0.1:0", "--admin-listen", &address];
    check(&args, 1, &["admin.listen: cannot listen on", &address]);
}

#[test]
fn a_damaged_file_is_named_before_anything_is_served() {
    let (dir, model) = tiny_model();
    let whole = std::fs::read(&model).unwrap();
    let ports = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    for (name, bytes) in [
        ("cut.gguf", &whole[..whole.len() - 100]),
        ("short.gguf", &whole[..20]),
        ("foreign.gguf", &b"\x89PNG\r\n\x1a\n and so on and on"[..]),
        ("empty.gguf", &[]),
    ] {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let mut args = vec!["serve", "--model", path.to_str().unwrap()];
        args.extend(ports);
        check(&args, 1, &[name]);
    }
}

#[test]
fn check_opens_what_serving_would_open() {
    let (dir, model) = tiny_model();
    let model = model.to_str().unwrap();
    let args = ["check", "--model", model, "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"];
    check(&args, 0, &["[engine.llama]", "model tiny: qwen2", "files, model and ports are good"]);

    let keys = dir.path().join("keys").to_str().unwrap().to_owned();
    check(&[&args[..], &["--api-keys-file", &keys]].concat(), 1, &[&keys]);
    let cert = file(dir.path(), "cert.pem", "no certificate");
    check(&[&args[..], &["--tls-cert", &cert, "--tls-key", &cert]].concat(), 1, &[&cert]);
}
