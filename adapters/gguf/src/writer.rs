//! Writes GGUF files: the header from what was declared, then the data of one tensor after the other.
//!
//! A file appears under its name only when it is whole: it is written beside it and renamed at the end.
//! What a killed process left there is removed by the next writer in the same folder.

use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::vec;

use tempfile::NamedTempFile;

use crate::error::{GgufError, Problem};
use crate::header::{check_names, parse_alignment};
use crate::metadata::Metadata;
use crate::tensor::{TensorInfo, TensorType};
use crate::value::{Array, Value};

/// How a file is called while it is written.
const PARTIAL_PREFIX: &str = ".gguf-";
const PARTIAL_SUFFIX: &str = ".partial";
/// A file this young may have a writer that has not locked it yet.
const YOUNG: Duration = Duration::from_secs(60);

/// Collects what the header will say. Metadata and tensors keep the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct GgufWriter {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
}

/// A file whose header is written and whose tensor data is awaited. Dropped before [`finish`], it leaves
/// nothing behind.
///
/// [`finish`]: TensorStream::finish
pub struct TensorStream {
    path: PathBuf,
    out: BufWriter<Target>,
    due: vec::IntoIter<TensorInfo>,
    alignment: u64,
}

/// Where a file's bytes go.
enum Target {
    /// Beside its name, which it gets when it is whole.
    Partial(NamedTempFile),
    /// Where somebody else looks after it.
    Open(File),
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Partial(file) => file.write(bytes),
            Target::Open(file) => file.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Partial(file) => file.flush(),
            Target::Open(file) => file.flush(),
        }
    }
}

impl GgufWriter {
    /// An empty header.
    pub fn new() -> GgufWriter {
        GgufWriter::default()
    }

    /// Adds a metadata entry. `general.alignment` sets the file's alignment.
    ///
    /// # Errors
    ///
    /// `DuplicateKey`.
    pub fn set(&mut self, key: &str, value: impl Into<Value>) -> Result<(), Problem> {
        self.metadata.insert(key, value.into())
    }

    /// Declares a tensor, innermost dimension first. Its data is given later, in the order of declaration.
    ///
    /// # Errors
    ///
    /// `BadShape`.
    pub fn tensor(&mut self, name: &str, shape: &[u64], kind: TensorType) -> Result<(), Problem> {
        let (name, shape) = (name.to_owned(), shape.to_vec());
        match kind.size_bytes(&shape) {
            Ok(size_bytes) => self.tensors.push(TensorInfo { name, shape, kind, offset: 0, size_bytes }),
            Err(reason) => return Err(Problem::BadShape { tensor: name, shape, reason }),
        }
        Ok(())
    }

    /// The header's bytes, padded to the start of the data section.
    ///
    /// # Errors
    ///
    /// `DuplicateTensor`, or what is wrong with `general.alignment`.
    pub fn header_bytes(&self) -> Result<Vec<u8>, Problem> {
        check_names(&self.tensors)?;
        let alignment = parse_alignment(&self.metadata)?;
        let mut out = Vec::new();
        out.extend_from_slice(b"GGUF");
        out.extend_from_slice(&3u32.to_le_bytes());
        put_len(&mut out, self.tensors.len());
        put_len(&mut out, self.metadata.len());
        for (key, value) in self.metadata.iter() {
            put_string(&mut out, key.as_bytes());
            out.extend_from_slice(&value.type_number().to_le_bytes());
            put_value(&mut out, value);
        }
        let mut offset = 0u64;
        for tensor in &self.tensors {
            put_string(&mut out, tensor.name.as_bytes());
            out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for dim in &tensor.shape {
                out.extend_from_slice(&dim.to_le_bytes());
            }
            out.extend_from_slice(&tensor.kind.number().to_le_bytes());
            out.extend_from_slice(&offset.to_le_bytes());
            offset += tensor.size_bytes.next_multiple_of(alignment);
        }
        out.resize(out.len().next_multiple_of(alignment as usize), 0);
        Ok(out)
    }

    /// Writes the header beside `path` and gives the stream that takes the tensors. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// As [`GgufWriter::header_bytes`], or `Io`.
    pub fn create(self, path: &Path) -> Result<TensorStream, GgufError> {
        self.start(path).map_err(|problem| GgufError::new(path, problem))
    }

    /// As [`GgufWriter::create`], into a file that is open and empty, and that no name is given to: one in
    /// memory, say. `name` stands for it in errors.
    ///
    /// # Errors
    ///
    /// As [`GgufWriter::create`].
    pub fn create_in(self, file: File, name: &Path) -> Result<TensorStream, GgufError> {
        self.begin(Target::Open(file), name).map_err(|problem| GgufError::new(name, problem))
    }

    fn start(self, path: &Path) -> Result<TensorStream, Problem> {
        let folder = folder_of(path);
        sweep(folder);
        // The process's umask applies to these permissions as it does to any new file.
        let file = tempfile::Builder::new()
            .prefix(PARTIAL_PREFIX)
            .suffix(PARTIAL_SUFFIX)
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(folder)?;
        // Held as long as this process lives: tells others that somebody still writes. Where the file
        // system has no locks, nobody can take one either.
        let _ = file.as_file().try_lock();
        self.begin(Target::Partial(file), path)
    }

    fn begin(self, target: Target, path: &Path) -> Result<TensorStream, Problem> {
        let header = self.header_bytes()?;
        let alignment = parse_alignment(&self.metadata)?;
        let mut out = BufWriter::with_capacity(1 << 18, target);
        out.write_all(&header)?;
        Ok(TensorStream { path: path.to_owned(), out, due: self.tensors.into_iter(), alignment })
    }
}

impl TensorStream {
    /// Writes the next tensor's data through `fill` and pads it. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// `WrongTensorOrder` when another tensor is due, `WrongTensorSize` when `fill` wrote too little or too
    /// much, or `Io`. The file is then of no use; drop it.
    pub fn write(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), GgufError> {
        self.write_next(name, fill).map_err(|problem| GgufError::new(&self.path, problem))
    }

    /// Makes the file durable and gives it its name, replacing what was there. A file that was open before
    /// is written out and no more.
    ///
    /// # Errors
    ///
    /// `TensorNotWritten` when tensors are missing, or `Io`.
    pub fn finish(self) -> Result<(), GgufError> {
        let path = self.path.clone();
        self.persist().map_err(|problem| GgufError::new(&path, problem))
    }

    fn write_next(
        &mut self,
        name: &str,
        fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
    ) -> Result<(), Problem> {
        let Some(tensor) = self.due.next().filter(|tensor| tensor.name == name) else {
            return Err(Problem::WrongTensorOrder { found: name.to_owned() });
        };
        let mut counted = Counted { out: &mut self.out, num_bytes: 0 };
        fill(&mut counted)?;
        let found_bytes = counted.num_bytes;
        let expected_bytes = tensor.size_bytes;
        if found_bytes != expected_bytes {
            return Err(Problem::WrongTensorSize { tensor: tensor.name, expected_bytes, found_bytes });
        }
        let padding = found_bytes.next_multiple_of(self.alignment) - found_bytes;
        io::copy(&mut io::Read::take(io::repeat(0), padding), &mut self.out)?;
        Ok(())
    }

    fn persist(mut self) -> Result<(), Problem> {
        if let Some(due) = self.due.next() {
            return Err(Problem::TensorNotWritten { tensor: due.name });
        }
        let file = match self.out.into_inner().map_err(io::IntoInnerError::into_error)? {
            Target::Partial(file) => file,
            Target::Open(_) => return Ok(()),
        };
        file.as_file().sync_all()?;
        file.persist(&self.path).map_err(|error| error.error)?;
        // The name is durable only when the folder is.
        File::open(folder_of(&self.path))?.sync_all()?;
        Ok(())
    }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Removes what killed writers left in the folder: partial files that nobody holds a lock on. What cannot be
/// looked at or removed is left alone.
fn sweep(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let is_partial = name
            .to_str()
            .is_some_and(|name| name.starts_with(PARTIAL_PREFIX) && name.ends_with(PARTIAL_SUFFIX));
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if !is_partial || age().is_none_or(|age| age < YOUNG) {
            continue;
        }
        if File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Counts what passes, so that a tensor of the wrong size is found before the file is finished.
struct Counted<W> {
    out: W,
    num_bytes: u64,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.num_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u64).to_le_bytes());
}

fn put_string(out: &mut Vec<u8>, string: &[u8]) {
    put_len(out, string.len());
    out.extend_from_slice(string);
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(value) => out.push(*value),
        Value::I8(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::U16(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::I16(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::U32(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::I32(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::U64(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::I64(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::F32(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::F64(value) => out.extend_from_slice(&value.to_le_bytes()),
        Value::Bool(value) => out.push((*value).into()),
        Value::String(bytes) => put_string(out, bytes),
        Value::Array(array) => put_array(out, array),
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend_from_slice(&array.element_type_number().to_le_bytes());
    put_len(out, array.len());
    match array {
        Array::U8(values) => out.extend_from_slice(values),
        Array::I8(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I16(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::U64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::I64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F32(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::F64(values) => out.extend(values.iter().flat_map(|value| value.to_le_bytes())),
        Array::Bool(values) => out.extend(values.iter().map(|&value| u8::from(value))),
        Array::Strings(values) => values.iter().for_each(|string| put_string(out, string)),
        Array::Arrays(values) => values.iter().for_each(|array| put_array(out, array)),
    }
}
