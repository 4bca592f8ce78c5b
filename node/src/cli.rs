//! What can be typed: commands and flags, and how flags become settings.
//!
//! Flags are settings with a short name: each is handed on as text, and typed
//! and checked where file and environment are.

use std::path::{Path, PathBuf};

use clap::{Arg, ArgMatches, Args, Parser, Subcommand};

use crate::config::Layers;

/// Serves Qwen models over HTTP.
#[derive(Debug, Parser)]
#[command(name = "quern", version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model, fetching it first if need be.
    Serve(Box<ServeArgs>),
    /// Fetch a model of the catalogue to this machine.
    Pull(PullArgs),
    /// Write, check, measure and judge scheduling policies.
    Policy(PolicyArgs),
    /// Look at LoRA adapters, convert them, merge them into a base.
    Adapter(quern_adapters::cli::AdapterArgs),
    /// Store a model in another format.
    Quantize(quern_adapters::cli::QuantizeArgs),
    /// Set a model's smallest weights to zero.
    Prune(quern_adapters::cli::PruneArgs),
    /// Judge models and adapters: perplexity on a text, accuracy on labelled rows.
    Eval(Box<crate::eval::EvalArgs>),
    /// Measure what of a model matters on a text, for quantising it well.
    Importance(crate::eval::ImportanceArgs),
    /// Time each operation of a prefill and of decode steps, for Perfetto.
    Profile(Box<crate::profile::ProfileArgs>),
    /// Print the resolved configuration and check files, model and ports, without serving.
    Check(Box<ServeArgs>),
}

/// `quern policy`.
#[derive(Debug, Args)]
pub struct PolicyArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: PolicyCommand,
}

/// What can be done with policies.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// Keep steps of a node that serves.
    Record(crate::record::RecordArgs),
    /// What needs no node.
    #[command(flatten)]
    Tools(quern_policy_tools::PolicyCommand),
}

/// `quern serve` and `quern check`.
#[derive(Debug, Default, Args)]
pub struct ServeArgs {
    /// Print the resolved configuration as TOML, and do nothing else.
    #[arg(long)]
    pub print_config: bool,
    /// Print a first request to try when the model is ready, even if nobody seems to watch.
    #[arg(long)]
    pub first_curl: bool,
    /// An adapter to serve under NAME: a PEFT folder or a GGUF LoRA. Loaded again when it changes.
    #[arg(long, value_name = "NAME=PATH")]
    pub adapter: Vec<String>,
    /// A policy to run: a component, or a core module of the SDK. Loaded again when it changes.
    #[arg(long, value_name = "PATH")]
    pub policy: Vec<PathBuf>,
    /// All other settings.
    #[command(flatten)]
    pub settings: SettingsArgs,
}

/// Settings of a node, for whatever computes as one.
#[derive(Debug, Default, Args)]
pub struct SettingsArgs {
    /// Read settings from this TOML file; flags and QUERN_SECTION__KEY variables go before it.
    #[arg(long, value_name = "FILE", env = "QUERN_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set any key of the configuration, such as http.max_connections=100.
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Flags with a key of their own.
    #[command(flatten)]
    pub flags: Flags,
}

/// Flag, key, what its value is called, help. Each flag stands for one key.
#[rustfmt::skip]
const FLAGS: &[(&str, &str, &str, &str)] = &[
    ("model", "model.name", "NAME|PATH", "A name of the catalogue, or a GGUF file."),
    ("model-id", "model.id", "ID", "What clients call the model."),
    ("engine", "engine.kind", "llama|wgsl|fake", "What computes."),
    ("listen", "http.listen", "ADDR", "Address and port of the public endpoints."),
    ("admin-listen", "admin.listen", "ADDR", "Address and port of the operators' endpoints."),
    ("max-sequence-len", "engine.llama.max_sequence_len", "TOKENS", "Longest sequence; 0 is the model's own."),
    ("kv-capacity", "engine.llama.kv_capacity", "TOKENS", "Tokens of key-value state, all sequences together."),
    ("kv-type", "engine.llama.kv_type", "f32|f16|q8_0|q4_0", "Format of keys and values."),
    ("max-sequences", "engine.llama.max_sequences", "N", "Sequences at once."),
    ("flash-attention", "engine.llama.flash_attention", "auto|on|off", "Attention in one fused operation."),
    ("gpu-layers", "engine.llama.gpu_layers", "N", "Layers on the GPU; all without it."),
    ("split", "engine.llama.split", "none|layer|row", "How a model is spread over several GPUs."),
    ("threads", "engine.llama.threads", "N", "Threads for a step of one row; 0 is one a core."),
    ("threads-prefill", "engine.llama.threads_prefill", "N", "Threads for larger steps; 0 is one a core."),
    ("max-queued", "scheduler.max_queued", "N", "Requests that may be queued; further ones get 429."),
    ("max-running", "scheduler.max_running", "N", "Sequences that may run at once."),
    ("token-budget", "scheduler.token_budget", "ROWS", "Rows in a step."),
    ("target-step", "scheduler.target_step", "TIME", "How long a step should take while others decode."),
    ("speculation", "scheduler.speculation", "off|lookup|draft", "Where guesses at the next tokens come from."),
    ("draft-model", "scheduler.draft_model", "NAME|PATH", "The model that guesses."),
    ("workers-min", "workers.min", "N", "Workers at least; 0 frees the model when nobody needs it."),
    ("workers-max", "workers.max", "N", "Workers at most, each with a scheduler and an engine."),
    ("api-keys-file", "auth.api_keys_file", "FILE", "One API key a line."),
    ("tls-cert", "tls.cert", "FILE", "The certificate chain, PEM."),
    ("tls-key", "tls.key", "FILE", "Its private key, PEM."),
    ("log-format", "logging.format", "text|json", "How a log line looks."),
    ("log-level", "logging.level", "LEVEL", "error, warn, info, debug, trace, or a filter."),
    ("drain-timeout", "shutdown.drain_timeout", "TIME", "How long running requests may take to finish."),
];

/// Flags that stand for one key each, as they were given.
#[derive(Debug, Default)]
pub struct Flags {
    /// Flag, key and value.
    given: Vec<(&'static str, &'static str, String)>,
}

impl clap::Args for Flags {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(FLAGS.iter().map(|(flag, _, value, help)| {
            Arg::new(*flag).long(*flag).value_name(*value).help(*help).allow_hyphen_values(true)
        }))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Flags::augment_args(command)
    }
}

impl clap::FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Flags, clap::Error> {
        let mut flags = Flags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (flag, key, _, _) in FLAGS {
            if let Some(value) = matches.get_one::<String>(flag) {
                self.given.push((flag, key, value.clone()));
            }
        }
        Ok(())
    }
}

/// `quern pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// A name of the catalogue; the default model without it.
    pub name: Option<String>,
    /// Compute the file's digest even if it looks unchanged.
    #[arg(long)]
    pub verify: bool,
    /// Print the catalogue.
    #[arg(long)]
    pub list: bool,
}

/// A flag whose value cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UsageError {
    /// `--adapter` without `=`.
    #[error("--adapter {0}: write NAME=PATH")]
    Adapter(String),
    /// `--set` without `=`.
    #[error("--set {0}: write KEY=VALUE")]
    Set(String),
}

impl ServeArgs {
    /// Hands all flags to the configuration, above what is there.
    ///
    /// # Errors
    /// [`UsageError`] for the first that cannot be read.
    pub fn apply(&self, layers: &mut Layers) -> Result<(), UsageError> {
        for pair in &self.adapter {
            let (name, path) = pair.split_once('=').ok_or_else(|| UsageError::Adapter(pair.clone()))?;
            layers.adapter(name.trim(), Path::new(path.trim()));
        }
        self.policy.iter().for_each(|file| layers.policy(file));
        self.settings.apply(layers)
    }
}

impl SettingsArgs {
    /// Hands all flags to the configuration, above what is there.
    ///
    /// # Errors
    /// [`UsageError`] for the first that cannot be read.
    pub fn apply(&self, layers: &mut Layers) -> Result<(), UsageError> {
        for pair in &self.set {
            let (key, value) = pair.split_once('=').ok_or_else(|| UsageError::Set(pair.clone()))?;
            layers.flag("--set", key.trim(), value.trim());
        }
        for (flag, key, value) in &self.flags.given {
            layers.flag(&format!("--{flag}"), key, value.as_str());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::config::{Config, EngineKind};

    fn resolve(args: &[&str]) -> Result<Config, String> {
        let words = ["quern", "serve"].iter().chain(args);
        let cli = Cli::try_parse_from(words).map_err(|e| e.to_string())?;
        let Command::Serve(args) = cli.command else { panic!("serve was asked for") };
        let mut layers = Layers::default();
        args.apply(&mut layers).map_err(|e| e.to_string())?;
        layers.resolve().map_err(|errors| errors.iter().map(|e| format!("{e}\n")).collect())
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_a_key() {
        let args = ["--engine", "fake", "--listen", "0.0.0.0:1", "--set", "limits.max_n=2", "--gpu-layers=3"];
        let config = resolve(&args).expect("good");
        assert_eq!(config.engine.kind, EngineKind::Fake);
        assert_eq!(config.http.listen.to_string(), "0.0.0.0:1");
        assert_eq!(config.limits.max_n, 2);
        assert_eq!(config.engine.llama.gpu_layers, Some(3));

        // A key that does not exist would be told as an unknown field.
        for arg in Cli::command().find_subcommand("serve").expect("it exists").get_arguments() {
            let Some(flag) = arg.get_long().filter(|_| arg.get_action().takes_values()) else { continue };
            if !["config", "adapter", "policy", "set"].contains(&flag) {
                let told = resolve(&[&format!("--{flag}"), "\u{1}"]).err().unwrap_or_default();
                assert!(!told.contains("unknown field"), "{told}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused() {
        assert_eq!(resolve(&["--adapter", "a"]).unwrap_err(), "--adapter a: write NAME=PATH");
        let twice = resolve(&["--adapter", "a=b", "--adapter", "a=c"]).unwrap_err();
        assert!(twice.contains("adapter[1].name: another adapter has this name"), "{twice}");
        assert!(resolve(&["--adapter", "a b=c"]).unwrap_err().contains("cannot be an adapter's name"));
        let config = resolve(&["--adapter", "a=b/c=d"]).expect("good");
        assert_eq!(config.adapter, [crate::config::Adapter::of("a", "b/c=d".as_ref())]);
        let wrong = resolve(&["--engine", "wgsl", "--set", "engine.wgsl.max_rows=0"]).unwrap_err();
        assert!(wrong.contains("engine.wgsl.max_rows: max_rows is 0, but must be from 1"), "{wrong}");
        assert!(resolve(&["--set", "x"]).unwrap_err().contains("KEY=VALUE"));
    }
}
