//! `quern eval`: how good a model or an adapter is, and `quern importance`: what of a
//! model matters most. Offline: no scheduler and no HTTP.
//!
//! `--text` gives perplexity (`perplexity.rs`), `--csv` accuracy on labelled rows, by a
//! classification head (`pooled.rs`) or by how likely the model is to say each label
//! (`spoken.rs`, with the tokens that `/v1/classify` scores), and `--calibrate` fits a
//! classifier's temperature. What does the computing knows tokens and engines alone;
//! `subject.rs` opens models, `reading.rs` and `labelling.rs` put the parts together, and
//! `report.rs` says what came out.

mod confusion;
mod importance;
mod labelling;
mod perplexity;
mod pooled;
mod reading;
mod reference;
mod report;
mod scores;
mod spoken;
mod subject;
mod table;

use std::io;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use quern_adapters::{AdapterError, Fault, PipelineError};
use quern_engine::EngineError;
use quern_gguf::GgufError;
use quern_llama::LoadError;
use quern_models::ResolveError;
use quern_text::{TemplateError, TokenizerError};

use subject::Machine;

use crate::config::KvType;
use crate::serving;

pub use importance::{ImportanceArgs, importance, measure};
pub use reference::ReferenceError;
pub use table::TableError;

/// `quern eval`.
#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Models: names of the catalogue, or GGUF files. Several are held against the first.
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<String>,
    /// What to judge them by.
    #[command(flatten)]
    pub task: Task,
    /// An adapter to compute with: a PEFT folder, or a GGUF LoRA.
    #[arg(long, value_name = "PATH")]
    pub adapter: Option<PathBuf>,
    /// How a text is read.
    #[command(flatten)]
    pub reading: ReadingArgs,
    /// How rows are labelled.
    #[command(flatten)]
    pub labelling: LabellingArgs,
    /// Threads; one a core without it.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: u32,
    /// Layers on the GPU; all without it.
    #[arg(long, value_name = "N")]
    pub gpu_layers: Option<u32>,
    /// Format of keys and values.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = KvType::F16)]
    pub kv_type: KvType,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// What a model is judged by.
#[derive(Debug, Clone, Args)]
#[group(required = true, multiple = false)]
pub struct Task {
    /// Perplexity on this text.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Accuracy on the rows of this CSV file, by a classification head where there is one, else by how
    /// likely the model is to answer with each label.
    #[arg(long, value_name = "FILE")]
    pub csv: Option<PathBuf>,
    /// Fit a classifier's temperature on the rows of this CSV file, which it was not trained on, and write
    /// calibration.json beside the adapter (or beside the model whose head was merged into it).
    #[arg(long, value_name = "FILE")]
    pub calibrate: Option<PathBuf>,
}

/// How a text is read.
#[derive(Debug, Clone, Args)]
pub struct ReadingArgs {
    /// Tokens in a window.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = at_least(4))]
    pub context: u32,
    /// Tokens from one window's beginning to the next one's; as many as in a window without it.
    #[arg(long, value_name = "TOKENS", conflicts_with_all = ["csv", "calibrate"], value_parser = at_least(1))]
    pub stride: Option<u32>,
    /// Windows at most; all without it.
    #[arg(long, value_name = "N", conflicts_with_all = ["csv", "calibrate"], value_parser = at_least(1))]
    pub chunks: Option<u32>,
}

/// How rows are labelled.
#[derive(Debug, Clone, Args)]
pub struct LabellingArgs {
    /// The column with the texts.
    #[arg(long, value_name = "NAME", default_value = "text")]
    pub text_column: String,
    /// The column with the labels.
    #[arg(long, value_name = "NAME", default_value = "label")]
    pub label_column: String,
    /// Judge no more than so many rows.
    #[arg(long, value_name = "N", value_parser = at_least(1), conflicts_with = "text")]
    pub rows: Option<u32>,
    /// The system's message before each text, for models that answer with a label. {text} in it is the row's
    /// text, too, as in a classifier's messages.
    #[arg(long, value_name = "TEXT", conflicts_with = "text")]
    pub system: Option<String>,
    /// Whether the token that ends an answer is part of each label, for models that answer with one; where unset
    /// it is, if one label is the beginning of another.
    #[arg(long, value_name = "BOOL", conflicts_with = "text")]
    pub end_token: Option<bool>,
    /// A file with all labels, one a line or as JSON with id2label, for models that answer with one; those of
    /// all the CSV file's rows without it.
    #[arg(long, value_name = "FILE", conflicts_with = "text")]
    pub labels: Option<PathBuf>,
    /// Write the confusion matrix: as CSV where the name ends so, else as SVG. May be given twice.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "calibrate"])]
    pub confusion: Vec<PathBuf>,
    /// Write labels and probabilities of all rows as CSV, before any calibration.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "calibrate"])]
    pub predictions: Option<PathBuf>,
    /// Compare with labels and probabilities of another program: columns text, label, predicted, and one a label;
    /// rows as in the CSV file, of which --rows may leave out the last.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["text", "calibrate"])]
    pub reference: Option<PathBuf>,
}

/// Why nothing was judged.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    /// A wish that makes no sense.
    #[error("{0}")]
    Usage(&'static str),
    /// There is no such model.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// Nowhere to look for models.
    #[error("no cache folder: set QUERN_CACHE_DIR, or HOME")]
    NoCacheDir,
    /// The model's file is unsound.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// The model could not be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A text and its labels cannot be turned into tokens.
    #[error(transparent)]
    Wording(#[from] serving::Error),
    /// Its vocabulary cannot be used.
    #[error("tokenizer: {0}")]
    Tokenizer(#[from] TokenizerError),
    /// Its chat template cannot be used.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// It has no chat template, and is asked for answers.
    #[error("{}: the model has neither a classification head nor a chat template", path.display())]
    NoTemplate {
        /// The model.
        path: PathBuf,
    },
    /// It has no token that ends an answer.
    #[error("{}: the model has no token that ends an answer", path.display())]
    NoEnd {
        /// The model.
        path: PathBuf,
    },
    /// Its file has more or fewer tokens than its tokenizer.
    #[error("{}: logits for {model} tokens, and a tokenizer of {tokenizer}", path.display())]
    Vocabulary {
        /// The model.
        path: PathBuf,
        /// Length of a logits row.
        model: usize,
        /// Tokens that the tokenizer knows.
        tokenizer: usize,
    },
    /// The head that was merged into it is unsound.
    #[error("{}: the classification head: {fault}", path.display())]
    Head {
        /// The model.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// The adapter is unsound.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// The adapter does not fit, or could not be converted.
    #[error(transparent)]
    Convert(#[from] PipelineError),
    /// There is no place for temporary files.
    #[error("temporary files: {0}")]
    Temporary(io::Error),
    /// The computation failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The rows cannot be used.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The reference cannot be used.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is shorter than a window.
    #[error("{}: {tokens} tokens, and a window needs {context}", path.display())]
    TooShort {
        /// The text.
        path: PathBuf,
        /// Its tokens.
        tokens: usize,
        /// A window's.
        context: usize,
    },
    /// A window or a row is longer than any sequence of the model.
    #[error("{what} has {tokens} tokens; the model reads {limit} at most")]
    TooLong {
        /// What is too long, as a sentence's beginning.
        what: String,
        /// Its tokens.
        tokens: usize,
        /// The model's longest sequence.
        limit: usize,
    },
    /// The file with labels cannot be used.
    #[error("{}: {fault}", path.display())]
    Labels {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        fault: Fault,
    },
    /// The head takes a hidden state of another length.
    #[error("{}: the head takes {head} numbers, the model's hidden state has {model}", path.display())]
    HeadSize {
        /// The model.
        path: PathBuf,
        /// The length of the head's rows.
        head: u64,
        /// The model's width.
        model: u64,
    },
}

impl EvalError {
    /// Whether what was typed is at fault, and not a file or the machine.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, EvalError::Usage(_) | EvalError::Resolve(_))
    }
}

/// Judges models and prints what came out. Blocks.
///
/// # Errors
/// [`EvalError`].
pub fn eval(args: &EvalArgs) -> Result<(), EvalError> {
    let machine = Machine { threads: args.threads, gpu_layers: args.gpu_layers, kv_type: args.kv_type };
    let report = match &args.task {
        Task { text: Some(text), .. } => report::Report::Text(reading::run(args, text, &machine)?),
        Task { csv: Some(csv), .. } => report::Report::Labels(labelling::run(args, csv, &machine)?),
        Task { calibrate: Some(csv), .. } => {
            report::Report::Calibration(labelling::calibrate(args, csv, &machine)?)
        }
        Task { .. } => return Err(EvalError::Usage("say what to judge by: --text, --csv or --calibrate")),
    };
    print!("{}", if args.json { report.to_json() } else { report.to_string() });
    Ok(())
}

fn at_least(min: i64) -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(min..)
}

/// Drawn only on a terminal.
fn bar(total: usize, message: &str) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg}  {bar:30} {percent:>3} %  {eta:>4}");
    let style = style.expect("the template is sound");
    ProgressBar::new(total as u64).with_style(style).with_message(message.to_owned())
}
