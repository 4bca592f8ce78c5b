//! The program's whole life: words become a configuration, a configuration a
//! node, and the node serves until it is told to end.
//!
//! Exit codes: 0 after a clean end, 64 for usage or configuration, 1 for
//! everything that goes wrong at run time.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::process::ExitCode;

use clap::Parser;
use quern::app::{App, AppError, Ended, look_for_adapters, pull_missing};
use quern::cli::{Cli, Command, PolicyCommand, PullArgs, ServeArgs, SettingsArgs, UsageError};
use quern::config::{Config, EngineKind, Layers};
use quern::eval::{EvalError, eval, importance, measure};
use quern::profile::{ProfileArgs, ProfileError};
use quern::record::record;
use quern::{logging, metrics};
use quern_adapters::cli as adapters;
use quern_models::{PullOptions, Terminal, catalog};
use quern_quant::Ggml;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: u8 = 64;
const FAILED: u8 = 1;

/// What ends the program early: the exit code, and the lines that are left to say.
struct Exit(u8, String);

fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(Cli { command: Command::Serve(args) }) => serve(&args),
        Ok(Cli { command: Command::Pull(args) }) => pull(&args),
        Ok(Cli { command: Command::Check(args) }) => check(&args),
        Ok(Cli { command: Command::Policy(args) }) => match args.command {
            PolicyCommand::Record(args) => record(&args).map_err(failed),
            PolicyCommand::Tools(command) => return quern_policy_tools::run(command),
        },
        Ok(Cli { command: Command::Adapter(args) }) => return adapters::adapter(&args, &Ggml),
        Ok(Cli { command: Command::Quantize(args) }) => return quantize(&args),
        Ok(Cli { command: Command::Prune(args) }) => return adapters::prune(&args, &Ggml),
        Ok(Cli { command: Command::Eval(args) }) => eval(&args).map_err(eval_failed),
        Ok(Cli { command: Command::Importance(args) }) => importance(&args).map_err(eval_failed),
        Ok(Cli { command: Command::Profile(args) }) => profile(&args),
        // Help and version are answers; the rest are mistakes, which clap explains itself.
        Err(words) => words.print().map_err(failed).and(match words.use_stderr() {
            true => Err(Exit(USAGE, String::new())),
            false => Ok(()),
        }),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Exit(code, lines)) => {
            if !lines.is_empty() {
                eprintln!("{}", lines.trim_end());
            }
            code.into()
        }
    }
}

/// Prints what was asked for. A reader who has seen enough, such as `head`, is no failure.
fn say(text: impl Display) -> Result<(), Exit> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Exit(FAILED, format!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

fn serve(args: &ServeArgs) -> Result<(), Exit> {
    let config = configure(&args.settings, |layers| args.apply(layers))?;
    if args.print_config {
        return say(config.to_toml().trim_end());
    }
    logging::init(config.logging.format, &config.logging.level).map_err(usage)?;
    look_for_adapters(&config).map_err(app_failed)?;
    pull_missing(&config, &Terminal::new()).map_err(app_failed)?;
    let metrics = metrics::install(engine_name(&config)).map_err(failed)?;
    let app = App::build(config).map_err(app_failed)?;
    let first_curl = args.first_curl || std::io::stdout().is_terminal();
    let ready = |address: SocketAddr, model: &str| {
        tracing::info!(model, "ready");
        if first_curl {
            print_first_curl(address, model);
        }
    };

    let runtime = runtime()?;
    let ended = runtime.block_on(async {
        let stop = stop_signal().map_err(failed)?;
        app.run(metrics, ready, stop).await.map_err(app_failed)
    })?;
    // Work that was given up may still hold a blocking thread; nobody waits for it.
    runtime.shutdown_background();
    match ended {
        Ended::Drained => Ok(()),
        Ended::CutOff => {
            Err(Exit(FAILED, "the drain timeout passed before all requests were answered".into()))
        }
    }
}

fn check(args: &ServeArgs) -> Result<(), Exit> {
    let config = configure(&args.settings, |layers| args.apply(layers))?;
    say(config.to_toml().trim_end())?;
    if args.print_config {
        return Ok(());
    }
    look_for_adapters(&config).map_err(app_failed)?;
    let app = App::build(config).map_err(app_failed)?;
    runtime()?.block_on(app.check()).map_err(app_failed)?;
    check_adapters(&app)?;
    let (model, gguf) = (app.model(), app.gguf());
    let architecture = gguf.architecture().map_err(failed)?;
    eprintln!(
        "model {}: {architecture}, {} tensors in {}",
        model.id,
        gguf.tensors().len(),
        model.path.display()
    );
    eprintln!("files, model and ports are good");
    Ok(())
}

/// Says what each adapter is, or what is wrong with it.
fn check_adapters(app: &App) -> Result<(), Exit> {
    let mut broken = String::new();
    for adapter in app.check_adapters().map_err(app_failed)? {
        let name = &adapter.name;
        match adapter.found {
            Ok(found) => {
                let labels =
                    found.head.map_or_else(String::new, |head| format!(", {} labels", head.labels.len()));
                let (rank, path) = (found.rank, found.path.display());
                eprintln!("adapter {name}: rank {rank}{labels}, {} bytes, in {path}", found.size_bytes);
            }
            // The node serves without what lies broken in its folder.
            Err(error) if !adapter.is_named => eprintln!("adapter {name} would not be served: {error}"),
            Err(error) => broken.push_str(&format!("adapter {name}: {error}\n")),
        }
    }
    if broken.is_empty() { Ok(()) } else { Err(Exit(FAILED, broken)) }
}

fn pull(args: &PullArgs) -> Result<(), Exit> {
    if args.list {
        for entry in catalog().entries() {
            let size = entry.size_bytes.map_or_else(|| "-".into(), |bytes| format!("{} MiB", bytes >> 20));
            let mark = if entry.default { "  (default)" } else { "" };
            say(format_args!(
                "{:42} {:>6} {:7} {size:>9}{mark}",
                entry.name, entry.parameters, entry.format
            ))?;
        }
        return Ok(());
    }
    let entry = match &args.name {
        None => catalog().default_entry(),
        Some(name) => catalog().get(name),
    };
    let Some(entry) = entry else {
        let name = args.name.as_deref().unwrap_or_default();
        let near = catalog().near(name).join(", ");
        let near = if near.is_empty() { near } else { format!(" (near it: {near})") };
        let why = format!("the catalogue has no model {name}{near}; quern pull --list shows all names");
        return Err(Exit(USAGE, why));
    };
    let options = PullOptions::from_env().map_err(failed)?;
    let options = PullOptions { verify: args.verify, ..options };
    let path = quern_models::pull(entry, &options, &Terminal::new()).map_err(failed)?;
    say(path.display())
}

/// The crate of the command knows no engines, so the measuring on one is brought to it.
fn quantize(args: &adapters::QuantizeArgs) -> ExitCode {
    adapters::quantize(args, &Ggml, &|model, text, chunks| {
        let measured = measure(model, text, chunks).map_err(|error| error.to_string())?;
        Ok(measured.importance())
    })
}

fn profile(args: &ProfileArgs) -> Result<(), Exit> {
    let config = configure(&args.settings, |layers| args.settings.apply(layers))?;
    say(quern::profile::profile(args, &config).map_err(profile_failed)?)
}

/// File, environment and flags become one configuration, or all their mistakes.
fn configure(
    settings: &SettingsArgs,
    flags: impl FnOnce(&mut Layers) -> Result<(), UsageError>,
) -> Result<Config, Exit> {
    let mut layers = Layers::default();
    if let Some(path) = &settings.config {
        let path_text = path.display().to_string();
        let text =
            std::fs::read_to_string(path).map_err(|e| Exit(USAGE, format!("--config {path_text}: {e}")))?;
        layers.file(&path_text, &text);
    }
    // Variables that are no text are none of ours.
    let variables =
        std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)));
    layers.variables(variables);
    flags(&mut layers).map_err(usage)?;
    layers.resolve().map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        Exit(USAGE, lines.join("\n"))
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Exit> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(failed)
}

/// Ready at the first SIGTERM or SIGINT; the second ends the process where it stands.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (told, stop) = tokio::sync::oneshot::channel();
    tokio::spawn(async move {
        let mut next = async || tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} };
        next().await;
        // Nobody listens when the node has ended by itself just now.
        let _ = told.send(());
        next().await;
        tracing::warn!("second signal: ending at once");
        std::process::exit(FAILED.into());
    });
    Ok(async move {
        let _ = stop.await;
    })
}

fn engine_name(config: &Config) -> &'static str {
    match config.engine.kind {
        EngineKind::Llama => "llama",
        EngineKind::Fake => "fake",
        EngineKind::Wgsl => "wgsl",
    }
}

fn print_first_curl(address: SocketAddr, model: &str) {
    let host = if address.ip().is_unspecified() { "127.0.0.1".into() } else { address.ip().to_string() };
    let host = if host.contains(':') { format!("[{host}]") } else { host };
    println!("\nServing {model}. Try:\n");
    println!(
        "  curl http://{host}:{}/v1/chat/completions -H 'Content-Type: application/json' -d '{{",
        address.port()
    );
    println!("    \"model\": \"{model}\", \"stream\": true, \"max_tokens\": 200,");
    println!("    \"messages\": [{{\"role\": \"user\", \"content\": \"Write a haiku about millstones.\"}}]");
    println!("  }}'\n");
}

fn usage(error: impl std::fmt::Display) -> Exit {
    Exit(USAGE, error.to_string())
}

fn failed(error: impl std::fmt::Display) -> Exit {
    Exit(FAILED, error.to_string())
}

fn app_failed(error: AppError) -> Exit {
    Exit(if error.is_usage() { USAGE } else { FAILED }, error.to_string())
}

fn profile_failed(error: ProfileError) -> Exit {
    Exit(if error.is_usage() { USAGE } else { FAILED }, error.to_string())
}

fn eval_failed(error: EvalError) -> Exit {
    Exit(if error.is_usage() { USAGE } else { FAILED }, error.to_string())
}
