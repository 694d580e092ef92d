// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The log: to standard error, each line with the device's name, if it has one.

mod fields;
mod journald;
mod json;

use std::fmt;
use std::io::{IsTerminal, stderr};

use clap::ValueEnum;
use tracing::level_filters::LevelFilter;
use tracing::{Level, error};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use self::fields::Fields;
use self::journald::Journald;
use self::json::Json;
use crate::cli::{Cli, LogFormat};
use crate::printable::printable;

/// Which lines there are, and what they look like.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Log {
    pub(crate) level: LevelFilter,
    pub(crate) format: LogFormat,
}

impl Log {
    /// As no command line has it otherwise.
    pub(crate) const PLAIN: Self = Self { level: LevelFilter::INFO, format: LogFormat::Text };

    /// As the command line has it.
    pub(crate) fn of(cli: &Cli) -> Self {
        Self { level: cli.log_level, format: cli.log_format }
    }

    /// The options of a command line that has it so.
    pub(crate) fn options(self) -> [String; 2] {
        let format = self.format.to_possible_value().expect("all formats can be asked for");
        [format!("--log-level={}", self.level), format!("--log-format={}", format.get_name())]
    }

    pub(crate) fn begin(self, name: Option<String>) {
        let log = tracing_subscriber::fmt()
            .with_max_level(self.level)
            .with_target(false)
            .with_writer(stderr)
            .fmt_fields(Fields)
            // A log that nobody reads any more is no reason to panic.
            .log_internal_errors(false);
        match self.format {
            LogFormat::Text => log.with_ansi(stderr().is_terminal()).with_timer(Named(name)).init(),
            LogFormat::Json => log.with_ansi(false).event_format(Json::new(name)).init(),
            LogFormat::Journald => log.with_ansi(false).event_format(Journald::new(name)).init(),
        }
    }

    /// Says why the program ends.
    pub(crate) fn end(self, why: &anyhow::Error) {
        if self.format == LogFormat::Text || !tracing::enabled!(Level::ERROR) {
            eprintln!("vhost-pmemd: {}", printable(&format!("{why:#}")));
        } else {
            error!("{why:#}");
        }
    }
}

/// The time, and the device's name behind it: the process is one device's, whichever thread logs.
struct Named(Option<String>);

impl FormatTime for Named {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        SystemTime.format_time(writer)?;
        self.0.as_ref().map_or(Ok(()), |name| write!(writer, " {name}"))
    }
}
