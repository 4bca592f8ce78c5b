//! The file of recorded steps, and how it is written.
//!
//! ```text
//! file   = "QUERNREC" version:u16 step*          numbers are little-endian
//! step   = length:u32 checksum:u32 payload       length is that of the payload
//! ```
//!
//! A payload is a list of numbers, each in groups of seven bits, the lowest
//! first, with the top bit set in all but the last group (LEB128). Signed ones
//! are folded (0, -1, 1, -2, ...), so that small ones are short. In order: the
//! fields of `StepInfo`; the number of waiting rows and their columns; the number
//! of running rows and theirs; judgement, time and plan. Columns of ids and of
//! times hold differences to the row before, for these are smaller. The checksum
//! (FNV-1a) tells damage, not malice.
//!
//! A file that ends within a step was cut off there; what comes before is whole.

use std::io::{self, Write};

use quern_engine::AdapterId;
use quern_scheduler::plan::{Plan, Snapshot};

use crate::record::{Judged, Step};

/// The first bytes of a file.
pub(super) const MAGIC: [u8; 8] = *b"QUERNREC";

/// The version that is written, and the only one that is read.
pub(super) const VERSION: u16 = 1;

/// Longest payload that is read.
pub(super) const MAX_PAYLOAD: u32 = 16 << 20;

/// Rows that a table may have.
pub(super) const MAX_ROWS: u64 = 1 << 16;

/// Writes a file of steps.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    payload: Vec<u8>,
    num_bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Begins a file.
    ///
    /// # Errors
    /// The writer's.
    pub fn new(mut out: W) -> io::Result<Writer<W>> {
        out.write_all(&MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        Ok(Writer { out, payload: Vec::new(), num_bytes: MAGIC.len() as u64 + 2 })
    }

    /// Appends a step.
    ///
    /// # Errors
    /// The writer's; also for a step that is larger than what may be read.
    pub fn write(&mut self, step: &Step) -> io::Result<()> {
        self.payload.clear();
        encode(&mut self.payload, step);
        let rows = step.snapshot.waiting.id.len().max(step.snapshot.running.id.len()) as u64;
        let len = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        if len > MAX_PAYLOAD || rows > MAX_ROWS {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a step with more rows than a file may hold",
            ));
        }
        self.out.write_all(&len.to_le_bytes())?;
        self.out.write_all(&checksum(&self.payload).to_le_bytes())?;
        self.out.write_all(&self.payload)?;
        self.num_bytes += u64::from(len) + 8;
        Ok(())
    }

    /// Bytes so far.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.num_bytes
    }

    /// Hands what was written so far to the operating system.
    ///
    /// # Errors
    /// The writer's.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Hands everything to the operating system.
    ///
    /// # Errors
    /// The writer's.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// FNV-1a, 32 bits (Fowler, Noll and Vo).
pub(super) fn checksum(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn fold(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

fn put_column<T: Copy + Into<u64>>(out: &mut Vec<u8>, column: &[T]) {
    column.iter().for_each(|&value| put(out, value.into()));
}

/// Differences to the row before, folded.
fn put_differences(out: &mut Vec<u8>, column: impl Iterator<Item = i64>) {
    let mut before = 0i64;
    for value in column {
        put(out, fold(value.wrapping_sub(before)));
        before = value;
    }
}

fn put_adapters(out: &mut Vec<u8>, adapters: &[AdapterId]) {
    adapters.iter().for_each(|adapter| put(out, adapter.0.into()));
}

fn encode(out: &mut Vec<u8>, step: &Step) {
    let Step { snapshot, plan, judged, took_us } = step;
    put_step(out, snapshot);
    put_waiting(out, snapshot);
    put_running(out, snapshot);
    put(
        out,
        match judged {
            Judged::Unknown => 0,
            Judged::InForce => 1,
            Judged::Refused => 2,
        },
    );
    put(out, took_us.map_or(0, |us| u64::from(us) + 1));
    put(out, u64::from(plan.is_some()));
    if let Some(plan) = plan {
        put_plan(out, plan);
    }
}

fn put_step(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let step = &snapshot.step;
    put(out, step.seq);
    put(out, step.now_us);
    for field in [
        step.token_budget,
        step.max_running,
        step.kv_free,
        step.kv_page,
        step.last_step_us,
        step.fixed_us,
        step.row_us,
        step.output_us,
        step.target_step_us,
        step.row_tile,
        u32::from(step.mixes_adapters),
        step.last_adapter.0,
    ] {
        put(out, field.into());
    }
}

fn put_waiting(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let table = &snapshot.waiting;
    put(out, table.id.len() as u64);
    put_differences(out, table.id.iter().map(|&id| id as i64));
    put_differences(out, table.age_us.iter().map(|&age| i64::from(age)));
    put_column(out, &table.prompt_left);
    put_column(out, &table.cached);
    put_column(out, &table.pending);
    put_column(out, &table.kv_need);
    put_column(out, &table.max_new);
    put_differences(out, table.slack_us.iter().map(|&slack| i64::from(slack)));
    put_column(out, &table.priority);
    put_column(out, &table.tenant);
    put_adapters(out, &table.adapter);
    put_column(out, &table.adapter_tier);
}

fn put_running(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let table = &snapshot.running;
    put(out, table.id.len() as u64);
    put_differences(out, table.id.iter().map(|&id| id as i64));
    put_column(out, &table.prompt_left);
    put_column(out, &table.generated);
    put_column(out, &table.max_new);
    put_column(out, &table.kv);
    put_differences(out, table.slack_us.iter().map(|&slack| i64::from(slack)));
    put_column(out, &table.priority);
    put_column(out, &table.tenant);
    put_adapters(out, &table.adapter);
}

fn put_plan(out: &mut Vec<u8>, plan: &Plan) {
    for list in [&plan.admit, &plan.admit_chunk, &plan.preempt, &plan.running_chunk] {
        put(out, list.len() as u64);
        put_column(out, list);
    }
    put(out, plan.adapter.map_or(0, |adapter| u64::from(adapter.0) + 1));
    put(out, plan.hold_steps.into());
}
