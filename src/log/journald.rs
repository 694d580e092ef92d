// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Lines for journald, which reads standard error and puts the time to them: each begins with its
//! priority, `<6>`, as sd-daemon(3) has it.
//!
//! journald's own protocol would take a socket that a confined process may not reach, and loses what
//! is said where nobody listens at it; standard error is there always.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct Journald {
    device: Option<String>,
}

impl Journald {
    pub(super) fn new(device: Option<String>) -> Self {
        Self { device }
    }
}

/// As syslog(3) counts them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

impl<S, N> FormatEvent<S, N> for Journald
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        write!(writer, "<{}>", priority(*event.metadata().level()))?;
        context.format_fields(writer.by_ref(), event)?;
        match &self.device {
            Some(device) => writeln!(writer, " device={device:?}"),
            None => writeln!(writer),
        }
    }
}
