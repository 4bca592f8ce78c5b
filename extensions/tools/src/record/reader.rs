//! Reads files of recorded steps. Whoever gives one may mean no good: every
//! length is checked before memory is taken for it.

use std::io::{self, Read};

use quern_engine::AdapterId;
use quern_scheduler::plan::{Plan, Running, Snapshot, StepInfo, Waiting};

use crate::record::format::{MAGIC, MAX_PAYLOAD, MAX_ROWS, VERSION, checksum};
use crate::record::{Judged, Step};

/// Why a file, or its rest, cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The reader's own.
    #[error("it cannot be read")]
    Io(#[from] io::Error),
    /// Something else.
    #[error("it is no recording")]
    NotARecording,
    /// Written by another release.
    #[error("it has format {0}, and format {VERSION} is read")]
    OtherVersion(u16),
    /// It ends within a step.
    #[error("it is cut off after step {steps}")]
    CutOff {
        /// Steps that are whole.
        steps: u64,
    },
    /// Its numbers make no sense.
    #[error("step {step} is damaged: {why}")]
    Damaged {
        /// Counts steps from 0.
        step: u64,
        /// What is wrong.
        why: &'static str,
    },
}

/// The longest sequence that is believed.
const MAX_TOKENS: u32 = 1 << 30;

/// Steps of a file, one after the other. Ends after the first error.
#[derive(Debug)]
pub struct Reader<R: Read> {
    input: R,
    num_read: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    /// Reads the file's head.
    ///
    /// # Errors
    /// [`ReadError`], if it is no recording of this format.
    pub fn new(mut input: R) -> Result<Reader<R>, ReadError> {
        let mut head = [0; MAGIC.len() + 2];
        input.read_exact(&mut head).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::NotARecording,
            _ => ReadError::Io(error),
        })?;
        if head[..MAGIC.len()] != MAGIC {
            return Err(ReadError::NotARecording);
        }
        match u16::from_le_bytes([head[MAGIC.len()], head[MAGIC.len() + 1]]) {
            VERSION => Ok(Reader { input, num_read: 0, ended: false }),
            other => Err(ReadError::OtherVersion(other)),
        }
    }

    fn read(&mut self) -> Result<Option<Step>, ReadError> {
        let mut head = Vec::with_capacity(8);
        self.input.by_ref().take(8).read_to_end(&mut head)?;
        if head.is_empty() {
            return Ok(None);
        }
        let cut_off = ReadError::CutOff { steps: self.num_read };
        let Some((len, sum)) = head.split_first_chunk::<4>() else { return Err(cut_off) };
        let Some(sum) = sum.first_chunk::<4>() else { return Err(cut_off) };
        let len = u32::from_le_bytes(*len);
        if len > MAX_PAYLOAD {
            return Err(self.damaged("it is too long"));
        }
        // Grows with what is there, whatever length is claimed.
        let mut payload = Vec::new();
        self.input.by_ref().take(len.into()).read_to_end(&mut payload)?;
        if payload.len() < len as usize {
            return Err(cut_off);
        }
        if checksum(&payload) != u32::from_le_bytes(*sum) {
            return Err(self.damaged("its checksum is wrong"));
        }
        let step = decode(&payload).map_err(|why| self.damaged(why))?;
        self.num_read += 1;
        Ok(Some(step))
    }

    fn damaged(&self, why: &'static str) -> ReadError {
        ReadError::Damaged { step: self.num_read, why }
    }
}

impl<R: Read> Iterator for Reader<R> {
    type Item = Result<Step, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

/// What is left of a payload.
struct Payload<'a>(&'a [u8]);

type Found<T> = Result<T, &'static str>;

impl Payload<'_> {
    fn number(&mut self) -> Found<u64> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let (&byte, left) = self.0.split_first().ok_or("it ends within a number")?;
            self.0 = left;
            let group = u64::from(byte & 0x7f);
            if group << shift >> shift != group {
                return Err("a number is too large");
            }
            number |= group << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err("a number is too long")
    }

    fn small<T: TryFrom<u64>>(&mut self) -> Found<T> {
        T::try_from(self.number()?).map_err(|_| "a number is too large for its column")
    }

    fn signed(&mut self) -> Found<i64> {
        let folded = self.number()?;
        Ok((folded >> 1) as i64 ^ -((folded & 1) as i64))
    }

    fn flag(&mut self) -> Found<bool> {
        match self.number()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err("a flag is neither 0 nor 1"),
        }
    }

    /// A number of rows; each takes a byte at least in what is left.
    fn rows(&mut self) -> Found<usize> {
        let rows = self.number()?;
        if rows > MAX_ROWS || rows > self.0.len() as u64 {
            return Err("it claims more rows than it has");
        }
        Ok(rows as usize)
    }

    fn column<T: TryFrom<u64>>(&mut self, rows: usize) -> Found<Vec<T>> {
        (0..rows).map(|_| self.small()).collect()
    }

    fn differences<T>(&mut self, rows: usize, take: impl Fn(i64) -> Option<T>) -> Found<Vec<T>> {
        let mut value = 0i64;
        let mut next = || {
            value = value.wrapping_add(self.signed()?);
            take(value).ok_or("a number is too large for its column")
        };
        (0..rows).map(|_| next()).collect()
    }

    fn adapters(&mut self, rows: usize) -> Found<Vec<AdapterId>> {
        (0..rows).map(|_| self.small().map(AdapterId)).collect()
    }
}

fn decode(bytes: &[u8]) -> Found<Step> {
    let mut from = Payload(bytes);
    let step = step(&mut from)?;
    let waiting = waiting(&mut from)?;
    let running = running(&mut from)?;
    let judged = match from.number()? {
        0 => Judged::Unknown,
        1 => Judged::InForce,
        2 => Judged::Refused,
        _ => return Err("there is no such judgement"),
    };
    let took_us = match from.number()? {
        0 => None,
        more => Some(u32::try_from(more - 1).map_err(|_| "a time is too long")?),
    };
    let plan = if from.flag()? { Some(plan(&mut from)?) } else { None };
    if !from.0.is_empty() {
        return Err("something follows it");
    }
    // A plan in force names rows that exist; tools index with them.
    let snapshot = Snapshot { step, waiting, running };
    if !is_sound(&snapshot) {
        return Err("its tables contradict themselves");
    }
    if let Some(plan) = &plan
        && judged != Judged::Refused
        && !rows_exist(&snapshot, plan)
    {
        return Err("its plan names rows that do not exist");
    }
    Ok(Step { snapshot, plan, judged, took_us })
}

/// What every step of a node keeps, and planners rely on.
fn is_sound(snapshot: &Snapshot) -> bool {
    let (waiting, running) = (&snapshot.waiting, &snapshot.running);
    let waits = |row: usize| {
        let left = waiting.prompt_left[row];
        let reuse = waiting.cached[row] <= waiting.pending[row] && waiting.pending[row] < left;
        reuse && left <= MAX_TOKENS && waiting.kv_need[row] <= left
    };
    let runs = |row: usize| {
        let left = running.prompt_left[row];
        left > 0 && left <= MAX_TOKENS && running.kv[row] <= MAX_TOKENS
    };
    (0..waiting.id.len()).all(waits) && (0..running.id.len()).all(runs)
}

fn rows_exist(snapshot: &Snapshot, plan: &Plan) -> bool {
    let (waiting, running) = (snapshot.waiting.id.len(), snapshot.running.id.len());
    plan.admit.iter().all(|&row| (row as usize) < waiting)
        && plan.preempt.iter().all(|&row| (row as usize) < running)
}

fn step(from: &mut Payload<'_>) -> Found<StepInfo> {
    Ok(StepInfo {
        seq: from.number()?,
        now_us: from.number()?,
        token_budget: from.small()?,
        max_running: from.small()?,
        kv_free: from.small()?,
        kv_page: from.small()?,
        last_step_us: from.small()?,
        fixed_us: from.small()?,
        row_us: from.small()?,
        output_us: from.small()?,
        target_step_us: from.small()?,
        row_tile: from.small()?,
        mixes_adapters: from.flag()?,
        last_adapter: AdapterId(from.small()?),
    })
}

fn waiting(from: &mut Payload<'_>) -> Found<Waiting> {
    let rows = from.rows()?;
    Ok(Waiting {
        id: from.differences(rows, |id| Some(id as u64))?,
        age_us: from.differences(rows, |age| u32::try_from(age).ok())?,
        prompt_left: from.column(rows)?,
        cached: from.column(rows)?,
        pending: from.column(rows)?,
        kv_need: from.column(rows)?,
        max_new: from.column(rows)?,
        slack_us: from.differences(rows, |slack| i32::try_from(slack).ok())?,
        priority: from.column(rows)?,
        tenant: from.column(rows)?,
        adapter: from.adapters(rows)?,
        adapter_tier: from.column(rows)?,
    })
}

fn running(from: &mut Payload<'_>) -> Found<Running> {
    let rows = from.rows()?;
    Ok(Running {
        id: from.differences(rows, |id| Some(id as u64))?,
        prompt_left: from.column(rows)?,
        generated: from.column(rows)?,
        max_new: from.column(rows)?,
        kv: from.column(rows)?,
        slack_us: from.differences(rows, |slack| i32::try_from(slack).ok())?,
        priority: from.column(rows)?,
        tenant: from.column(rows)?,
        adapter: from.adapters(rows)?,
    })
}

fn plan(from: &mut Payload<'_>) -> Found<Plan> {
    let mut list = || -> Found<Vec<u32>> {
        let rows = from.rows()?;
        from.column(rows)
    };
    let (admit, admit_chunk, preempt, running_chunk) = (list()?, list()?, list()?, list()?);
    let adapter = match from.number()? {
        0 => None,
        more => Some(AdapterId(u32::try_from(more - 1).map_err(|_| "there is no such adapter")?)),
    };
    Ok(Plan { admit, admit_chunk, preempt, running_chunk, adapter, hold_steps: from.small()? })
}

#[cfg(test)]
mod tests;
