//! Magnitude pruning: the smallest weights of the layers' matrices become 0.
//!
//! The weight at which a group is cut is found exactly by counting: the bits of a positive float order as
//! the float does, so one pass counts their upper half and a second the lower half of the bucket where the
//! cut falls. Embedding, output and vectors are left alone.

use std::collections::HashMap;
use std::thread;

use quern_gguf::TensorInfo;

use crate::codec::Codec;
use crate::error::PipelineError;
use crate::names::layer_of;
use crate::rewrite::{Change, RowChange};
use crate::source::Source;

/// What competes for staying.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All matrices of all layers.
    Global,
    /// The matrices of a layer.
    Layer,
    /// The weights of a matrix.
    Tensor,
}

/// Where a group is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cut {
    /// Smaller magnitudes become 0.
    magnitude: u32,
    /// How many of that very magnitude become 0 too, in the order of the file.
    num_equal: u64,
}

/// The change that prunes.
#[derive(Debug)]
pub struct Prune {
    scope: Scope,
    cuts: HashMap<String, Cut>,
}

impl Prune {
    /// Reads the whole model twice to find the cuts; exactly the fraction of each group will be 0. Blocks on
    /// the disk; `progress` is told the elements that were read and that will be.
    ///
    /// # Errors
    ///
    /// `Wish` for a fraction outside of 0 to 1, or the model could not be read.
    pub fn plan(
        source: &dyn Source,
        fraction: f64,
        scope: Scope,
        codec: &dyn Codec,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Prune, PipelineError> {
        if !(0.0..1.0).contains(&fraction) {
            return Err(PipelineError::Wish(format!("the fraction {fraction} is not from 0 to below 1")));
        }
        let prunable = |tensor: &&TensorInfo| is_prunable(tensor);
        let total = 2 * source.tensors().iter().filter(prunable).map(TensorInfo::num_elements).sum::<u64>();
        let mut done = 0;
        let mut step = |elements| {
            done += elements;
            progress(done, total);
        };
        let upper = count(source, codec, scope, &mut step, |_, bits| Some(bits >> 16))?;
        let mut places = HashMap::new();
        for (group, counts) in upper {
            let num_zeros = (counts.iter().sum::<u64>() as f64 * fraction).round() as u64;
            let (bucket, left) = find(&counts, num_zeros);
            places.insert(group, (bucket, left));
        }
        let lower = count(source, codec, scope, &mut step, |group, bits| {
            (bits >> 16 == places[group].0).then_some(bits & 0xffff)
        })?;
        let cut = |(group, (bucket, left)): (String, (u32, u64))| {
            let (low, num_equal) = lower.get(&group).map_or((0, 0), |counts| find(counts, left));
            (group, Cut { magnitude: bucket << 16 | low, num_equal })
        };
        Ok(Prune { scope, cuts: places.into_iter().map(cut).collect() })
    }
}

/// The bucket in which the n-th smallest lies, and how many of that bucket are among the n smallest.
fn find(counts: &[u64], num: u64) -> (u32, u64) {
    let mut left = num;
    for (bucket, count) in counts.iter().enumerate() {
        if left <= *count {
            return (bucket as u32, left);
        }
        left -= count;
    }
    (counts.len() as u32 - 1, left)
}

/// Counts the matrices' magnitudes by group and bucket.
fn count(
    source: &dyn Source,
    codec: &dyn Codec,
    scope: Scope,
    step: &mut dyn FnMut(u64),
    bucket: impl Fn(&str, u32) -> Option<u32> + Sync,
) -> Result<HashMap<String, Vec<u64>>, PipelineError> {
    let mut groups: HashMap<String, Vec<u64>> = HashMap::new();
    for (tensor_idx, tensor) in source.tensors().iter().enumerate().filter(|(_, tensor)| is_prunable(tensor))
    {
        let group = group(scope, tensor);
        let counts = groups.entry(group.clone()).or_insert_with(|| vec![0; 1 << 16]);
        let (elements, bytes) = (tensor.kind.block_elements(), tensor.kind.block_bytes());
        let num_blocks = tensor.size_bytes / bytes;
        let at_once = ((1 << 22) / elements).min(num_blocks);
        let mut first = 0;
        while first < num_blocks {
            let part = at_once.min(num_blocks - first);
            let mut data = vec![0; (part * bytes) as usize];
            source.read(tensor_idx, first * bytes, &mut data)?;
            add_counts(codec, tensor, &data, counts, |bits| bucket(&group, bits))?;
            first += part;
            step(part * elements);
        }
    }
    Ok(groups)
}

/// Decodes blocks and counts their magnitudes, shared among threads.
fn add_counts(
    codec: &dyn Codec,
    tensor: &TensorInfo,
    data: &[u8],
    counts: &mut [u64],
    bucket: impl Fn(u32) -> Option<u32> + Sync,
) -> Result<(), PipelineError> {
    let kind = tensor.kind;
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let (elements, bytes) = (kind.block_elements() as usize, kind.block_bytes() as usize);
    let each = (data.len() / bytes).div_ceil(threads) * bytes;
    let one = |data: &[u8]| {
        let mut values = vec![0.0; data.len() / bytes * elements];
        codec.decode(kind, data, &mut values)?;
        let mut counts = vec![0u64; 1 << 16];
        for bucket in values.iter().filter_map(|value| bucket(magnitude(*value))) {
            counts[bucket as usize] += 1;
        }
        Ok(counts)
    };
    let one = &one;
    let parts = thread::scope(|scope| {
        let running: Vec<_> = data.chunks(each).map(|data| scope.spawn(move || one(data))).collect();
        running.into_iter().map(|part| part.join().expect("a codec does not panic")).collect::<Vec<_>>()
    });
    for part in parts {
        let part = part.map_err(|error| PipelineError::Codec { tensor: tensor.name.clone(), error })?;
        counts.iter_mut().zip(part).for_each(|(sum, count)| *sum += count);
    }
    Ok(())
}

/// Bits that order as the magnitude does.
fn magnitude(value: f32) -> u32 {
    value.abs().to_bits()
}

fn is_prunable(tensor: &TensorInfo) -> bool {
    tensor.shape.len() > 1 && tensor.name.ends_with(".weight") && layer_of(&tensor.name).is_some()
}

fn group(scope: Scope, tensor: &TensorInfo) -> String {
    match scope {
        Scope::Global => String::new(),
        Scope::Layer => layer_of(&tensor.name).map_or_else(String::new, |layer_idx| layer_idx.to_string()),
        Scope::Tensor => tensor.name.clone(),
    }
}

impl Change for Prune {
    fn begin(&mut self, tensor: &TensorInfo) -> Result<Option<Box<dyn RowChange + '_>>, PipelineError> {
        let group = group(self.scope, tensor);
        let cut = self.cuts.get_mut(&group).filter(|_| is_prunable(tensor));
        Ok(cut.map(|cut| Box::new(cut) as Box<dyn RowChange>))
    }
}

impl RowChange for &mut Cut {
    fn apply(&mut self, _first_row: u64, _row_len: usize, rows: &mut [f32]) {
        for weight in rows {
            let bits = magnitude(*weight);
            if bits < self.magnitude {
                *weight = 0.0;
            } else if bits == self.magnitude && self.num_equal > 0 {
                self.num_equal -= 1;
                *weight = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nth_smallest_is_found() {
        assert_eq!(find(&[2, 0, 3], 0), (0, 0));
        assert_eq!(find(&[2, 0, 3], 2), (0, 2));
        assert_eq!(find(&[2, 0, 3], 3), (2, 1));
        assert_eq!(find(&[2, 0, 3], 5), (2, 3));
    }
}
