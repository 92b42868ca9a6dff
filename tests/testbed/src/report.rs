//! What the testbed says while it works: a bar or a spinner on a terminal, plain lines elsewhere.
//!
//! It is written directly, not by macros like `eprintln!`, which the test harness would keep to itself: somebody
//! who runs the tests for the first time is to see why they take minutes.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// How often a plain line is written.
const PLAIN_INTERVAL: Duration = Duration::from_secs(30);

/// The bar or spinner that is on the terminal.
static SHOWN: Mutex<Option<ProgressBar>> = Mutex::new(None);

/// Writes one line to standard error. What is on the terminal makes way for good: whoever writes a line while work is
/// shown says why it ends.
pub fn line(text: &str) {
    if let Some(bar) = shown().take() {
        bar.finish_and_clear();
    }
    // Standard error that is closed is no reason to fail.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// Writes one line of what a command is for to standard output.
pub fn output(text: &str) {
    // A reader that has gone is no reason to fail, either.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// Text as a shell takes it for one word.
pub fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// A piece of work that takes long enough to be shown.
#[derive(Debug)]
pub struct Activity {
    what: String,
    started: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Activity {
    /// Says what begins, and why or for how long.
    pub fn start(what: &str, why: &str) -> Self {
        line(&format!("{what} ({why}) ..."));
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_style(spinner());
            bar.enable_steady_tick(Duration::from_millis(100));
            *shown() = Some(bar.clone());
            bar
        });
        let now = Instant::now();
        Self { what: what.to_owned(), started: now, told: now, bar }
    }

    /// Says which step of the work is under way, where it cannot be said how far that is.
    pub fn step(&mut self, step: &str) {
        match &self.bar {
            Some(bar) => {
                if bar.length().is_some() {
                    bar.set_style(spinner());
                    bar.unset_length();
                }
                bar.set_message(step.to_owned());
            }
            None => self.plain(step),
        }
    }

    /// Says how far the work is: `done` of `total` units.
    pub fn progress(&mut self, done: u64, total: u64, unit: &str) {
        match &self.bar {
            Some(bar) => {
                if bar.length() != Some(total) {
                    bar.set_style(counted(unit));
                    bar.set_length(total);
                }
                bar.set_position(done);
            }
            None => self.plain(&format!("{done} of {total} {unit}")),
        }
    }

    /// Says that the work is done, and how long it took.
    pub fn finish(self) {
        self.clear();
        line(&format!("{}: done in {} s", self.what, self.started.elapsed().as_secs()));
    }

    fn plain(&mut self, text: &str) {
        if self.told.elapsed() >= PLAIN_INTERVAL {
            self.told = Instant::now();
            line(&format!("{}: {text}, {} s so far", self.what, self.started.elapsed().as_secs()));
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Work that failed leaves no spinner on the terminal.
impl Drop for Activity {
    fn drop(&mut self) {
        self.clear();
    }
}

fn shown() -> MutexGuard<'static, Option<ProgressBar>> {
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For work of which it cannot be said how far it is.
fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {msg}, {elapsed_precise}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// For work that is counted.
fn counted(unit: &str) -> ProgressStyle {
    let template = format!("{{bar:40}} {{pos}} of {{len}} {unit}, {{elapsed_precise}}");
    ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar())
}
