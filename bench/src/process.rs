//! A child process that is ended when it is no longer needed, and its memory. Linux's /proc.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::machine::{field, first_number};

/// Pause between two looks at a process.
pub(crate) const POLL_PAUSE: Duration = Duration::from_millis(5);
/// Time for a process to end after it was asked to.
const END_TIMEOUT: Duration = Duration::from_secs(15);

/// A process that is ended, and waited for, when this is dropped.
#[derive(Debug)]
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Asks the process to end, and ends it if it does not. Blocks until it has gone.
    pub(crate) fn end(&mut self) {
        let pid = self.0.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).stderr(Stdio::null()).status();
        let until = Instant::now() + END_TIMEOUT;
        while asked.is_ok() && Instant::now() < until {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(POLL_PAUSE);
        }
        // Both fail only when the process has gone already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.end();
    }
}

/// Memory of a process, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// Most that was ever resident, mapped files included.
    pub peak_resident_mib: f64,
    /// Resident now, mapped files included.
    pub resident_mib: f64,
    /// The part of it that is no file: key-value state, buffers, heap, weights that were not mapped.
    pub anonymous_mib: f64,
    /// Resident now, with what is shared by several processes divided among them; none where the system does not say.
    pub proportional_mib: Option<f64>,
}

impl Memory {
    /// Reads a process's memory; none when it has gone or the system does not say.
    pub fn of(pid: u32) -> Option<Self> {
        let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?, &rollup)
    }

    fn parse(status: &str, rollup: &str) -> Option<Self> {
        let mib = |text, name| Some(first_number(&field(text, name)?)? as f64 / 1024.0);
        Some(Self {
            peak_resident_mib: mib(status, "VmHWM")?,
            resident_mib: mib(status, "VmRSS")?,
            anonymous_mib: mib(status, "RssAnon")?,
            proportional_mib: mib(rollup, "Pss"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_from_a_process_status() {
        let status = "Name:\tquern\nVmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\nRssAnon:\t  512 kB\n";
        let mut memory = Memory {
            peak_resident_mib: 2.0,
            resident_mib: 1.0,
            anonymous_mib: 0.5,
            proportional_mib: Some(0.75),
        };
        assert_eq!(Memory::parse(status, "Rss: 1024 kB\nPss:    768 kB\nPss_Anon: 1 kB\n"), Some(memory));
        memory.proportional_mib = None;
        assert_eq!(Memory::parse(status, ""), Some(memory));
        assert_eq!(Memory::parse("Name:\tquern\n", ""), None);
    }
}
