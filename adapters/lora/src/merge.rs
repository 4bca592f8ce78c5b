//! Merging: W + weight * scale * B * A, in f32, for one adapter or several.

use std::thread;

use quern_gguf::{ByteStrings, TensorInfo, Value};

use crate::adapter::Adapter;
use crate::base::check_base;
use crate::error::PipelineError;
use crate::head::Head;
use crate::rewrite::{Change, RowChange};
use crate::source::Source;

/// An adapter and how much of it goes into the base.
#[derive(Debug)]
pub struct Part {
    /// The adapter.
    pub adapter: Adapter,
    /// 1 is all of it.
    pub weight: f32,
}

/// The change that merges adapters into their base.
#[derive(Debug)]
pub struct Merge {
    parts: Vec<Part>,
    head: Option<Head>,
}

impl Merge {
    /// Checks that every adapter fits the base and holds only numbers. The merged model carries the head
    /// of the one classification adapter among them, unless heads are not wanted.
    ///
    /// # Errors
    ///
    /// `NotServable`, `TwoHeads`, `Wish` for a weight that is no number, or what is wrong with an adapter.
    pub fn new(source: &dyn Source, parts: Vec<Part>, with_head: bool) -> Result<Merge, PipelineError> {
        let path = source.path();
        let arch = source.metadata().str("general.architecture");
        let arch = arch.map_err(|problem| PipelineError::Wish(format!("{}: {problem}", path.display())))?;
        let mut head: Option<(&Part, &Head)> = None;
        for part in &parts {
            if !part.weight.is_finite() {
                return Err(PipelineError::Wish(format!("the weight {} is no number", part.weight)));
            }
            let mismatches = check_base(&part.adapter, arch, source.tensors());
            if !mismatches.is_empty() {
                return Err(PipelineError::NotServable { adapter: part.adapter.path.clone(), mismatches });
            }
            part.adapter.check_values()?;
            if let Some(own) = part.adapter.head.as_ref().filter(|_| with_head) {
                if let Some((first, _)) = head {
                    return Err(PipelineError::TwoHeads { first: name(first), second: name(part) });
                }
                head = Some((part, own));
            }
        }
        let head = head.map(|(_, head)| head.clone());
        Ok(Merge { parts, head })
    }
}

fn name(part: &Part) -> String {
    part.adapter.path.display().to_string()
}

impl Change for Merge {
    fn begin(&mut self, tensor: &TensorInfo) -> Result<Option<Box<dyn RowChange + '_>>, PipelineError> {
        let mut pairs = Vec::new();
        for part in &self.parts {
            let Some(module) = part.adapter.module(&tensor.name) else { continue };
            pairs.push(Pair {
                a: part.adapter.a(module)?,
                b: part.adapter.b(module)?,
                rank: module.rank as usize,
                factor: (f64::from(part.weight) * module.scale) as f32,
            });
        }
        Ok((!pairs.is_empty()).then(|| Box::new(pairs) as Box<dyn RowChange>))
    }

    fn entries(&self) -> Vec<(String, Value)> {
        let names: ByteStrings =
            self.parts.iter().map(|part| format!("{}={}", name_of(part), part.weight)).collect();
        let mut entries = vec![("quern.merged".to_owned(), Value::from(names))];
        let head = self.head.iter().flat_map(|head| head.entries());
        entries.extend(head.map(|(key, value)| (key.to_owned(), value)));
        entries
    }
}

/// The last part of the path: where it lay is nobody's business.
fn name_of(part: &Part) -> String {
    part.adapter.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

/// The matrices that one adapter has for one tensor.
struct Pair {
    /// `[rank, input]`, row-major.
    a: Vec<f32>,
    /// `[output, rank]`, row-major.
    b: Vec<f32>,
    rank: usize,
    factor: f32,
}

impl RowChange for Vec<Pair> {
    fn apply(&mut self, first_row: u64, row_len: usize, rows: &mut [f32]) {
        let pairs: &[Pair] = self;
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let each = (rows.len() / row_len).div_ceil(threads);
        thread::scope(|scope| {
            for (part_idx, part) in rows.chunks_mut(each * row_len).enumerate() {
                scope.spawn(move || add(pairs, first_row as usize + part_idx * each, row_len, part));
            }
        });
    }
}

/// Adds the products to whole rows, one row of B * A at a time.
fn add(pairs: &[Pair], first_row: usize, row_len: usize, rows: &mut [f32]) {
    let mut product = vec![0f32; row_len];
    for (row_idx, row) in rows.chunks_exact_mut(row_len).enumerate() {
        for pair in pairs {
            let b = &pair.b[(first_row + row_idx) * pair.rank..][..pair.rank];
            product.fill(0.0);
            for (factor, a) in b.iter().zip(pair.a.chunks_exact(row_len)) {
                product.iter_mut().zip(a).for_each(|(sum, a)| *sum += factor * a);
            }
            row.iter_mut().zip(&product).for_each(|(weight, sum)| *weight += pair.factor * sum);
        }
    }
}
