// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Progress of the steps that take seconds: a bar or a spinner on a terminal, one plain line
//! elsewhere.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A step under way; its line goes away when it is dropped.
pub(crate) struct Step(ProgressBar);

impl Step {
    /// A step of unknown length.
    pub(crate) fn spinner(message: &str) -> Self {
        Self::show(ProgressBar::new_spinner(), message)
    }

    /// A step of `len` parts, each to be reported by [`Step::inc`].
    pub(crate) fn bar(message: &str, len: usize) -> Self {
        let bar = ProgressBar::new(u64::try_from(len).unwrap_or(u64::MAX));
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {bar:30} {pos}/{len}") {
            bar.set_style(style);
        }
        Self::show(bar, message)
    }

    fn show(bar: ProgressBar, message: &str) -> Self {
        if !std::io::stderr().is_terminal() {
            eprintln!("guest-harness: {message}");
        }
        bar.set_message(message.to_owned());
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }

    pub(crate) fn inc(&self) {
        self.0.inc(1);
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Says something that stays on the screen.
pub(crate) fn note(message: &str) {
    eprintln!("guest-harness: {message}");
}
