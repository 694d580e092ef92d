// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Prometheus' text format, version 0.0.4.

use std::fmt::{Display, Write};

/// What the text is, for who is sent it.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What kind of number a metric is.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    /// One that only grows.
    Counter,
    Gauge,
    Histogram,
}

/// Names and values of labels. One without a value is left out.
pub(super) type Labels<'a> = [(&'static str, &'a str)];

/// The text, metric by metric.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a metric. One without samples is told all the same: whoever looks sees what there is.
    pub(super) fn metric(&mut self, name: &'static str, kind: Kind, help: &str) -> &mut Self {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        self.write(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        self
    }

    /// A value of the metric that was begun.
    pub(super) fn sample(&mut self, labels: &Labels<'_>, value: impl Display) {
        self.line("", labels, value);
    }

    /// A histogram: how many numbers are up to each bound and no more than the one before, how many
    /// are larger, and their sum. Bounds and sum are shown as `unit` says.
    pub(super) fn histogram<D: Display>(
        &mut self,
        labels: &Labels<'_>,
        (bounds, counts, sum): (&[u64], &[u64], u64),
        unit: impl Fn(u64) -> D,
    ) {
        let mut all = 0;
        let shown = bounds.iter().map(|bound| unit(*bound).to_string());
        for (bound, count) in shown.chain(["+Inf".to_owned()]).zip(counts) {
            all += count;
            self.line("_bucket", &[labels, &[("le", &bound)]].concat(), all);
        }
        self.line("_sum", labels, unit(sum));
        self.line("_count", labels, all);
    }

    pub(super) fn into_text(self) -> String {
        self.text
    }

    fn line(&mut self, suffix: &str, labels: &Labels<'_>, value: impl Display) {
        let name = self.name;
        self.write(format_args!("{name}{suffix}"));
        let mut before = '{';
        for (label, value) in labels.iter().filter(|(_, value)| !value.is_empty()) {
            let value = value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n");
            self.write(format_args!("{before}{label}=\"{value}\""));
            before = ',';
        }
        let end = if before == ',' { "}" } else { "" };
        self.write(format_args!("{end} {value}\n"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.text.write_fmt(text).expect("a string takes all text");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped_and_empty_ones_left_out() {
        let mut text = Exposition::default();
        text.metric("m", Kind::Gauge, "Help.").sample(&[("a", "x\\\"\n"), ("b", "")], 0.5);
        text.sample(&[("b", "")], 1);
        let expected = "# HELP m Help.\n# TYPE m gauge\nm{a=\"x\\\\\\\"\\n\"} 0.5\nm 1\n";
        assert_eq!(text.into_text(), expected);
    }

    #[test]
    fn histogram_counts_up_to_each_bound() {
        let mut text = Exposition::default();
        let unit = |number| f64::from(u32::try_from(number).unwrap()) / 10.0;
        text.metric("m", Kind::Histogram, "H.").histogram(&[], (&[1, 20], &[2, 3, 4], 50), unit);
        let text = text.into_text();
        let lines: Vec<_> = text.lines().skip(2).collect();
        let expected = [
            "m_bucket{le=\"0.1\"} 2",
            "m_bucket{le=\"2\"} 5",
            "m_bucket{le=\"+Inf\"} 9",
            "m_sum 5",
            "m_count 9",
        ];
        assert_eq!(lines, expected);
    }
}
