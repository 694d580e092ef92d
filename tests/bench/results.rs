// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Numbers, and the table they make.

use std::fmt;
use std::time::Duration;

/// How a guest reaches the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Window {
    Direct,
    Served,
}

impl Window {
    /// The word for it on the daemon's command line.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Served => "served",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// More is better.
    MibPerSecond,
    /// Less is better.
    Microseconds,
}

/// What was measured, each in both windows and several rounds.
#[derive(Default)]
pub(crate) struct Results(Vec<Row>);

struct Row {
    name: String,
    unit: Unit,
    /// A number a round.
    direct: Vec<f64>,
    served: Vec<f64>,
}

impl Results {
    pub(crate) fn rate(&mut self, name: &str, window: Window, pages: usize, took: Duration) {
        let mib = pages as f64 / 256.0;
        self.add(name, Unit::MibPerSecond, window, mib / took.as_secs_f64());
    }

    pub(crate) fn time(&mut self, name: &str, window: Window, took: Duration) {
        self.add(name, Unit::Microseconds, window, took.as_secs_f64() * 1e6);
    }

    /// The half of them that took less, and the hundredth that took most.
    pub(crate) fn times(&mut self, name: &str, window: Window, mut took: Vec<Duration>) {
        took.sort_unstable();
        for percent in [50, 99] {
            let time = took[(took.len() - 1) * percent / 100];
            self.time(&format!("{name}, p{percent}"), window, time);
        }
    }

    fn add(&mut self, name: &str, unit: Unit, window: Window, value: f64) {
        let at = self.0.iter().position(|row| row.name == name).unwrap_or_else(|| {
            let name = name.to_owned();
            self.0.push(Row { name, unit, direct: Vec::new(), served: Vec::new() });
            self.0.len() - 1
        });
        let row = &mut self.0[at];
        match window {
            Window::Direct => row.direct.push(value),
            Window::Served => row.served.push(value),
        }
    }
}

/// The median, the least and the most.
fn spread(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    [sorted[sorted.len() / 2], sorted[0], sorted[sorted.len() - 1]]
}

impl fmt::Display for Results {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (direct, served) = ("direct (least–most)", "served (least–most)");
        write!(f, "{:44} {:>6} {direct:>26} {served:>26} {:>13}", "", "", "served/direct")?;
        for Row { name, unit, direct, served } in &self.0 {
            let unit = match unit {
                Unit::MibPerSecond => "MiB/s",
                Unit::Microseconds => "µs",
            };
            let [direct, served] = [spread(direct), spread(served)];
            let shown = |[median, least, most]: [f64; 3]| {
                let digits = if median < 100.0 { 2 } else { 0 };
                format!("{median:.digits$} ({least:.digits$}–{most:.digits$})")
            };
            let ratio = served[0] / direct[0];
            let [direct, served] = [shown(direct), shown(served)];
            write!(f, "\n{name:44} {unit:>6} {direct:>26} {served:>26} {ratio:>13.2}")?;
        }
        Ok(())
    }
}
