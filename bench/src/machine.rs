//! The machine a run was made on, this program's own cost, and the date. Linux's /proc; elsewhere fields stay unknown.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a reader must know of the machine to judge a figure.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// The processor's name for itself.
    pub cpu: String,
    /// Cores this process may use.
    pub num_cores: usize,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Kernel's version.
    pub kernel: String,
    /// Load average over a minute before the run: how calm the machine was.
    pub load_before: String,
}

impl Machine {
    /// Reads the machine's description.
    pub fn read() -> Self {
        let file = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpu = field(&file("/proc/cpuinfo"), "model name").unwrap_or_else(|| "unknown".to_owned());
        let memory_kib = field(&file("/proc/meminfo"), "MemTotal").and_then(|text| first_number(&text));
        Self {
            cpu,
            num_cores: std::thread::available_parallelism().map_or(0, usize::from),
            memory_mib: memory_kib.unwrap_or(0) / 1024,
            kernel: file("/proc/sys/kernel/osrelease").trim().to_owned(),
            load_before: file("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpu, num_cores, memory_mib, kernel, load_before } = self;
        write!(
            f,
            "{cpu}, {num_cores} cores, {memory_mib} MiB, Linux {kernel}, load before the run {load_before}"
        )
    }
}

/// The value of a `name : value` line.
pub(crate) fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| {
        let (left, right) = line.split_once(':')?;
        (left.trim() == name).then(|| right.trim().to_owned())
    })
}

/// The first word of a value as a number.
pub(crate) fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

/// Processor time that all threads of this process have used so far, to the nanosecond.
pub fn own_cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::try_from(time).expect("a process has not used less than no time")
}

/// Processor time that another process has used so far, to the hundredth of a second; none when it has gone.
pub(crate) fn cpu_time_of(pid: u32) -> Option<Duration> {
    parse_cpu_time(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// User and system time: fields 14 and 15 of the line, counted in hundredths of a second on every Linux
/// platform. The second field, a name in parentheses, may hold spaces: count from its end.
fn parse_cpu_time(stat: &str) -> Option<Duration> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis((user + system) * 10))
}

/// A command line as it is written down: of absolute paths only the file's name, because a folder of one machine
/// says nothing on another. Words with blanks stand in quotes.
pub fn command_for_readers<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let shortened = words.into_iter().map(|word| match word.rsplit_once('/') {
        Some((_, name)) if word.starts_with('/') => name,
        _ => word,
    });
    let quoted = |word: &str| match word.contains(char::is_whitespace) || word.is_empty() {
        true => format!("'{}'", word.replace('\'', "'\\''")),
        false => word.to_owned(),
    };
    shortened.map(quoted).collect::<Vec<_>>().join(" ")
}

/// The time now in UTC, as `2026-01-31T12:34:56Z`.
pub fn now_utc() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    format_utc(seconds)
}

/// Civil date from days since 1970, by eras of 400 years:
/// <https://howardhinnant.github.io/date_algorithms.html#civil_from_days>.
fn format_utc(seconds: u64) -> String {
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01: a year that begins in March has its leap day at its end.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_known_moments() {
        let cases = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_200, "2024-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
        ];
        for (seconds, date) in cases {
            assert_eq!(format_utc(seconds), date);
        }
    }

    #[test]
    fn cpu_time_rises_with_work() {
        let before = own_cpu_time();
        let mut sum = 0u64;
        while own_cpu_time() < before + Duration::from_millis(2) {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        assert!(own_cpu_time() >= before + Duration::from_millis(2));
    }

    #[test]
    fn cpu_time_of_a_name_with_spaces() {
        let stat = "7 (a b) c) S 1 1 1 0 -1 4194304 100 0 0 0 250 50 0 0 20 0 3 0 5 6 7";
        assert_eq!(parse_cpu_time(stat), Some(Duration::from_secs(3)));
        assert_eq!(parse_cpu_time("nonsense"), None);
    }

    #[test]
    fn commands_keep_what_a_reader_can_use() {
        let words = [
            "/home/me/bin/quern",
            "serve",
            "--model",
            "/data/m.gguf",
            "--url",
            "http://127.0.0.1:1/v1",
            "a/b",
            "it's two",
            "",
        ];
        let command = r"quern serve --model m.gguf --url http://127.0.0.1:1/v1 a/b 'it'\''s two' ''";
        assert_eq!(command_for_readers(words), command);
    }

    #[test]
    fn fields_are_found_by_name() {
        let text = "processor : 0\nmodel name\t: Some CPU @ 2\nVmHWM:\t 1234 kB\n";
        assert_eq!(field(text, "model name").as_deref(), Some("Some CPU @ 2"));
        assert_eq!(field(text, "VmHWM").and_then(|value| first_number(&value)), Some(1234));
        assert_eq!(field(text, "absent"), None);
    }
}
