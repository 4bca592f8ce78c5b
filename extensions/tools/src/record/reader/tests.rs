use quern_scheduler::builtin::BuiltinPlanner;
use quern_scheduler::plan::Planner as _;
use rand::{Rng as _, SeedableRng as _};

use super::*;
use crate::fuzz::Fuzz;
use crate::record::Writer;
use crate::record::format::put;

fn steps(num: usize) -> Vec<Step> {
    let (mut fuzz, mut planner) = (Fuzz::new(4), BuiltinPlanner::default());
    let step = |idx| {
        let snapshot = fuzz.next();
        let plan = (idx % 5 != 4).then(|| planner.plan(&snapshot).unwrap());
        let mut step = Step::new(snapshot, plan);
        step.judged = [Judged::InForce, Judged::Unknown, Judged::Refused][idx % 3];
        step.took_us = [None, Some(0), Some(u32::MAX)][idx % 3];
        step
    };
    (0..num).map(step).collect()
}

fn written(steps: &[Step]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = Writer::new(&mut bytes).unwrap();
    steps.iter().for_each(|step| writer.write(step).unwrap());
    let num_bytes = writer.num_bytes();
    writer.finish().unwrap();
    assert_eq!(num_bytes, bytes.len() as u64);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<Step>, ReadError> {
    Reader::new(bytes)?.collect()
}

/// A file with one payload, and the checksum that belongs to it.
fn file_of(payload: &[u8]) -> Vec<u8> {
    let len = (payload.len() as u32).to_le_bytes();
    [&MAGIC[..], &VERSION.to_le_bytes(), &len, &checksum(payload).to_le_bytes(), payload].concat()
}

#[test]
fn what_is_written_is_read() {
    let steps = steps(60);
    let bytes = written(&steps);
    assert_eq!(read(&bytes).unwrap(), steps);
    assert_eq!(read(&written(&[])).unwrap(), []);
}

#[test]
fn a_file_that_is_cut_off_gives_what_is_whole() {
    let steps = steps(12);
    let bytes = written(&steps);
    for len in (10..bytes.len()).step_by(97) {
        let (whole, rest): (Vec<_>, Vec<_>) = Reader::new(&bytes[..len]).unwrap().partition(Result::is_ok);
        let whole: Vec<Step> = whole.into_iter().map(Result::unwrap).collect();
        assert_eq!(whole, steps[..whole.len()]);
        assert!(rest.len() <= 1 && rest.iter().all(|error| matches!(error, Err(ReadError::CutOff { .. }))));
    }
}

#[test]
fn no_byte_can_be_changed_unseen() {
    let bytes = written(&steps(9)[7..]);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(6);
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        let place = random.random_range(0..damaged.len());
        damaged[place] ^= 1 << random.random_range(0..8);
        assert!(read(&damaged).is_err(), "byte {place}");
    }
}

#[test]
fn hostile_payloads_are_refused_or_read_and_never_believed() {
    let steps = steps(40);
    let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(9);
    for step in &steps {
        let file = written(std::slice::from_ref(step));
        let payload = &file[18..];
        for _ in 0..200 {
            let mut hostile = payload.to_vec();
            for _ in 0..random.random_range(1..4) {
                let place = random.random_range(0..hostile.len());
                hostile[place] = random.random();
            }
            hostile.truncate(random.random_range(hostile.len() / 2..=hostile.len()));
            // The checksum is right: only the parser stands between this and the tools.
            for step in read(&file_of(&hostile)).unwrap_or_default() {
                let plan = step.in_force(&mut BuiltinPlanner::default());
                let _ = step.sample(&plan);
                assert_eq!(step.snapshot.waiting.kv_need.len(), step.snapshot.waiting.id.len());
            }
        }
    }
}

#[test]
fn claims_take_no_memory() {
    let mut long = [&MAGIC[..], &VERSION.to_le_bytes(), &u32::MAX.to_le_bytes()].concat();
    long.extend([0; 4]);
    assert!(matches!(read(&long), Err(ReadError::Damaged { why: "it is too long", .. })));
    let mut many = vec![0; 14];
    put(&mut many, 1 << 40);
    assert!(matches!(
        read(&file_of(&many)),
        Err(ReadError::Damaged { why: "it claims more rows than it has", .. })
    ));
    let endless = vec![0xff; 64];
    assert!(matches!(read(&file_of(&endless)), Err(ReadError::Damaged { .. })));
}

#[test]
fn other_files_and_other_versions_are_told_apart() {
    assert!(matches!(read(b"\0asm"), Err(ReadError::NotARecording)));
    assert!(matches!(read(b"not a recording at all"), Err(ReadError::NotARecording)));
    let mut newer = written(&[]);
    newer[8] = 2;
    assert!(matches!(read(&newer), Err(ReadError::OtherVersion(2))));
}
