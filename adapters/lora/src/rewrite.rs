//! The pipeline: reads a model row by row, changes rows, encodes them, and writes a new file.
//!
//! It holds a slab of rows at a time, so memory does not grow with the model. The file appears under its
//! name only when it is whole and durable.

use std::io;
use std::path::Path;
use std::thread;

use quern_gguf::{GgufError, GgufWriter, TensorInfo, TensorType, Value};

use crate::codec::{Codec, CodecError};
use crate::error::PipelineError;
use crate::importance::Importance;
use crate::mix::{FileType, Shape, types_for};
use crate::source::Source;

/// Elements in a slab: 16 MiB as f32.
const SLAB_ELEMENTS: u64 = 1 << 22;

/// Changes a model's rows on their way.
pub trait Change {
    /// What is done to a tensor's rows; none when it stays as it is.
    ///
    /// # Errors
    ///
    /// What the change needs could not be read.
    fn begin(&mut self, tensor: &TensorInfo) -> Result<Option<Box<dyn RowChange + '_>>, PipelineError>;

    /// Metadata that the change sets, above the model's own.
    fn entries(&self) -> Vec<(String, Value)> {
        Vec::new()
    }
}

/// Changes the rows of one tensor; they come in order.
pub trait RowChange {
    /// Changes whole rows of `row_len`, the first of which is row `first_row`.
    fn apply(&mut self, first_row: u64, row_len: usize, rows: &mut [f32]);
}

/// Changes nothing, as when a model is only quantised.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unchanged;

impl Change for Unchanged {
    fn begin(&mut self, _tensor: &TensorInfo) -> Result<Option<Box<dyn RowChange + '_>>, PipelineError> {
        Ok(None)
    }
}

/// What tensors are stored as.
#[derive(Clone, Copy, Debug)]
pub enum Types<'a> {
    /// As in the source.
    Kept,
    /// By the rules of a file type, weighed by an importance matrix where there is one.
    Of(FileType, Option<&'a Importance>),
}

/// How far a rewrite has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The tensor in work.
    pub tensor: &'a str,
    /// Elements of all tensors that are done.
    pub done: u64,
    /// Elements of all tensors.
    pub total: u64,
}

/// What a rewrite did.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// How many tensors the file has.
    pub num_tensors: usize,
    /// How many of them were changed or stored anew; the others are as they were, byte for byte.
    pub num_encoded: usize,
    /// How many of those were in blocks before and are again, and so lost something twice.
    pub num_requantised: usize,
    /// Bytes of the tensors before.
    pub bytes_before: u64,
    /// Bytes of the tensors after.
    pub bytes_after: u64,
}

/// Streams a model through a change into a new GGUF file. Blocks until it is written; `progress` is called
/// after every slab.
///
/// # Errors
///
/// The source is unsound, a number is none or too large for its type, or the disk refused. What was at
/// `out` is then still there.
pub fn rewrite(
    source: &dyn Source,
    change: &mut dyn Change,
    types: Types<'_>,
    codec: &dyn Codec,
    out: &Path,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Summary, PipelineError> {
    let kinds = kinds(source, types, codec)?;
    let writer = header(source, change, types, &kinds)
        .map_err(|problem| GgufError { path: out.to_owned(), problem })?;
    let mut stream = writer.create(out)?;
    let total = source.tensors().iter().map(TensorInfo::num_elements).sum();
    let mut summary = Summary {
        num_tensors: kinds.len(),
        num_encoded: 0,
        num_requantised: 0,
        bytes_before: source.tensors().iter().map(|tensor| tensor.size_bytes).sum(),
        bytes_after: 0,
    };
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let mut done = 0;
    for (tensor_idx, (tensor, &kind)) in source.tensors().iter().zip(&kinds).enumerate() {
        let rows_change = change.begin(tensor)?;
        let is_encoded = rows_change.is_some() || kind != tensor.kind;
        summary.num_encoded += usize::from(is_encoded);
        let is_quantised = tensor.kind.block_elements() > 1 && kind.block_elements() > 1;
        summary.num_requantised += usize::from(is_encoded && is_quantised);
        summary.bytes_after += size_bytes(tensor, kind)?;
        let mut flow = Flow {
            source,
            codec,
            tensor_idx,
            tensor,
            kind,
            importance: importance(types, tensor, kind)?,
            threads,
            after: &mut |elements| {
                done += elements;
                progress(Progress { tensor: &tensor.name, done, total });
            },
        };
        // The stream speaks io::Error; ours waits here until it has given up.
        let mut fault = None;
        let written = stream.write(&tensor.name, |out| {
            let flowed = if is_encoded { flow.encode(rows_change, out) } else { flow.copy(out) };
            flowed.map_err(|error| match error {
                FlowError::Write(error) => error,
                FlowError::Other(error) => {
                    fault = Some(error);
                    io::Error::other("the tensor could not be made")
                }
            })
        });
        if let Some(fault) = fault {
            return Err(fault);
        }
        written?;
    }
    stream.finish()?;
    Ok(summary)
}

fn kinds(source: &dyn Source, types: Types<'_>, codec: &dyn Codec) -> Result<Vec<TensorType>, PipelineError> {
    let tensors = source.tensors();
    let kinds = match types {
        Types::Kept => tensors.iter().map(|tensor| tensor.kind).collect(),
        Types::Of(file_type, importance) => {
            types_for(file_type, tensors, Shape::of(source.path(), source.metadata())?, importance.is_some())
        }
    };
    // Found before a long run, not in the middle of it.
    for (tensor, &kind) in tensors.iter().zip(&kinds) {
        if kind != tensor.kind && !codec.can_encode(kind) {
            return Err(PipelineError::NoType { tensor: tensor.name.clone(), kind });
        }
    }
    Ok(kinds)
}

fn size_bytes(tensor: &TensorInfo, kind: TensorType) -> Result<u64, PipelineError> {
    kind.size_bytes(&tensor.shape).map_err(|_| PipelineError::NoType { tensor: tensor.name.clone(), kind })
}

fn header(
    source: &dyn Source,
    change: &dyn Change,
    types: Types<'_>,
    kinds: &[TensorType],
) -> Result<GgufWriter, quern_gguf::Problem> {
    let mut own = change.entries();
    if let Types::Of(file_type, _) = types {
        own.push(("general.file_type".into(), file_type.number().into()));
        own.push(("general.quantization_version".into(), 2u32.into()));
    }
    let mut writer = GgufWriter::new();
    for (key, value) in source.metadata().iter() {
        if !own.iter().any(|(name, _)| name == key) {
            writer.set(key, value.clone())?;
        }
    }
    for (key, value) in own {
        writer.set(&key, value)?;
    }
    for (tensor, kind) in source.tensors().iter().zip(kinds) {
        writer.tensor(&tensor.name, &tensor.shape, *kind)?;
    }
    Ok(writer)
}

fn importance<'a>(
    types: Types<'a>,
    tensor: &TensorInfo,
    kind: TensorType,
) -> Result<Option<&'a [f32]>, PipelineError> {
    let Types::Of(_, Some(all)) = types else { return Ok(None) };
    let Some(values) = all.of(&tensor.name).filter(|_| kind != tensor.kind) else { return Ok(None) };
    let (expected, found) = (tensor.shape[0], values.len() as u64);
    if expected == found {
        return Ok(Some(values));
    }
    // A matrix of another model; the embedding's inputs are not hidden states, so it is never weighed.
    match tensor.name.as_str() {
        "token_embd.weight" => Ok(None),
        _ => Err(PipelineError::Importance { tensor: tensor.name.clone(), expected, found }),
    }
}

enum FlowError {
    Write(io::Error),
    Other(PipelineError),
}

impl From<PipelineError> for FlowError {
    fn from(error: PipelineError) -> FlowError {
        FlowError::Other(error)
    }
}

/// One tensor on its way.
struct Flow<'a> {
    source: &'a dyn Source,
    codec: &'a dyn Codec,
    tensor_idx: usize,
    tensor: &'a TensorInfo,
    kind: TensorType,
    importance: Option<&'a [f32]>,
    threads: usize,
    /// Told the elements of every slab that is done.
    after: &'a mut dyn FnMut(u64),
}

impl Flow<'_> {
    /// The bytes as they are.
    fn copy(&mut self, out: &mut dyn io::Write) -> Result<(), FlowError> {
        let kind = self.tensor.kind;
        let step = SLAB_ELEMENTS / kind.block_elements() * kind.block_bytes();
        let mut bytes = Vec::new();
        let mut start = 0;
        while start < self.tensor.size_bytes {
            let part = step.min(self.tensor.size_bytes - start);
            bytes.resize(part as usize, 0);
            self.source.read(self.tensor_idx, start, &mut bytes)?;
            out.write_all(&bytes).map_err(FlowError::Write)?;
            start += part;
            (self.after)(part / kind.block_bytes() * kind.block_elements());
        }
        Ok(())
    }

    /// Slab by slab: read, decode, change, encode, write.
    fn encode(
        &mut self,
        mut change: Option<Box<dyn RowChange + '_>>,
        out: &mut dyn io::Write,
    ) -> Result<(), FlowError> {
        let row_len = self.tensor.shape[0];
        let num_rows = self.tensor.num_elements() / row_len;
        let rows_at_once = (SLAB_ELEMENTS / row_len).max(1);
        let bytes_of =
            |kind: TensorType, rows: u64| row_len / kind.block_elements() * kind.block_bytes() * rows;
        let (mut bytes, mut rows, mut encoded) = (Vec::new(), Vec::new(), Vec::new());
        let mut first_row = 0;
        while first_row < num_rows {
            let count = rows_at_once.min(num_rows - first_row);
            bytes.resize(bytes_of(self.tensor.kind, count) as usize, 0);
            rows.resize((count * row_len) as usize, 0.0);
            encoded.resize(bytes_of(self.kind, count) as usize, 0);
            self.source.read(self.tensor_idx, bytes_of(self.tensor.kind, first_row), &mut bytes)?;
            self.in_parallel(count, &mut rows, &mut bytes, |rows, bytes| {
                self.codec.decode(self.tensor.kind, bytes, rows)
            })?;
            if let Some(change) = &mut change {
                change.apply(first_row, row_len as usize, &mut rows);
            }
            self.in_parallel(count, &mut rows, &mut encoded, |rows, bytes| {
                self.codec.encode(self.kind, rows, row_len as usize, self.importance, bytes)
            })?;
            out.write_all(&encoded).map_err(FlowError::Write)?;
            first_row += count;
            (self.after)(count * row_len);
        }
        Ok(())
    }

    /// Shares whole rows and their bytes among threads.
    fn in_parallel(
        &self,
        num_rows: u64,
        rows: &mut [f32],
        bytes: &mut [u8],
        work: impl Fn(&mut [f32], &mut [u8]) -> Result<(), CodecError> + Sync,
    ) -> Result<(), PipelineError> {
        let each = num_rows.div_ceil(self.threads as u64) as usize;
        let (row_len, row_bytes) = (rows.len() / num_rows as usize, bytes.len() / num_rows as usize);
        let work = &work;
        let worst = thread::scope(|scope| {
            let parts = rows.chunks_mut(each * row_len).zip(bytes.chunks_mut(each * row_bytes));
            let running: Vec<_> = parts.map(|(rows, bytes)| scope.spawn(move || work(rows, bytes))).collect();
            let results = running.into_iter().map(|one| one.join().expect("a codec does not panic"));
            results.collect::<Vec<_>>().into_iter().collect::<Result<(), CodecError>>()
        });
        worst.map_err(|error| PipelineError::Codec { tensor: self.tensor.name.clone(), error })
    }
}
