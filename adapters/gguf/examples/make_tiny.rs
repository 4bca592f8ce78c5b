//! Makes a tiny random model, or a synthetic one of a real shape.
//!
//!     cargo run --release -p quern-gguf --example make_tiny -- --arch qwen2 --seed 1 tiny.gguf
//!     cargo run --release -p quern-gguf --example make_tiny -- --shape qwen2.5-7b synthetic.gguf

use std::env;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use quern_gguf::TensorType;
use quern_gguf::tiny::{self, Arch, TinySpec};

const USAGE: &str = "usage: make_tiny [--arch qwen2|qwen3] [--seed N] [--type F32|F16|BF16|Q8_0] [--layers N]
                 [--hidden N] [--heads N] [--kv-heads N] [--ffn N] [--context N] [--tied] OUT
       make_tiny --shape qwen2.5-0.5b|qwen2.5-7b OUT";

struct Wish {
    spec: TinySpec,
    shape: Option<String>,
    out: PathBuf,
}

fn main() -> ExitCode {
    let wish = match parse(env::args().skip(1)) {
        Ok(wish) => wish,
        Err(complaint) => {
            eprintln!("{complaint}\n{USAGE}");
            return ExitCode::from(64);
        }
    };
    match make(&wish.out, &wish) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn make(out: &Path, wish: &Wish) -> Result<(), quern_gguf::GgufError> {
    match &wish.shape {
        Some(shape) => tiny::synthetic(out, shape)?,
        None => tiny::write(out, &wish.spec)?,
    }
    quern_gguf::check(out).map(|_| ())
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Wish, String> {
    let mut spec = TinySpec::new(Arch::Qwen2, 1);
    let (mut shape, mut out) = (None, None);
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--arch" => spec.arch = arch(&value()?)?,
            "--seed" => spec.seed = number(&value()?)?,
            "--type" => spec.kind = kind(&value()?)?,
            "--layers" => spec.layers = number(&value()?)?,
            "--hidden" => spec.hidden = number(&value()?)?,
            "--heads" => spec.heads = number(&value()?)?,
            "--kv-heads" => spec.kv_heads = number(&value()?)?,
            "--ffn" => spec.ffn = number(&value()?)?,
            "--context" => spec.context = number(&value()?)?,
            "--tied" => spec.tied = true,
            "--shape" => shape = Some(value()?),
            flag if flag.starts_with("--") => return Err(format!("{flag} is not known")),
            path if out.is_none() => out = Some(PathBuf::from(path)),
            extra => return Err(format!("{extra} is one path too many")),
        }
    }
    let out = out.ok_or("the path to write to is missing")?;
    Ok(Wish { spec, shape, out })
}

fn arch(text: &str) -> Result<Arch, String> {
    match text {
        "qwen2" => Ok(Arch::Qwen2),
        "qwen3" => Ok(Arch::Qwen3),
        _ => Err(format!("{text} is not an architecture")),
    }
}

fn kind(text: &str) -> Result<TensorType, String> {
    TensorType::all().find(|kind| kind.name() == text).ok_or_else(|| format!("{text} is not a type"))
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text} is not a number that fits"))
}
