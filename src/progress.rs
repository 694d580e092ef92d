// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! How far work has come that takes long: a bar in a terminal, and a line now and then elsewhere.

use std::io::{IsTerminal, stderr};
use std::time::{Duration, Instant};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

/// How often there is a line where there is no terminal.
const INTERVAL: Duration = Duration::from_secs(10);

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Bytes,
    Regions,
}

/// Work under way; its bar is gone when it is dropped.
pub(crate) struct Progress {
    what: &'static str,
    unit: Unit,
    /// The most that was left at any time.
    total: u64,
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    pub(crate) fn begin(what: &'static str, unit: Unit) -> Self {
        let bar = stderr().is_terminal().then(|| bar(what, unit));
        Self { what, unit, total: 0, bar, said: Instant::now() }
    }

    /// So much is left to be done. What is left may grow: a guest goes on writing.
    pub(crate) fn left(&mut self, left: u64) {
        self.total = self.total.max(left);
        let done = self.total - left;
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
            bar.set_position(done);
        } else if self.said.elapsed() >= INTERVAL {
            self.said = Instant::now();
            eprintln!("vhost-pmemd: {}", line(self.what, self.unit, done, self.total));
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &'static str, unit: Unit) -> ProgressBar {
    let numbers = match unit {
        Unit::Bytes => "{binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left",
        Unit::Regions => "{pos} of {len} regions, {eta} left",
    };
    let template = format!("{{msg}} {{bar:30}} {numbers}");
    let style = ProgressStyle::with_template(&template).expect("its words are indicatif's");
    let bar = ProgressBar::new(0).with_style(style).with_message(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn line(what: &str, unit: Unit, done: u64, total: u64) -> String {
    match unit {
        Unit::Bytes => format!("{what}: {} of {}", HumanBytes(done), HumanBytes(total)),
        Unit::Regions => format!("{what}: {done} of {total} regions"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_a_part_of_the_most_that_was_left() {
        let mut progress = Progress { bar: Some(ProgressBar::hidden()), ..begin() };
        let mut shown = Vec::new();
        for left in [30, 10, 40, 0] {
            progress.left(left);
            let bar = progress.bar.as_ref().unwrap();
            shown.push((bar.position(), bar.length().unwrap()));
        }
        assert_eq!(shown, [(0, 30), (20, 30), (0, 40), (40, 40)]);
    }

    fn begin() -> Progress {
        Progress { what: "", unit: Unit::Bytes, total: 0, bar: None, said: Instant::now() }
    }

    #[test]
    fn line_is_in_binary_units() {
        let line = line("merging", Unit::Bytes, 3 << 29, 10 << 30);
        assert_eq!(line, "merging: 1.50 GiB of 10.00 GiB");
        for unit in [Unit::Bytes, Unit::Regions] {
            bar("", unit).finish_and_clear();
        }
    }
}
