//! Where llama.cpp's log lines go: to `tracing`, under the target `llama.cpp`.
//!
//! While a model or an adapter is loaded, the lines of the loading thread are
//! kept as well: they are the only place where llama.cpp says why it failed and
//! how large its buffers are.

use std::cell::RefCell;

/// How grave a line is, in llama.cpp's terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
}

#[derive(Default)]
struct ThreadLog {
    /// The beginning of a line whose end has not come yet.
    partial: String,
    partial_level: Option<Level>,
    /// Lines kept for [`capture`], while one is under way.
    captured: Option<Vec<(Level, String)>>,
}

thread_local! {
    static LOG: RefCell<ThreadLog> = RefCell::default();
}

/// Takes a piece of text from llama.cpp; `level` is `None` for a continuation.
pub(crate) fn on_text(level: Option<Level>, text: &str) {
    // A subscriber that logs through llama.cpp again, or a thread that is being
    // torn down, loses the line instead of failing.
    let _ = LOG.try_with(|log| {
        let Ok(mut log) = log.try_borrow_mut() else { return };
        if level.is_some() {
            log.partial_level = level;
        }
        log.partial.push_str(text);
        while let Some(end) = log.partial.find('\n') {
            let line: String = log.partial.drain(..=end).collect();
            let level = level_of(log.partial_level, &line);
            emit(level, line.trim());
            if let Some(captured) = &mut log.captured {
                captured.push((level, line.trim().to_owned()));
            }
        }
    });
}

/// How grave a line is; a continuation of nothing counts as a piece of information.
fn level_of(said: Option<Level>, line: &str) -> Level {
    match said {
        // A vocabulary that it does not have is what it is told, see `Model::load`.
        Some(Level::Warn) if line.contains("dummy tokens") => Level::Info,
        said => said.unwrap_or(Level::Info),
    }
}

fn emit(level: Level, line: &str) {
    // Loading a model writes hundreds of informative lines: one level lower each.
    match level {
        Level::Debug => tracing::trace!(target: "llama.cpp", "{line}"),
        Level::Info => tracing::debug!(target: "llama.cpp", "{line}"),
        Level::Warn => tracing::warn!(target: "llama.cpp", "{line}"),
        Level::Error => tracing::error!(target: "llama.cpp", "{line}"),
    }
}

/// Runs `work` and gives back the lines that this thread logged meanwhile.
pub(crate) fn capture<T>(work: impl FnOnce() -> T) -> (T, Captured) {
    LOG.with_borrow_mut(|log| log.captured = Some(Vec::new()));
    let result = work();
    let lines = LOG.with_borrow_mut(|log| log.captured.take()).unwrap_or_default();
    (result, Captured { lines })
}

/// The lines of one piece of work.
#[derive(Debug, Default)]
pub(crate) struct Captured {
    lines: Vec<(Level, String)>,
}

impl Captured {
    /// The last few errors, without the C functions that raised them.
    pub(crate) fn reason(&self) -> String {
        const MAX_LINES: usize = 3;
        let of = |wanted: Level| self.lines.iter().filter(move |(level, _)| *level == wanted);
        let graver = if of(Level::Error).next().is_some() { Level::Error } else { Level::Warn };
        let lines: Vec<_> = of(graver).map(|(_, line)| without_function(line)).collect();
        let last = &lines[lines.len().saturating_sub(MAX_LINES)..];
        if last.is_empty() { "llama.cpp gave no reason".to_owned() } else { last.join("; ") }
    }

    /// Sums up the sizes in all lines of the form `… {what} = 12.34 MiB`.
    pub(crate) fn sum_mib(&self, what: &str) -> Option<u64> {
        let sizes = self.lines.iter().filter_map(|(_, line)| {
            let (_, size) = line.split_once(what)?;
            let (size, _) = size.trim_start().strip_prefix('=')?.trim_start().split_once(" MiB")?;
            size.parse::<f64>().ok()
        });
        sizes.map(|mib| (mib * 1024.0 * 1024.0) as u64).reduce(|sum, size| sum + size)
    }
}

/// `llama_model_load: error loading model: no such file` → `error loading model: no such file`.
fn without_function(line: &str) -> &str {
    match line.split_once(": ") {
        Some((function, rest)) if function.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_pieces_and_keeps_the_last_errors() {
        let ((), captured) = capture(|| {
            on_text(Some(Level::Info), "llama_kv_cache:        CPU KV buffer size =");
            on_text(None, "   1.50 MiB\n");
            on_text(Some(Level::Info), "x: CUDA0 KV buffer size = 2.00 MiB\n");
            for idx in 0..5 {
                on_text(Some(Level::Error), &format!("load_it: broken {idx}\n"));
            }
            on_text(Some(Level::Warn), "beware\n");
        });
        assert_eq!(captured.sum_mib("KV buffer size"), Some(7 << 19));
        assert_eq!(captured.sum_mib("compute buffer size"), None);
        assert_eq!(captured.reason(), "broken 2; broken 3; broken 4");
        let ((), nothing) = capture(|| on_text(Some(Level::Info), "fine\n"));
        assert_eq!(nothing.reason(), "llama.cpp gave no reason");
    }
}
