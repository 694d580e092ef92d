// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log: to standard error, each line with the device's name, if it has one.

use std::fmt;
use std::io::{IsTerminal, stderr};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

pub(crate) fn begin(level: LevelFilter, name: Option<String>) {
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(stderr().is_terminal())
        .with_writer(stderr)
        .with_timer(Named(name))
        // A log that nobody reads any more is no reason to panic.
        .log_internal_errors(false)
        .init();
}

/// The time, and the device's name behind it: the process is one device's, whichever thread logs.
struct Named(Option<String>);

impl FormatTime for Named {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        self.0.as_ref().map_or(Ok(()), |name| write!(writer, " {name}"))
    }
}
