// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! What was measured on several devices by turns, as a table and as JSON.

use std::fmt;

use serde::Serialize;

use crate::fio::{JOBS_MOST, Load, Numbers, Task};
use crate::spread::spread;

/// Whose device it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Ours,
    /// Ours, on a file that it reads into the page cache page by page.
    OursByPages,
    /// QEMU's own.
    Qemus,
    /// QEMU's own, on a file that was read page by page.
    QemusByPages,
}

impl Side {
    pub(crate) const ALL: [Self; 4] =
        [Self::Ours, Self::OursByPages, Self::Qemus, Self::QemusByPages];

    fn name(self) -> &'static str {
        match self {
            Self::Ours => "vhost-pmemd",
            Self::OursByPages => "vhost-pmemd --prefetch",
            Self::Qemus => "QEMU's virtio-pmem-pci",
            Self::QemusByPages => "QEMU's, file read page by page",
        }
    }

    /// A word for it: where the guest has it, below `/mnt`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::OursByPages => "ours-by-pages",
            Self::Qemus => "qemus",
            Self::QemusByPages => "qemus-by-pages",
        }
    }

    /// Whom it is compared with: QEMU's, with the same in the page cache.
    fn peer(self) -> Option<Self> {
        match self {
            Self::Ours => Some(Self::Qemus),
            Self::OursByPages => Some(Self::QemusByPages),
            Self::Qemus | Self::QemusByPages => None,
        }
    }
}

/// What was measured in all rounds of one task on one device.
#[derive(Serialize)]
struct Row {
    what: String,
    who: &'static str,
    jobs: usize,
    rounds: Vec<Numbers>,
    #[serde(skip)]
    key: (Task, Side),
}

/// All rows, in the order in which they were measured first.
#[derive(Default, Serialize)]
pub(crate) struct Contest(Vec<Row>);

/// What is to be reached, and whether it is. Shown, never asserted: a shared machine has moods.
#[derive(Serialize)]
pub(crate) struct Target {
    what: String,
    value: f64,
    at_least: f64,
    met: bool,
}

impl Contest {
    pub(crate) fn add(&mut self, task: Task, side: Side, numbers: Numbers) {
        let key = (task, side);
        let at = self.0.iter().position(|row| row.key == key).unwrap_or_else(|| {
            let (what, who, jobs) = (task.name(), side.name(), task.jobs);
            self.0.push(Row { what, who, jobs, rounds: Vec::new(), key });
            self.0.len() - 1
        });
        self.0[at].rounds.push(numbers);
    }

    /// All that can be told.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let target = |row: &Row| {
            let at_least = match (row.key.0.load, row.jobs) {
                (Load::Read | Load::Write, _) => 0.98,
                (Load::Synced, 1) => 1.0,
                (Load::Synced, JOBS_MOST) => 1.2,
                (Load::Synced, _) => return None,
            };
            let [value, ..] = self.ratio(row)?;
            let what = format!("{}, {}, jobs: {}", row.who, row.what, row.jobs);
            Some(Target { what, value, at_least, met: value >= at_least })
        };
        self.0.iter().filter_map(target).collect()
    }

    /// The rates of `row` as multiples of its peer's in the same rounds.
    fn ratio(&self, row: &Row) -> Option<[f64; 3]> {
        let (task, side) = row.key;
        let peer = (task, side.peer()?);
        let peer = self.0.iter().find(|row| row.key == peer)?;
        let rounds = row.rounds.iter().zip(&peer.rounds);
        Some(spread(rounds.map(|(a, b)| rate(task, a) / rate(task, b))))
    }
}

/// What counts.
fn rate(task: Task, numbers: &Numbers) -> f64 {
    if task.load == Load::Synced { numbers.per_second } else { numbers.mib_per_second }
}

impl fmt::Display for Contest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| | jobs | | (least–most) | | beside QEMU's (least–most) | fsync p50 µs | p99 µs |"
        )?;
        f.write_str("|---|---|---|---|---|---|---|---|")?;
        for row in &self.0 {
            let Row { what, who, jobs, rounds, key: (task, _) } = row;
            let unit = if task.load == Load::Synced { "fsyncs/s" } else { "MiB/s" };
            let [median, least, most] = spread(rounds.iter().map(|numbers| rate(*task, numbers)));
            write!(
                f,
                "\n| {what} | {jobs} | {who} | {median:.0} ({least:.0}–{most:.0}) | {unit} |"
            )?;
            match self.ratio(row) {
                Some([median, least, most]) => {
                    write!(f, " {median:.2} ({least:.2}–{most:.2}) |")?;
                }
                None => f.write_str(" – |")?,
            }
            let times: [fn(&Numbers) -> Option<f64>; 2] = [|of| of.p50_us, |of| of.p99_us];
            for time in times {
                match rounds.iter().map(time).collect::<Option<Vec<_>>>() {
                    Some(times) => write!(f, " {:.0} |", spread(times.into_iter())[0])?,
                    None => f.write_str(" – |")?,
                }
            }
        }
        Ok(())
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, value, at_least, met } = self;
        let met = if *met { "met" } else { "not met" };
        write!(f, "{what}: {value:.3}, at least {at_least}: {met}")
    }
}
