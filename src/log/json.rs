// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A line of JSON each: `timestamp`, `level`, `device`, `message`, and the event's own fields beside
//! them.

use std::error::Error;
use std::fmt::{self, Debug};

use anyhow::Chain;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

pub(super) struct Json {
    device: Option<String>,
}

impl Json {
    pub(super) fn new(device: Option<String>) -> Self {
        Self { device }
    }
}

impl<S, N> FormatEvent<S, N> for Json
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut time = String::new();
        SystemTime.format_time(&mut Writer::new(&mut time))?;
        let level = event.metadata().level().as_str();
        let mut fields = vec![("timestamp", Value::from(time)), ("level", Value::from(level))];
        if let Some(device) = &self.device {
            fields.push(("device", Value::from(device.as_str())));
        }
        let mut line = Line { fields };
        event.record(&mut line);
        let mut before = '{';
        for (name, value) in line.fields {
            write!(writer, "{before}\"{name}\":{value}")?;
            before = ',';
        }
        writeln!(writer, "}}")
    }
}

/// What is to stand in a line; names are identifiers, and need no escapes.
struct Line {
    fields: Vec<(&'static str, Value)>,
}

impl Line {
    fn add(&mut self, field: &Field, value: impl Into<Value>) {
        // Of two of a name a reader would take either; the process knows better whose it is.
        if self.fields.iter().all(|(name, _)| *name != field.name()) {
            self.fields.push((field.name(), value.into()));
        }
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.add(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value);
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value);
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value);
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value);
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        let causes: Vec<_> = Chain::new(value).map(ToString::to_string).collect();
        self.add(field, causes.join(": "));
    }
}
