//! An importance matrix: how much each column of a matrix matters, by the inputs that a calibration text
//! sends through it.
//!
//! Read from llama.cpp's files, both as GGUF (`general.type` = `imatrix`) and in the older plain format, and
//! written as the former. Who measures it is not known here.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use quern_gguf::{Array, ByteStrings, Gguf, GgufError, GgufWriter, Problem, TensorInfo, TensorType, Value};

use crate::codec::{Codec, Plain};
use crate::error::PipelineError;

/// More than this is no importance matrix; a model of 70 billion weights has one of some 25 MB.
const MAX_BYTES: u64 = 1 << 30;

/// Mean squares of the inputs of each matrix, by the matrix's name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Importance {
    columns: HashMap<String, Vec<f32>>,
}

impl Importance {
    /// Reads a file.
    ///
    /// # Errors
    ///
    /// The file is unsound, or a value is no number or negative.
    pub fn read(path: &Path) -> Result<Importance, PipelineError> {
        let io = |error| PipelineError::Io { path: path.to_owned(), error };
        let bad = |reason: &str| PipelineError::Wish(format!("{}: {reason}", path.display()));
        let size_bytes = fs::metadata(path).map_err(io)?.len();
        if size_bytes > MAX_BYTES {
            return Err(bad("this is too large for an importance matrix"));
        }
        let mut magic = [0; 4];
        let is_gguf = size_bytes >= 4 && {
            std::io::Read::read_exact(&mut fs::File::open(path).map_err(io)?, &mut magic).map_err(io)?;
            &magic == b"GGUF"
        };
        let columns = if is_gguf {
            of_gguf(&Gguf::open(path)?)?
        } else {
            let bytes = fs::read(path).map_err(io)?;
            of_plain(&bytes).ok_or_else(|| bad("this is no importance matrix of llama.cpp"))?
        };
        if columns.is_empty() {
            return Err(bad("the importance matrix is empty"));
        }
        if columns.values().flatten().any(|value| !value.is_finite() || *value < 0.0) {
            return Err(bad("the importance matrix holds a value that is no number or negative"));
        }
        Ok(Importance { columns })
    }

    /// Puts a matrix together from the mean squares of each matrix's inputs.
    pub fn from_columns(columns: HashMap<String, Vec<f32>>) -> Importance {
        Importance { columns }
    }

    /// The importance of a tensor's columns, if it was measured.
    pub fn of(&self, tensor: &str) -> Option<&[f32]> {
        self.columns.get(tensor).map(Vec::as_slice)
    }

    /// How many tensors were measured.
    pub fn len(&self) -> usize {
        self.columns.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.columns.is_empty()
    }
}

/// What a calibration text sent through a model's matrices, as it was measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measured {
    /// For each matrix its name, the sum of squares of each column of its inputs, and how many inputs there
    /// were.
    pub inputs: Vec<(String, Vec<f64>, u64)>,
    /// What the text is called.
    pub dataset: String,
    /// How many pieces of it were read.
    pub num_chunks: u32,
    /// The length of a piece, in tokens.
    pub chunk_len: u32,
}

impl Measured {
    /// The importance of each matrix's columns: the means of the squares.
    pub fn importance(&self) -> Importance {
        let mean = |(name, sums, num_rows): &(String, Vec<f64>, u64)| {
            let mean = sums.iter().map(|sum| (sum / *num_rows as f64) as f32).collect();
            (name.clone(), mean)
        };
        let measured = self.inputs.iter().filter(|(_, _, num_rows)| *num_rows > 0);
        Importance::from_columns(measured.map(mean).collect())
    }

    /// Writes a GGUF file as llama.cpp's own tool does, which llama.cpp's quantiser and
    /// [`Importance::read`] read. It appears under its name only when it is whole. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// A name occurs twice, or the disk refused.
    pub fn write(&self, path: &Path) -> Result<(), PipelineError> {
        let writer = self.header().map_err(|problem| GgufError { path: path.to_owned(), problem })?;
        let mut stream = writer.create(path)?;
        for (name, sums, num_rows) in &self.inputs {
            let sums: Vec<u8> = sums.iter().flat_map(|sum| (*sum as f32).to_le_bytes()).collect();
            stream.write(&format!("{name}.in_sum2"), |out| out.write_all(&sums))?;
            let count = (*num_rows as f32).to_le_bytes();
            stream.write(&format!("{name}.counts"), |out| out.write_all(&count))?;
        }
        Ok(stream.finish()?)
    }

    fn header(&self) -> Result<GgufWriter, Problem> {
        let mut writer = GgufWriter::new();
        let datasets: ByteStrings = [self.dataset.as_str()].iter().collect();
        writer.set("general.type", "imatrix")?;
        writer.set("imatrix.datasets", Value::Array(Array::Strings(datasets)))?;
        writer.set("imatrix.chunk_count", self.num_chunks)?;
        writer.set("imatrix.chunk_size", self.chunk_len)?;
        for (name, sums, _) in &self.inputs {
            writer.tensor(&format!("{name}.in_sum2"), &[sums.len() as u64, 1], TensorType::F32)?;
            writer.tensor(&format!("{name}.counts"), &[1, 1], TensorType::F32)?;
        }
        Ok(writer)
    }
}

/// Sums of squares and how many inputs went into them, as two tensors for each matrix.
fn of_gguf(gguf: &Gguf) -> Result<HashMap<String, Vec<f32>>, PipelineError> {
    let bad = |reason: String| PipelineError::Wish(format!("{}: {reason}", gguf.path().display()));
    if gguf.str("general.type")? != "imatrix" {
        return Err(bad("this GGUF file is no importance matrix".into()));
    }
    let mut columns = HashMap::new();
    for tensor in gguf.tensors() {
        let Some(name) = tensor.name.strip_suffix(".in_sum2") else { continue };
        let counts = gguf.require_tensor(&format!("{name}.counts"))?;
        let (sums, counts) = (floats(gguf, tensor)?, floats(gguf, counts)?);
        if counts.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            return Err(bad(format!("the counts of {name} do not fit its sums")));
        }
        let row_len = sums.len() / counts.len();
        let mean = |(idx, sum): (usize, f32)| match counts[idx / row_len] {
            count if count > 0.0 => sum / count,
            _ => 1.0,
        };
        columns.insert(name.to_owned(), sums.into_iter().enumerate().map(mean).collect());
    }
    Ok(columns)
}

fn floats(gguf: &Gguf, tensor: &TensorInfo) -> Result<Vec<f32>, PipelineError> {
    let mut values = vec![0.0; tensor.num_elements() as usize];
    let codec = |error| PipelineError::Codec { tensor: tensor.name.clone(), error };
    Plain.decode(TensorType::F32, &gguf.read_tensor(tensor)?, &mut values).map_err(codec)?;
    Ok(values)
}

/// A count of entries; each a name, a number of calls, a number of values, and the values times the calls.
fn of_plain(bytes: &[u8]) -> Option<HashMap<String, Vec<f32>>> {
    let mut left = bytes;
    let mut take = |num_bytes: usize| {
        let (part, rest) = left.split_at_checked(num_bytes)?;
        left = rest;
        Some(part)
    };
    let number = |bytes: &[u8]| Some(i32::from_le_bytes(bytes.try_into().ok()?));
    let count = |bytes: &[u8]| usize::try_from(number(bytes)?).ok();
    let num_entries = count(take(4)?)?;
    let mut columns = HashMap::new();
    for _ in 0..num_entries {
        let name_len = count(take(4)?)?;
        let name = std::str::from_utf8(take(name_len)?).ok()?.to_owned();
        let num_calls = number(take(4)?)?;
        let num_values = count(take(4)?)?;
        let values = take(num_values.checked_mul(4)?)?;
        let divisor = if num_calls > 0 { num_calls as f32 } else { 1.0 };
        let value = |bytes: &[u8]| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) / divisor;
        columns.insert(name, values.chunks_exact(4).map(value).collect());
    }
    Some(columns)
}
