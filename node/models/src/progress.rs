//! What a person sees while a model is fetched.

use std::io::IsTerminal;
use std::sync::Mutex;

use indicatif::{ProgressBar, ProgressStyle};

/// Hears how a pull goes.
pub trait Progress: Sync {
    /// A line to read.
    fn note(&self, line: &str);

    /// So many bytes of so many are there. Called often.
    fn at(&self, have_bytes: u64, size_bytes: u64);

    /// No more calls of [`Progress::at`] follow for this file.
    fn done(&self);
}

/// Says nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn note(&self, _line: &str) {}

    fn at(&self, _have_bytes: u64, _size_bytes: u64) {}

    fn done(&self) {}
}

/// Writes to standard error: a bar on a terminal, a line every tenth elsewhere.
pub struct Terminal {
    shown: Mutex<Shown>,
}

enum Shown {
    Bar(Option<ProgressBar>),
    Lines { next_tenth: u64 },
}

impl Terminal {
    /// Looks once whether standard error is a terminal.
    #[must_use]
    pub fn new() -> Terminal {
        let shown =
            if std::io::stderr().is_terminal() { Shown::Bar(None) } else { Shown::Lines { next_tenth: 0 } };
        Terminal { shown: Mutex::new(shown) }
    }

    fn shown(&self) -> std::sync::MutexGuard<'_, Shown> {
        // A panic while a line is printed leaves nothing half done here.
        self.shown.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Default for Terminal {
    fn default() -> Self {
        Terminal::new()
    }
}

impl Progress for Terminal {
    fn note(&self, line: &str) {
        match &*self.shown() {
            Shown::Bar(Some(bar)) => bar.suspend(|| eprintln!("{line}")),
            _ => eprintln!("{line}"),
        }
    }

    fn at(&self, have_bytes: u64, size_bytes: u64) {
        match &mut *self.shown() {
            Shown::Bar(bar) => {
                let bar = bar.get_or_insert_with(|| new_bar(have_bytes));
                bar.set_length(size_bytes);
                bar.set_position(have_bytes);
            }
            Shown::Lines { next_tenth } => {
                let tenth = have_bytes * 10 / size_bytes.max(1);
                if tenth >= *next_tenth {
                    eprintln!("{} % of {} MiB", tenth * 10, size_bytes >> 20);
                    *next_tenth = tenth + 1;
                }
            }
        }
    }

    fn done(&self) {
        match &mut *self.shown() {
            Shown::Bar(bar) => {
                if let Some(bar) = bar.take() {
                    bar.finish_and_clear();
                }
            }
            Shown::Lines { next_tenth } => *next_tenth = 0,
        }
    }
}

fn new_bar(have_bytes: u64) -> ProgressBar {
    let style =
        ProgressStyle::with_template("{bar:32} {bytes}/{total_bytes}  {binary_bytes_per_sec}  {eta} left")
            .expect("the template is a constant, and a test draws it");
    let bar = ProgressBar::new(0).with_style(style).with_position(have_bytes);
    // Bytes that were there already must not count as speed.
    bar.reset_eta();
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_draws() {
        let terminal = Terminal { shown: Mutex::new(Shown::Bar(None)) };
        terminal.at(5, 10);
        terminal.note("a line between");
        terminal.at(10, 10);
        terminal.done();
        assert!(matches!(&*terminal.shown(), Shown::Bar(None)));
    }

    #[test]
    fn lines_come_once_a_tenth() {
        let terminal = Terminal { shown: Mutex::new(Shown::Lines { next_tenth: 0 }) };
        for have in 0..=55 {
            terminal.at(have, 100);
        }
        assert!(matches!(&*terminal.shown(), Shown::Lines { next_tenth: 6 }));
        terminal.done();
        assert!(matches!(&*terminal.shown(), Shown::Lines { next_tenth: 0 }));
    }
}
