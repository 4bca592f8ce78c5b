//! A running `quern serve`, and words with its end.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};

use quern_gguf::tiny::{Arch, TinySpec, write};
use serde_json::Value;
use tempfile::TempDir;

/// Runs the program to its end, with an environment that has nothing of ours.
pub fn quern(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_quern"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("QUERN_") || name.starts_with("HF_")) {
            command.env_remove(name);
        }
    }
    command
}

/// Exit code, standard output, standard error.
pub fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// A folder with a tiny model in it.
pub fn tiny_model() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("tiny.gguf");
    write(&path, &TinySpec::new(Arch::Qwen2, 7)).unwrap();
    (dir, path)
}

/// A node that is ready. Ends with the test at the latest.
pub struct Node {
    child: Child,
    log: BufReader<ChildStderr>,
    pub public: String,
    pub admin: String,
    _dir: Option<TempDir>,
}

impl Node {
    /// Serves a tiny model on ports that the system chooses, and waits until it is ready.
    pub fn start(engine: &str, more: &[&str]) -> Node {
        let (dir, model) = tiny_model();
        let mut node = Node::serve(&model, engine, more);
        node._dir = Some(dir);
        node
    }

    /// As [`Node::start`], with this model.
    pub fn serve(model: &Path, engine: &str, more: &[&str]) -> Node {
        let mut args = vec!["serve", "--model", model.to_str().unwrap(), "--engine", engine];
        args.extend(["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--log-format", "json"]);
        args.extend(more);
        let mut child = command(&args).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        let mut node = Node { child, log, public: String::new(), admin: String::new(), _dir: None };
        let listening = node.wait_for("listening");
        let url = |key: &str| format!("http://{}", listening[key].as_str().unwrap());
        (node.public, node.admin) = (url("public"), url("admin"));
        node.wait_for("ready");
        node
    }

    /// Reads the log up to the line with this message.
    pub fn wait_for(&mut self, message: &str) -> Value {
        let mut read = String::new();
        loop {
            let mut line = String::new();
            if self.log.read_line(&mut line).unwrap() == 0 {
                panic!("the node ended before it said {message:?}:\n{read}");
            }
            read.push_str(&line);
            // A line that is no JSON is the last word of a node that could not start.
            let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
            if parsed["message"] == message {
                return parsed;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap().success());
    }

    /// Waits for its end: exit code, and what was left of the log.
    pub fn end(mut self) -> (i32, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code().unwrap(), rest)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of this text in this folder.
pub fn file(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
