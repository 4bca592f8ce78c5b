//! The command `quern-bench`: reads its arguments and calls the library.
//!
//! Exit codes: 0 all is well; 1 answers were wrong, requests failed, or the run could not be made; 64 the
//! command line or the workload has a mistake.

use std::fmt::Display;
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, Parser, Subcommand};

use quern_bench::advise::{AdviseArgs, AdviseError, advise};
use quern_bench::check::Check;
use quern_bench::client::{Client, Server, check_url};
use quern_bench::cold_start::ColdStart;
use quern_bench::experiment::{self, ExperimentArgs, ExperimentError};
use quern_bench::kv_size::KvShape;
use quern_bench::lengths::Lengths;
use quern_bench::machine::{Machine, command_for_readers, now_utc};
use quern_bench::output::{FolderSink, NoSink, RunHeader, table, write_summary};
use quern_bench::plan::{PlanArgs, PlanError, plan};
use quern_bench::report::{ReportArgs, write_report};
use quern_bench::results::FORMAT;
use quern_bench::run::{RunPlan, Sink, run};
use quern_bench::workload::{Amount, Load, Workload, builtin_names};

const EXIT_USAGE: u8 = 64;

/// Workloads and load for any OpenAI-compatible server.
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Drives one or more servers with a workload, in turn.
    Run(Box<RunArgs>),
    /// Starts a server and measures how long until it is ready and until its first token, and its memory.
    ColdStart(ColdStartArgs),
    /// Starts nodes with the settings of a question, measures them, and leaves figures, a plot and a section.
    Experiment(Box<ExperimentArgs>),
    /// Tells how much memory keys and values take, by format and length, from a model file alone.
    KvSize {
        /// A GGUF file.
        model: PathBuf,
        /// Capacities in tokens, over all sequences.
        #[arg(long, value_delimiter = ',', default_values_t = [1024, 4096, 16_384, 65_536])]
        tokens: Vec<u64>,
    },
    /// Turns the results of a folder into one HTML page that needs nothing beside it, and into Markdown.
    Report(ReportArgs),
    /// Says how many of which machine carry a rate within a latency, and what that costs, from results and prices.
    Plan(PlanArgs),
    /// Says which format, cache, batching, speculation and way of serving adapters to use, each with the measurement
    /// behind it.
    Advise(AdviseArgs),
    /// Names the workloads that are part of this program.
    List,
}

#[derive(Args)]
struct RunArgs {
    /// A workload file, or the name of one that is part of this program.
    workload: String,
    /// Base address of a server (http, without path); several are driven in turn and compared with the first.
    #[arg(long = "url", required = true)]
    urls: Vec<String>,
    /// A name for each server, in their order.
    #[arg(long = "name")]
    names: Vec<String>,
    /// The model that requests name, one for all servers or one each; the first one listed otherwise.
    #[arg(long = "model")]
    models: Vec<String>,
    /// Bearer token, one for all servers or one each.
    #[arg(long = "api-key", env = "QUERN_BENCH_API_KEY", hide_env_values = true)]
    api_keys: Vec<String>,
    /// A shell command for each server, in their order, that prepares it before each of its phases. Two names for
    /// one address and two commands compare two settings of one process.
    #[arg(long = "prepare", value_name = "COMMAND")]
    prepare: Vec<String>,
    /// How often every server is measured at every level.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Folder for the results; without it the table is only printed.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Title of the results.
    #[arg(long)]
    title: Option<String>,
    /// Levels of clients (or of streams) instead of the workload's.
    #[arg(long, value_delimiter = ',')]
    clients: Vec<usize>,
    /// Levels of requests per second instead of the workload's.
    #[arg(long, value_delimiter = ',')]
    rates: Vec<f64>,
    /// Requests a level (or long prompts a round) instead of the workload's amount.
    #[arg(long, conflicts_with = "duration")]
    requests: Option<usize>,
    /// Seconds a level instead of the workload's amount.
    #[arg(long)]
    duration: Option<f64>,
    /// Largest number of tokens of an answer instead of the workload's.
    #[arg(long)]
    max_tokens: Option<u32>,
    /// Prompts from this CSV file instead of the workload's; same columns.
    #[arg(long)]
    csv: Option<String>,
    /// Take any answer for good, for models with random weights. Failed requests still fail the run.
    #[arg(long)]
    any_answer: bool,
    /// Requests before each phase that are not counted, instead of the workload's.
    #[arg(long)]
    warmup: Option<usize>,
    /// Seed of prompts' numbers and arrivals; taken from the clock otherwise, so that no cache knows the prompts.
    #[arg(long)]
    seed: Option<u64>,
    /// A line for the results' head: a server's version, its threads.
    #[arg(long = "note")]
    notes: Vec<String>,
}

#[derive(Args)]
struct ColdStartArgs {
    /// Answers 200 when the server is ready.
    #[arg(long)]
    ready_url: String,
    /// Base address of the OpenAI endpoints.
    #[arg(long)]
    url: String,
    /// Name in tables.
    #[arg(long, default_value = "server")]
    name: String,
    /// The model that the request names; the first one listed otherwise.
    #[arg(long)]
    model: Option<String>,
    /// Bearer token.
    #[arg(long, env = "QUERN_BENCH_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Starts that count; one more comes first.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds until a start counts as failed.
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Folder for the results; without it the table is only printed.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Program and arguments. It must be the server itself: its memory is read by its process id.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Why the program ends with another code than 0.
enum Trouble {
    Usage(String),
    Failed(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Trouble {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are printed like errors, but are none. A closed terminal is nobody's fault.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EXIT_USAGE) } else { ExitCode::SUCCESS };
        }
    };
    let result = match cli.command {
        Task::Run(args) => run_workload(*args),
        Task::ColdStart(args) => cold_start(args),
        Task::Experiment(args) => make_experiment(*args),
        // A file's error says its cause itself.
        Task::KvSize { model, tokens } => KvShape::read(&model)
            .map_err(|error| Trouble::Failed(anyhow::Error::msg(error.to_string())))
            .and_then(|shape| say(shape.table(&tokens).trim_end())),
        // A file's error says its cause itself.
        Task::Report(args) => write_report(&args)
            .map_err(|error| Trouble::Failed(anyhow::Error::msg(error.to_string())))
            .and_then(|paths| paths.iter().try_for_each(|path| say(path.display()))),
        Task::Plan(args) => {
            let text = plan(&args, &command_line()).map_err(|error| match error {
                PlanError::Usage(message) => Trouble::Usage(message),
                error => Trouble::Failed(anyhow::Error::msg(error.to_string())),
            });
            text.and_then(say)
        }
        Task::Advise(args) => {
            let text = advise(&args, &command_line()).map_err(|error| match error {
                AdviseError::Usage(message) => Trouble::Usage(message),
                AdviseError::Failed(error) => Trouble::Failed(error),
            });
            text.and_then(say)
        }
        Task::List => say(builtin_names().join("\n")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Trouble::Usage(message)) => {
            eprintln!("quern-bench: {message}");
            ExitCode::from(EXIT_USAGE)
        }
        Err(Trouble::Failed(error)) => {
            eprintln!("quern-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Prints what was asked for. A reader who has seen enough, such as `head`, is no failure.
fn say(text: impl Display) -> Result<(), Trouble> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        Err(error) => Err(Trouble::Failed(anyhow::anyhow!("cannot write to standard output: {error}"))),
        Ok(()) => Ok(()),
    }
}

fn run_workload(args: RunArgs) -> Result<(), Trouble> {
    let mut workload = Workload::find(&args.workload).map_err(|error| Trouble::Usage(error.to_string()))?;
    override_workload(&mut workload, &args).map_err(Trouble::Usage)?;
    let seed = args
        .seed
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()));
    // Files first: a mistake in one is told before any server is asked.
    let plan = RunPlan::new(workload, Vec::new(), args.rounds as usize, seed);
    let mut plan = plan.map_err(|error| Trouble::Usage(error.to_string()))?;
    plan.servers = servers_of(&args, &plan.workload)?;
    let workload = plan.workload.clone();
    let header = RunHeader {
        name: args.title.unwrap_or_else(|| workload.name.clone()),
        workload: workload.name.clone(),
        about: workload.about.clone(),
        date: now_utc(),
        command_line: command_line(),
        bench_version: env!("CARGO_PKG_VERSION").to_owned(),
        format: FORMAT,
        servers: plan
            .servers
            .iter()
            .map(|server| (server.name.clone(), format!("model `{}` at {}", server.model, server.url)))
            .collect(),
        seed,
        machine: Machine::read(),
        notes: args.notes,
    };
    let sink: Box<dyn Sink + Send> = match &args.out {
        Some(folder) => Box::new(FolderSink::create(folder, &header)?),
        None => Box::new(NoSink),
    };
    let outcome = run(plan, sink)?;
    say(table(&header, &outcome))?;
    if let Some(folder) = &args.out {
        write_summary(folder, &header, &outcome)?;
    }
    outcome.why_failed(&workload).map_or(Ok(()), |why| Err(Trouble::Failed(anyhow::Error::msg(why))))
}

fn make_experiment(args: ExperimentArgs) -> Result<(), Trouble> {
    let left = experiment::run(args, command_line()).map_err(|error| match error {
        ExperimentError::Usage(message) => Trouble::Usage(message),
        ExperimentError::Failed(error) => Trouble::Failed(error),
    })?;
    say(format_args!("{}\n{}", left.markdown, left.folder.display()))?;
    if left.failed.is_empty() {
        return Ok(());
    }
    Err(Trouble::Failed(anyhow::anyhow!("settings failed: {}", left.failed.join("; "))))
}

/// The command line without secrets.
fn command_line() -> String {
    let mut words: Vec<String> = std::env::args().collect();
    words[0] = "quern-bench".to_owned();
    for idx in 0..words.len() {
        if words[idx] == "--api-key" && idx + 1 < words.len() {
            words[idx + 1] = "…".to_owned();
        } else if words[idx].starts_with("--api-key=") {
            words[idx] = "--api-key=…".to_owned();
        }
    }
    command_for_readers(words.iter().map(String::as_str))
}

fn override_workload(workload: &mut Workload, args: &RunArgs) -> Result<(), String> {
    if let Some(max_tokens) = args.max_tokens {
        let lengths = Lengths::uniform(max_tokens, max_tokens);
        workload.max_tokens = lengths.map_err(|reason| format!("--max-tokens: {reason}"))?;
    }
    workload.warmup = args.warmup.unwrap_or(workload.warmup);
    if args.any_answer {
        workload.check = Check { max_error_share: workload.check.max_error_share, ..Check::default() };
    }
    if let Some(file) = &args.csv {
        if workload.prompts.csv.is_none() {
            return Err("--csv: this workload's prompts do not come from a CSV file".to_owned());
        }
        workload.prompts.csv = Some(file.clone());
    }
    if args.clients.contains(&0) || args.rates.iter().any(|rate| !rate.is_finite() || *rate <= 0.0) {
        return Err("--clients, --rates: every level must be above 0".to_owned());
    }
    let amount_wanted = match (args.requests, args.duration) {
        (Some(0), _) => return Err("--requests must be at least 1".to_owned()),
        (Some(requests), _) => Some(Amount::Requests(requests)),
        (None, Some(seconds)) if seconds > 0.0 => {
            let duration =
                Duration::try_from_secs_f64(seconds).map_err(|error| format!("--duration: {error}"))?;
            Some(Amount::Duration(duration))
        }
        (None, Some(_)) => return Err("--duration must be above 0".to_owned()),
        (None, None) => None,
    };
    let has_rates = !args.rates.is_empty();
    let has_clients = !args.clients.is_empty();
    match &mut workload.load {
        Load::Closed { clients, amount } if !has_rates => {
            *amount = amount_wanted.unwrap_or(*amount);
            if has_clients {
                clients.clone_from(&args.clients);
            }
        }
        Load::Open { rates, amount, .. } if !has_clients => {
            *amount = amount_wanted.unwrap_or(*amount);
            if has_rates {
                rates.clone_from(&args.rates);
            }
        }
        Load::Ramp { amount, .. } if !has_clients && !has_rates => *amount = amount_wanted.unwrap_or(*amount),
        Load::LongPrompt { streams, trials, .. } if !has_rates && args.duration.is_none() => {
            *trials = args.requests.unwrap_or(*trials);
            if has_clients {
                streams.clone_from(&args.clients);
            }
        }
        Load::Trace { .. } if !has_clients && !has_rates && amount_wanted.is_none() => {}
        _ => {
            return Err(
                "--clients, --rates, --requests or --duration do not fit this workload's load".to_owned()
            );
        }
    }
    Ok(())
}

/// The servers with their names and models. Asks each for its models, which also shows that it is there.
fn servers_of(args: &RunArgs, workload: &Workload) -> Result<Vec<Server>, Trouble> {
    if !args.names.is_empty() && args.names.len() != args.urls.len() {
        return Err(Trouble::Usage("--name: give none or one for each --url".to_owned()));
    }
    if !args.prepare.is_empty() && args.prepare.len() != args.urls.len() {
        return Err(Trouble::Usage("--prepare: give none or one for each --url".to_owned()));
    }
    for (flag, values) in [("--model", &args.models), ("--api-key", &args.api_keys)] {
        if values.len() > 1 && values.len() != args.urls.len() {
            return Err(Trouble::Usage(format!("{flag}: give none, one, or one for each --url")));
        }
    }
    let one_of = |values: &[String], idx: usize| values.get(idx).or(values.first()).cloned();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let client = Client::new(workload.stall_timeout, workload.request_timeout);
    let mut servers: Vec<Server> = Vec::new();
    for (idx, url) in args.urls.iter().enumerate() {
        let url = url.trim_end_matches('/').to_owned();
        check_url(&url).map_err(|error| Trouble::Usage(format!("--url {error}")))?;
        let name = args.names.get(idx).cloned().unwrap_or_else(|| format!("server {}", idx + 1));
        if servers.iter().any(|server| server.name == name) {
            return Err(Trouble::Usage(format!("--name {name}: given twice")));
        }
        let api_key = one_of(&args.api_keys, idx);
        let model = match one_of(&args.models, idx) {
            Some(model) => model,
            None => {
                let first = runtime.block_on(client.first_model(&url, api_key.as_deref()));
                first.map_err(anyhow::Error::msg)?
            }
        };
        let prepare = args.prepare.get(idx).cloned().filter(|command| !command.is_empty());
        servers.push(Server { name, url, model, api_key, prepare, headers: Vec::new() });
    }
    Ok(servers)
}

fn cold_start(args: ColdStartArgs) -> Result<(), Trouble> {
    let machine = Machine::read();
    let cold_start = ColdStart {
        name: args.name,
        ready_url: args.ready_url,
        url: args.url.trim_end_matches('/').to_owned(),
        model: args.model,
        api_key: args.api_key,
        command: args.command,
        rounds: args.rounds as usize,
        timeout: Duration::from_secs(args.timeout),
    };
    let starts = cold_start.measure()?;
    say(cold_start.table(&starts, &machine))?;
    if let Some(folder) = &args.out {
        cold_start.write(folder, &starts, &machine)?;
    }
    Ok(())
}
